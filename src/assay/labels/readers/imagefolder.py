"""Reader of Hugging Face's `imagefolder`: images and a `metadata` table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.readers.columns import Columns
from assay.labels.readers.exports import Export, Options, files_by_split
from assay.labels.readers.table_files import Rows, read_rows, texts
from assay.messages import printable

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NAMES = ("file_name", "image_file_name")


def read_imagefolder(source: Path, options: Options) -> Export:
    """Return the images of `metadata.csv`, `.jsonl` or `.parquet`, also of a folder for each split.

    Names in `file_name` start from the folder of the file. The label columns are `heads`, or those that a table would
    have. Raises DataError where no column names the images.
    """
    root = options.root or (source if source.is_dir() else source.parent)
    files = files_by_split(source, lambda path: path.name in METADATA, " or ".join(METADATA))
    parts = []
    for path, name, split in files:
        rows = read_rows(path)
        image = next((one for one in NAMES if one in rows.names), None)
        if image is None:
            raise DataError(f"{printable(path)}: has no column {NAMES[0]!r}, which names the images. {rows.listed()}")
        rows = texts(rows, [image])
        folder = name.rpartition("/")[0]
        cells = [cell if cell is None or not folder else f"{folder}/{cell}" for cell in rows.frame[image].to_list()]
        frame = rows.frame.with_columns(pl.Series(image, cells, dtype=pl.String).alias(NAMES[0]))
        if split and "split" not in rows.names:
            frame = frame.with_columns(split=pl.lit(split))
        parts.append((replace(rows, frame=frame), name))
    return Export(joined_rows(source, parts), Columns(NAMES[0], options.heads), root)


def joined_rows(source: Path, parts: Sequence[tuple[Rows, str]]) -> Rows:
    """Return the rows of several files as those of one."""
    if len(parts) == 1:
        return parts[0][0]
    try:
        frame = pl.concat([rows.frame for rows, _ in parts], how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{printable(source)}: the files have columns of different types ({reason}).") from error
    lines = [f"{line} of {name}" for rows, name in parts for line in rows.lines]
    notes = tuple(note for rows, _ in parts for note in rows.notes)
    return Rows(source, frame, lines, parts[0][0].unit, notes)
