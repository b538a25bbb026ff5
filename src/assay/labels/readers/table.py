"""Reader of a table: the images that exist, and the labels of their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.build import RawLabels, distinct_names
from assay.labels.file_kinds import is_image
from assay.labels.image_files import is_unicode
from assay.labels.left_out import LeftOut, unreadable_as_left_out
from assay.labels.readers.columns import Columns, resolve_columns, splits_of
from assay.labels.readers.image_names import MISSING, FileIndex, Location
from assay.labels.readers.image_names import locate as locate_cells
from assay.labels.readers.label_cells import HeadColumns, blank_notes, labels_of, read_cells, settle_cells
from assay.labels.readers.several_rows import joined_tags, voted
from assay.labels.readers.table_files import Rows, merge_same, numbers, read_rows, texts
from assay.labels.samples import first_labels
from assay.labels.spelling import Spelling
from assay.messages import printable, yaml_word


def find_in_table(
    table: Path,
    *,
    root: Path | None = None,
    columns: Columns | None = None,
    delimiter: str | None = None,
    spelling: Spelling | None = None,
) -> RawLabels:
    """Return the images that a table names, below `root` (the table's own folder, if none is given).

    Raises DataError for a missing column, a path that leaves the root, a bad split or weight, rows at odds.
    """
    rows = read_rows(table, delimiter=delimiter)
    return raw_labels(rows, root=root or table.parent, columns=columns, spelling=spelling)


Locate = Callable[[Rows, Sequence[str], Path], tuple[Rows, tuple[LeftOut, ...]]]
"""Return the rows whose image exists, with its `id`, and the missing ones, by the cells that name them and a root."""


def raw_labels(
    rows: Rows,
    *,
    root: Path,
    columns: Columns | None = None,
    spelling: Spelling | None = None,
    locate: Locate | None = None,
) -> RawLabels:
    """Return the images of rows, files below `root` or what `locate` finds, with their labels.

    Raises as `find_in_table` does.
    """
    spelling = spelling or Spelling()
    resolved, notes = resolve_columns(rows, columns or Columns())
    image, heads = resolved.image or "", dict(resolved.heads)
    named = (image, resolved.split, resolved.group, resolved.annotator, *(head.column for head in heads.values()))
    rows = texts(rows, [column for column in named if column])
    if spelling:
        rows, heads, changes = settle_cells(rows, heads, spelling)
        notes += changes
    cells, blank = image_cells(rows, image), pl.lit(None, dtype=pl.String)
    weights, of_weights = numbers(rows, resolved.weight) if resolved.weight else (blank.cast(pl.Float64), [])
    facts = {
        "split": splits_of(rows, resolved.split, resolved.splits) if resolved.split else blank,
        "group": rows.frame[resolved.group] if resolved.group else blank,
        "weight": weights,
    }
    labels: dict[str, pl.Series] = {}
    for name, head in heads.items():
        labels |= read_cells(rows, name, head, spelling)
    titles = {"split": "the split", "group": "the group", "weight": "the weight"}
    titles |= {column: f"the label {series.name!r}" for column, series in labels.items()}
    frame = rows.frame.select(image).with_columns(**facts).select(list(facts))
    frame = frame.hstack([series.alias(column) for column, series in labels.items()])
    rows, left_out = (locate or locate_images)(replace(rows, frame=frame), cells, root)
    combine = voted if resolved.annotator else joined_tags
    rows, of_rows = combine(rows, heads)
    rows = merge_same(rows, key="id", titles=titles, ways=_ways(heads))
    frame = rows.frame.select("id", pl.col("id").alias("path"), "split", "group", pl.col("weight").fill_null(1.0))
    frame = frame.hstack([series for name, head in heads.items() for series in labels_of(rows.frame, name, head)])
    return RawLabels(
        source=rows.source,
        root=root,
        table=frame,
        heads=tuple((name, "multiclass" if head.multiclass else "multilabel") for name, head in heads.items()),
        classes={name: head.names or distinct_names(frame[f"label:{name}"]) for name, head in heads.items()},
        declared=frozenset(name for name, head in heads.items() if head.names),
        left_out=left_out,
        notes=(*rows.notes, *notes, *of_weights, *of_rows, *blank_notes(frame, heads)),
    )


def _ways(heads: Mapping[str, HeadColumns]) -> dict[str, str]:
    """Return what else several rows of an image may be, by the column of a head of classes."""
    ways = {}
    for name, head in heads.items():
        if head.column is not None and head.multiclass:
            tags = f"{{{yaml_word(name)}: {{column: {yaml_word(head.column)}, kind: multilabel}}}}"
            ways[f"label:{name}"] = (
                f" If each row is one of several tags, write `heads: {tags}` under `data`; if each is the label of an "
                "annotator, name the column that says whose: `annotator: NAME`."
            )
    return ways


def image_cells(rows: Rows, image: str) -> list[str]:
    """Return the cells that name the images. Raises DataError for a blank one."""
    blank = rows.frame[image].is_null()
    if blank.any():
        raise DataError(f"{rows.at(blank.arg_max() or 0)}: names no image. Remove the {rows.unit}.")
    cells: list[str] = rows.frame[image].to_list()
    for row, cell in enumerate(cells):
        if "\0" in cell:
            raise DataError(f"{rows.at(row)}: {cell!r} holds a NUL character, which no file name can. Mend it.")
    return cells


def locate_images(rows: Rows, cells: Sequence[str], root: Path) -> tuple[Rows, tuple[LeftOut, ...]]:
    """Return the rows whose image exists, with its path below `root` as `id`, and the missing images."""
    if not root.is_dir():
        raise DataError(f"{printable(root)}: is no folder. `root` is the folder that holds the images of the table.")
    located, notes = locate_cells(rows, cells, root)
    ids, reasons = [], []
    for path, reason in located:
        valid = is_unicode(path)
        ids.append(path if valid else printable(path))
        reasons.append(reason if valid else "its name is not valid UTF-8: rename it")
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise DataError(_nothing(rows, cells, located, root))
    frame = rows.frame.with_columns(pl.Series("id", ids, dtype=pl.String))[kept]
    lines = [rows.lines[row] for row in kept]
    missing = {ids[row]: reason for row, reason in enumerate(reasons) if reason is not None}
    labels = first_labels(rows.frame.with_columns(id=pl.Series(ids, dtype=pl.String)))
    left_out = unreadable_as_left_out(missing, labels)
    return replace(rows, frame=frame, lines=lines, notes=(*rows.notes, *notes)), left_out


def _nothing(rows: Rows, cells: Sequence[str], located: Sequence[Location], root: Path) -> str:
    if not cells:
        return f"{printable(rows.source)}: has no rows below the names of its columns. Add a row for each image."
    there = next((printable("/".join(parts)) for parts in FileIndex(root).files if is_image(parts[-1])), None)
    holds = f" There are images such as {there!r}." if there else " No image is there at all."
    if located[0][1] not in (None, MISSING):  # it has the name of a file that is nearly the same
        holds = ""
    return (
        f"{printable(rows.source)}: none of its {len(cells)} images can be found below {printable(root)}, "
        f"such as {cells[0]!r} ({located[0][1]}).{holds} Set `root` to the folder that the paths start "
        "from (--set data.root=DIR)."
    )
