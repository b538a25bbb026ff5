"""Reader of a table: the meaning of its columns, and the images that exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.build import RawLabels, distinct_names, quoted, require_head_limit
from assay.labels.image_files import SafeRoot, is_unicode
from assay.labels.readers.folder import SPLITS
from assay.labels.readers.label_cells import HeadColumns, labels_of, read_cells, settle_cells
from assay.labels.readers.table_files import IMAGE_NAMES, Rows, merge_same, numbers, read_rows, texts
from assay.labels.samples import LeftOut
from assay.labels.spelling import Spelling
from assay.messages import printable


@dataclass(frozen=True)
class Columns:
    """The meaning of columns; None: the column of that name, if any.

    `heads` maps a head to its columns; where it is empty, every column without another meaning is a head.
    """

    image: str | None = None
    heads: Mapping[str, HeadColumns] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    weight: str | None = None


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
    resolved = _resolve_columns(rows, columns or Columns())
    image, heads = resolved.image or "", resolved.heads
    named = (image, resolved.split, resolved.group, *(head.column for head in heads.values()))
    rows, spelling = texts(rows, [column for column in named if column]), spelling or Spelling()
    rows, heads, notes = settle_cells(rows, heads, spelling) if spelling else (rows, heads, [])
    cells, blank = image_cells(rows, image), pl.lit(None, dtype=pl.String)
    facts = {
        "split": _splits(rows, resolved.split) if resolved.split else blank,
        "group": rows.frame[resolved.group] if resolved.group else blank,
        "weight": numbers(rows, resolved.weight) if resolved.weight else blank.cast(pl.Float64),
    }
    labels: dict[str, pl.Series] = {}
    for name, head in heads.items():
        labels |= read_cells(rows, name, head, spelling)
    titles = {"split": "the split", "group": "the group", "weight": "the weight"}
    titles |= {column: f"the label {series.name!r}" for column, series in labels.items()}
    frame = rows.frame.select(image).with_columns(**facts).select(list(facts))
    frame = frame.hstack([series.alias(column) for column, series in labels.items()])
    rows = Rows(rows.source, frame, rows.lines, rows.unit)
    rows, left_out = locate_images(rows, cells, root or table.parent)
    rows = merge_same(rows, key="id", titles=titles)
    if not columns or not columns.heads:
        _refuse_identities(rows, list(heads))
    frame = rows.frame.select("id", pl.col("id").alias("path"), "split", "group", pl.col("weight").fill_null(1.0))
    frame = frame.hstack([series for name, head in heads.items() for series in labels_of(rows.frame, name, head)])
    return RawLabels(
        source=table,
        root=root or table.parent,
        table=frame,
        heads=tuple((name, "multiclass" if head.multiclass else "multilabel") for name, head in heads.items()),
        classes={name: head.names or distinct_names(frame[f"label:{name}"]) for name, head in heads.items()},
        declared=frozenset(name for name, head in heads.items() if head.names),
        left_out=left_out,
        notes=tuple(notes),
    )


def name_column(rows: Rows, given: str | None) -> str:
    """Return the image column: the one given, or the first that has a usual name. Raises DataError."""
    if given is not None:
        return rows.column(given)
    by_name = {column.casefold(): column for column in reversed(rows.frame.columns)}
    for name in IMAGE_NAMES:
        if name in by_name:
            return by_name[name]
    raise DataError(
        f"{printable(rows.source)}: which column names the images? {rows.listed()} "
        f"Name it with `image`, or call it {IMAGE_NAMES[0]!r}."
    )


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


def _resolve_columns(rows: Rows, given: Columns) -> Columns:
    """Return the column of every meaning: given ones are checked, others taken by name. Raises DataError."""
    image = name_column(rows, given.image)
    sources = {
        rows.column(column): f"the head {name!r}" for name, head in given.heads.items() for column in head.sources
    }
    taken = {image: "image", **sources}
    by_name = {column.casefold(): column for column in reversed(rows.frame.columns)}
    facts: dict[str, str | None] = {}
    for fact, wanted in (("split", given.split), ("group", given.group), ("weight", given.weight)):
        column = rows.column(wanted) if wanted is not None else by_name.get(fact)
        if wanted is not None and column in taken:
            raise DataError(
                f"{printable(rows.source)}: column {column!r} is {taken[column]} and {fact} at once. Pick one."
            )
        facts[fact] = None if column in taken else column
        if column is not None:
            taken.setdefault(column, fact)
    if image in sources:
        raise DataError(f"{printable(rows.source)}: column {image!r} names the images and a head. Name another.")
    free = [column for column in rows.frame.columns if column not in taken]
    require_head_limit(rows.source, list(given.heads) or free)
    heads = given.heads or {column: HeadColumns(column=column) for column in free}
    if not heads:
        raise DataError(f"{printable(rows.source)}: has no label column beside {quoted(taken)}. Add one.")
    return Columns(image, heads, facts["split"], facts["group"], facts["weight"])


def locate(rows: Rows, cells: Sequence[str], root: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the path of each image below `root`, and why it cannot be read, or None.

    Raises DataError that names the row of a path outside of `root`.
    """
    safe = SafeRoot(root)
    for row, cell in enumerate(cells):
        try:
            yield safe.locate(cell)
        except DataError as error:
            raise DataError(f"{rows.at(row)}: {error}") from error


def locate_images(rows: Rows, cells: Sequence[str], root: Path) -> tuple[Rows, tuple[LeftOut, ...]]:
    """Return the rows whose image exists, with its path below `root` as `id`, and the missing images."""
    if not root.is_dir():
        raise DataError(f"{printable(root)}: is no folder. `root` is the folder that holds the images of the table.")
    ids, reasons = [], []
    for path, reason in locate(rows, cells, root):
        valid = is_unicode(path)
        ids.append(path if valid else printable(path))
        reasons.append(reason if valid else "its name is not valid UTF-8: rename it")
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    if not kept:
        why = f"such as {cells[0]!r} ({reasons[0]})" if cells else "for it has no rows"
        raise DataError(
            f"{printable(rows.source)}: none of its {len(cells)} images can be found below {printable(root)}, "
            f"{why}. Set `root` to the folder that the paths start from."
        )
    frame = rows.frame.with_columns(pl.Series("id", ids, dtype=pl.String))[kept]
    lines = [rows.lines[row] for row in kept]
    missing = {ids[row]: reason for row, reason in enumerate(reasons) if reason is not None}
    left_out = tuple(LeftOut(path, why) for path, why in missing.items())
    return Rows(rows.source, frame, lines, rows.unit), left_out


def _splits(rows: Rows, column: str) -> pl.Series:
    cells = rows.frame[column]
    tidy = cells.str.strip_chars().str.to_lowercase()
    splits = tidy.replace_strict(SPLITS, default=None, return_dtype=pl.String)
    wrong = cells.is_not_null() & splits.is_null()
    if wrong.any():
        row = wrong.arg_max() or 0
        raise DataError(
            f"{rows.at(row)}: {cells[row]!r} in column {column!r} is no split. A split is one of "
            f"{', '.join(SPLITS)}, or blank; another column is named with `split: {{column: NAME}}`."
        )
    return splits


def _refuse_identities(rows: Rows, heads: Sequence[str]) -> None:
    """Raise DataError for a column whose every cell differs: a title or a number, and no label."""
    for head in heads:
        known = rows.frame[f"label:{head}"].drop_nulls()
        if len(known) >= 20 and known.n_unique() == len(known):
            others = [other for other in heads if other != head]
            raise DataError(
                f"{printable(rows.source)}: every cell of column {head!r} differs: no classes to learn. "
                f"Name the label columns with `heads`{f', such as {quoted(others)}' if others else ''}."
            )
