"""Reader of Roboflow's `_classes.csv`: a column of 0 and 1 for each class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.readers.columns import Columns
from assay.labels.readers.exports import HEAD, Export, Options, files_by_split, path_in
from assay.labels.readers.label_cells import HeadColumns
from assay.labels.readers.table_files import Rows, read_rows
from assay.messages import printable, quoted

CLASSES = "_classes.csv"


def read_roboflow(source: Path, options: Options) -> Export:
    """Return the images of `_classes.csv`, also of a folder for each split.

    The first column names the image. The classes are tags, or, where `kind` says so or each image has exactly one,
    classes. Raises DataError for files with other classes.
    """
    root = options.root or (source if source.is_dir() else source.parent)
    files = files_by_split(source, lambda path: path.name == CLASSES, CLASSES)
    parts = [_named(read_rows(path), name, split, root) for path, name, split in files]
    columns = parts[0].frame.columns
    for part, (_, name, _) in zip(parts, files, strict=True):
        if set(part.frame.columns) != set(columns):
            raise DataError(
                f"{printable(source)}: the classes of {files[0][1]} are {quoted(columns[2:])}, and those of {name} "
                f"{quoted(part.frame.columns[2:])}. Export the parts together."
            )
    frame = pl.concat([part.frame.select(columns) for part in parts])
    classes = tuple(columns[2:])
    if not classes:
        raise DataError(f"{printable(source)}: has no column beside that of the images. Add one for each class.")
    ones = frame.select(pl.sum_horizontal(pl.col(classes).str.strip_chars().eq("1").fill_null(False)))
    single = len(frame) > 0 and bool((ones.to_series() == 1).all())
    kind = options.kind_of(options.head or HEAD) or ("multiclass" if single else "multilabel")
    note = (
        f"{options.head or HEAD}: each image has exactly one class. If an image may have several: `kind: multilabel`."
    )
    head = HeadColumns(columns=classes, kind=kind)
    lines = (
        [line for part in parts for line in part.lines]
        if len(parts) == 1
        else [f"{line} of {name}" for part, (_, name, _) in zip(parts, files, strict=True) for line in part.lines]
    )
    notes = tuple(note for part in parts for note in part.notes) + (
        (note,) if single and not options.kind_of(options.head or HEAD) else ()
    )
    rows = Rows(source, frame, lines, "line", notes)
    of_split = columns[1] if frame[columns[1]].is_not_null().any() else None
    return Export(rows, Columns(columns[0], {options.head or HEAD: head}, split=of_split), root)


def _named(rows: Rows, name: str, split: str | None, root: Path) -> Rows:
    """Return rows whose first column has the paths of the images below `root`, and the second the split."""
    first, *classes = rows.frame.columns
    folder = name.rpartition("/")[0]
    cells = [None if cell is None else path_in(root, [folder], str(cell)) for cell in rows.frame[first].to_list()]
    of_split = next(free for free in ("split", "the split", "the split of the image") if free not in rows.names)
    frame = rows.frame.select(
        pl.Series(first, cells, dtype=pl.String), pl.lit(split, dtype=pl.String).alias(of_split), *classes
    )
    return replace(rows, frame=frame)
