"""Readers of tables of other tools beside images: Roboflow's `_classes.csv`, and Hugging Face's `imagefolder`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.readers.columns import Columns
from assay.labels.readers.exports import HEAD, Export, LabelFile, Options, files_by_split, path_in
from assay.labels.readers.label_cells import HeadColumns
from assay.labels.readers.table_files import Rows, read_rows, texts
from assay.messages import printable, quoted

CLASSES = "_classes.csv"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NAMES = ("file_name", "image_file_name")


def read_imagefolder(source: Path, options: Options) -> Export:
    """Return the images of `metadata.csv`, `.jsonl` or `.parquet`, also of a folder for each split.

    Names in `file_name` start from the folder of the file. The label columns are `heads`, or those that a table would
    have. Raises DataError where no column names the images.
    """
    parts = []
    for file in files_by_split(source, lambda path: path.name in METADATA, " or ".join(METADATA)):
        rows = read_rows(file.path)
        image = next((one for one in NAMES if one in rows.names), None)
        if image is None:
            raise DataError(
                f"{printable(file.path)}: has no column {NAMES[0]!r}, which names the images. {rows.listed()}"
            )
        rows = texts(rows, [image])
        names = pl.concat_str(pl.lit(file.above), pl.col(image)).alias(NAMES[0])
        rows = replace(rows, frame=rows.frame.with_columns(names))
        if file.split and "split" not in rows.names:
            rows = replace(rows, frame=rows.frame.with_columns(split=pl.lit(file.split)))
        parts.append((rows, file.name))
    return Export(joined_rows(source, parts), Columns(NAMES[0], options.heads), _root(source, options))


def read_roboflow(source: Path, options: Options) -> Export:
    """Return the images of `_classes.csv`, also of a folder for each split.

    The first column names the image. The classes are tags, or, where `kind` says so or each image has exactly one,
    classes. Raises DataError for files with other classes.
    """
    root, name = _root(source, options), options.head or HEAD
    files = files_by_split(source, lambda path: path.name == CLASSES, CLASSES)
    parts = [_of_roboflow(file, root) for file in files]
    columns = parts[0].frame.columns
    for part, file in zip(parts, files, strict=True):
        if set(part.frame.columns) != set(columns):
            raise DataError(
                f"{printable(source)}: the classes of {files[0].name} are {quoted(columns[2:])}, and those of "
                f"{file.name} {quoted(part.frame.columns[2:])}. Export the parts together."
            )
    parts = [replace(part, frame=part.frame.select(columns)) for part in parts]
    rows = joined_rows(source, [(part, file.name) for part, file in zip(parts, files, strict=True)])
    image, split, *classes = columns
    if not classes:
        raise DataError(f"{printable(source)}: has no column beside that of the images. Add one for each class.")
    ones = rows.frame.select(pl.sum_horizontal(pl.col(classes).str.strip_chars().eq("1").fill_null(False)))
    single, wanted = len(rows.frame) > 0 and bool((ones.to_series() == 1).all()), options.kind_of(name)
    if single and not wanted:
        note = f"{name}: each image has exactly one class. If an image may have several: `kind: multilabel`."
        rows = replace(rows, notes=(*rows.notes, note))
    head = HeadColumns(columns=tuple(classes), kind=wanted or ("multiclass" if single else "multilabel"))
    of_split = split if rows.frame[split].is_not_null().any() else None
    return Export(replace(rows, source=source), Columns(image, {name: head}, split=of_split), root)


def _root(source: Path, options: Options) -> Path:
    return options.root or (source if source.is_dir() else source.parent)


def _of_roboflow(file: LabelFile, root: Path) -> Rows:
    """Return rows whose first column has the paths of the images below `root`, and the second the split."""
    rows = read_rows(file.path)
    image, *classes = rows.frame.columns
    of_split = next(free for free in ("split", "the split", "the split of the image") if free not in rows.names)
    cells = rows.frame[image].to_list()
    paths = [None if cell is None else path_in(root, [file.folder], str(cell)) for cell in cells]
    split = pl.lit(file.split, dtype=pl.String).alias(of_split)
    return replace(rows, frame=rows.frame.select(pl.Series(image, paths, dtype=pl.String), split, *classes))


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
