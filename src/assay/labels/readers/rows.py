"""Reader of a list of images beside a file of integers, row for row, with class names in a third file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.build import RawLabels, distinct_names, require_head_limit
from assay.labels.readers.table import image_cells, locate_images
from assay.labels.readers.table_files import LISTED, Rows, merge_same, read_lines, read_names
from assay.messages import printable

UNKNOWN = -1
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
NUMBER = re.compile(r"[+-]?[0-9.]+")


@dataclass(frozen=True)
class Integers:
    """A file of integers as text: a column a head, "" for a blank cell."""

    source: Path
    columns: Mapping[str, Sequence[str]]
    first: int  # the line of the first row

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def at(self, row: int) -> str:
        return f"{printable(self.source)}, line {self.first + row}"


def find_in_rows(names: Path, labels: Path, *, class_names: Path | None = None, root: Path | None = None) -> RawLabels:
    """Return the images that `names` lists, below `root` (default: its folder), with the labels of the same rows.

    A head is a column of `labels`, -1 or blank is unknown. With `class_names` an integer is the place of a class
    in its type, else its own name. Raises DataError for files of different length, a label out of range.
    """
    root = root or names.parent
    listed, numbers = read_names(names, root), _read_integers(labels)
    if len(listed.lines) != len(numbers):
        raise DataError(
            f"{printable(names)} names {len(listed.lines)} images, and {printable(labels)} labels {len(numbers)}: they "
            "go together row for row. Make them equally long."
        )
    classes = _read_classes(class_names, list(numbers.columns)) if class_names else {}
    labels_by_head = {f"label:{head}": _labels(numbers, head, classes.get(head)) for head in numbers.columns}
    rows = Rows(
        names, pl.DataFrame(labels_by_head, schema=dict.fromkeys(labels_by_head, pl.String)), listed.lines, "line"
    )
    rows, left_out = locate_images(rows, image_cells(listed, LISTED), root)
    rows = merge_same(rows, key="id", titles={f"label:{head}": f"the label {head!r}" for head in numbers.columns})
    nothing = pl.lit(None, dtype=pl.String)
    return RawLabels(
        source=names,
        root=root,
        table=rows.frame.with_columns(path="id", split=nothing, group=nothing, weight=1.0),
        heads=tuple((head, "multiclass") for head in numbers.columns),
        classes={head: distinct_names(rows.frame[f"label:{head}"]) for head in numbers.columns} | classes,
        declared=frozenset(classes),
        left_out=left_out,
    )


def _read_integers(path: Path) -> Integers:
    lines = [_cells(line) for line in read_lines(path)]
    if not lines or not lines[0]:
        raise DataError(f"{printable(path)}: begins with nothing. It must hold a line of integers for each image.")
    has_header = any(lines[0]) and not any(NUMBER.fullmatch(cell) for cell in lines[0])
    header = lines[0] if has_header else [f"label{i}" for i in range(1, len(lines[0]) + 1)]
    require_head_limit(path, header)
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{printable(path)}, line 1: the head {twice!r} occurs twice. Rename one.")
    rows = lines[has_header:]
    for at, cells in enumerate(rows, 1 + has_header):
        if len(cells) != len(header):
            raise DataError(
                f"{printable(path)}, line {at}: {len(cells)} integers, and line 1 has {len(header)}. Mend the line; "
                f"{UNKNOWN} is a label that is not known."
            )
    return Integers(path, {name: [row[i] for row in rows] for i, name in enumerate(header)}, 1 + has_header)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(",")] if "," in line else line.split()


def _labels(numbers: Integers, head: str, classes: Sequence[str] | None) -> list[str | None]:
    """Return the class names of a column. Raises DataError for an integer out of range."""
    cells = numbers.columns[head]
    names: dict[str, str | None] = {}
    for cell in dict.fromkeys(cells):
        value = int(cell) if INTEGER.fullmatch(cell) else UNKNOWN
        if (cell and not INTEGER.fullmatch(cell)) or value < UNKNOWN or (classes and value >= len(classes)):
            span = f"0 to {len(classes) - 1}" if classes else "0 or more"
            raise DataError(
                f"{numbers.at(cells.index(cell))}: {cell!r} under {head!r} is no label. A label of {head!r} is "
                f"{span}, or {UNKNOWN} where it is not known."
            )
        names[cell] = None if value == UNKNOWN else classes[value] if classes else str(value)
    return [names[cell] for cell in cells]


def _read_classes(path: Path, heads: Sequence[str]) -> dict[str, list[str]]:
    """Return the classes of each head in order, from lines `name type`; type t (from 1) is the t-th head.

    The form of DeepFashion (Liu et al. 2016): the first line counts the classes, the second is a header; both
    may be missing.
    """
    lines = [(number, line.rsplit(None, 1)) for number, line in enumerate(read_lines(path), 1) if line]
    counted = lines.pop(0)[1][0] if lines and len(lines[0][1]) == 1 else None
    if lines and not INTEGER.fullmatch(lines[0][1][-1]):
        lines.pop(0)
    classes: dict[str, dict[str, None]] = {head: {} for head in heads}  # in order, and quick to look up
    for number, cells in lines:
        at = f"{printable(path)}, line {number}"
        if len(cells) != 2 or not INTEGER.fullmatch(cells[1]):
            raise DataError(f"{at}: {' '.join(cells)!r} is no `name type`. Write a class and the number of its head.")
        name, kind = cells[0], int(cells[1])
        if not 1 <= kind <= len(heads):
            raise DataError(f"{at}: {name!r} is of type {kind}, and there are {len(heads)} heads: 1 to {len(heads)}.")
        if name in classes[heads[kind - 1]]:
            raise DataError(f"{at}: {name!r} is named twice in type {kind}. Remove one.")
        classes[heads[kind - 1]][name] = None
    if counted is not None and counted != str(len(lines)):
        raise DataError(
            f"{printable(path)}, line 1: counts {counted} classes, and {len(lines)} follow. Mend one of them."
        )
    empty = next((head for head, names in classes.items() if not names), None)
    if empty is not None:
        raise DataError(
            f"{printable(path)}: has no class of type {heads.index(empty) + 1}, the head {empty!r}. Add some."
        )
    return {head: list(names) for head, names in classes.items()}
