"""Reader of lists of images beside files of integers, row for row, with class names in another file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.build import RawLabels, distinct_names, require_head_limit
from assay.labels.left_out import LeftOut
from assay.labels.readers.table import image_cells, locate_images
from assay.labels.readers.table_files import LISTED, Rows, merge_same, read_names
from assay.labels.readers.text_files import read_lines
from assay.messages import printable, quoted

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


@dataclass(frozen=True)
class LabelledList:
    """A list of images, and the file of integers that goes with it row for row."""

    names: Path
    labels: Path
    split: str | None = None  # of all its images; None: drawn


def find_in_rows(
    lists: Sequence[LabelledList], *, class_names: Path | None = None, root: Path | None = None
) -> RawLabels:
    """Return the images of all lists, below `root` (default: the first list's folder), with the labels of their rows.

    A head is a column of integers, the same ones in every list; -1 or blank is unknown. With `class_names` an integer
    is the index of a class in its type, else its own name. Raises DataError for files of different length, a label out
    of range, an image in two lists.
    """
    root = root or lists[0].names.parent
    numbers = [_read_integers(part.labels) for part in lists]
    heads = list(numbers[0].columns)
    for other in numbers[1:]:
        if list(other.columns) != heads:
            raise DataError(
                f"{printable(other.source)}: its heads are {quoted(other.columns)}, and those of "
                f"{printable(numbers[0].source)} are {quoted(heads)}. Make the columns the same."
            )
    classes = _read_classes(class_names, heads) if class_names else {}
    read = [_read_list(part, of_part, classes, root) for part, of_part in zip(lists, numbers, strict=True)]
    _require_disjoint([rows for rows, _ in read])
    nothing = pl.lit(None, dtype=pl.String)
    table = pl.concat([rows.frame for rows, _ in read])
    return RawLabels(
        source=lists[0].names,
        root=root,
        table=table.with_columns(path="id", group=nothing, weight=1.0),
        heads=tuple((head, "multiclass") for head in heads),
        classes={head: distinct_names(table[f"label:{head}"]) for head in heads} | classes,
        declared=frozenset(classes),
        left_out=tuple(missing for _, left_out in read for missing in left_out),
        notes=tuple(note for rows, _ in read for note in rows.notes),
    )


def _read_list(
    part: LabelledList, numbers: Integers, classes: Mapping[str, Sequence[str]], root: Path
) -> tuple[Rows, tuple[LeftOut, ...]]:
    """Return a row an image of one list (id, labels, split), and the images that are missing."""
    listed = read_names(part.names, root)
    if len(listed.lines) != len(numbers):
        raise DataError(
            f"{printable(part.names)} names {len(listed.lines)} images, and {printable(part.labels)} labels "
            f"{len(numbers)}: they go together row for row. Make them equally long."
        )
    labels = {f"label:{head}": _labels(numbers, head, classes.get(head)) for head in numbers.columns}
    frame = pl.DataFrame(labels, schema=dict.fromkeys(labels, pl.String))
    rows, left_out = locate_images(Rows(part.names, frame, listed.lines, "line"), image_cells(listed, LISTED), root)
    rows = merge_same(rows, key="id", titles={f"label:{head}": f"the label {head!r}" for head in numbers.columns})
    return replace(rows, frame=rows.frame.with_columns(split=pl.lit(part.split, dtype=pl.String))), left_out


def _require_disjoint(lists: Sequence[Rows]) -> None:
    """Raise DataError for an image in two lists, which would be trained on and held back."""
    images = [set(rows.frame["id"]) for rows in lists]
    for first, second in combinations(range(len(lists)), 2):
        if twice := images[first] & images[second]:
            row, before = (lists[i].frame["id"].to_list().index(min(twice)) for i in (second, first))
            raise DataError(
                f"{lists[second].at(row)}: {printable(min(twice))!r} is in {printable(lists[first].source)} too, "
                f"{lists[first].unit} {lists[first].lines[before]}. An image is either trained on or held back: remove "
                "it from one of the lists."
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
