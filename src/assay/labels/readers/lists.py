"""Readers of lists of images: one a class, labels in file names, and a list beside integers, row for row."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.build import RawLabels, distinct_names, drop_invalid_names, label_table, require_head_limit
from assay.labels.image_files import natural_key, path_key, walk
from assay.labels.left_out import LeftOut
from assay.labels.readers.image_names import locate
from assay.labels.readers.table import image_cells, locate_images
from assay.labels.readers.table_files import LISTED, Rows, merge_same, read_names
from assay.labels.readers.text_files import read_lines
from assay.messages import printable, quoted

LISTS_HEAD = "tags"


def find_in_lists(
    folder: Path, *, images: str | None = None, root: Path | None = None, head: str = LISTS_HEAD
) -> RawLabels:
    """Return the images below `root` (default: the folder that holds `folder`), tagged by the lists that name them.

    A line is put into the pattern `images` as its `{id}`, or is a path below `root`. An image in no list has no
    tag, and that is known. Raises DataError for a line that names no image.
    """
    root = root or folder.parent
    lists = _lists(folder)
    named = _images(root, folder, images)
    paths, left_out = drop_invalid_names(named.values())
    tags: dict[str, list[str]] = {path: [] for path in paths}
    strange, notes = [], list[str]()
    for tag, path in lists.items():
        lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line]
        matched = named
        if images is None and any(line not in named for _, line in lines):
            others, of_names = _matched(path, lines, root)
            matched = {line: image for line, image in others.items() if image in tags} | named
            notes += of_names
        strange += [(path, number, line) for number, line in lines if line not in matched]
        for image in {matched[line]: None for _, line in lines if line in matched}:
            tags[image].append(tag)
    if strange:
        path, number, line = strange[0]
        wanted = images.replace("{id}", line) if images else line
        more = f" ({len(strange) - 1} more lines name none)" if len(strange) > 1 else ""
        raise DataError(
            f"{printable(path)}, line {number}: {line!r} is no image: there is no {wanted!r} below "
            f"{printable(root)}{more}. Remove the line, bring the image, or mend `images` or `root`."
        )
    return RawLabels(
        source=folder,
        root=root,
        table=label_table(paths, {head: pl.Series(list(tags.values()), dtype=pl.List(pl.String))}),
        heads=((head, "multilabel"),),
        classes={head: list(lists)},
        declared=frozenset([head]),
        left_out=left_out,
        notes=tuple(notes),
    )


def _matched(path: Path, lines: Sequence[tuple[int, str]], root: Path) -> tuple[dict[str, str], list[str]]:
    """Return the images of lines that are no paths as they stand, and notes."""
    names = [line for _, line in lines]
    located, notes = locate(Rows(path, pl.DataFrame(), [number for number, _ in lines], "line"), names, root)
    return {line: image for line, (image, reason) in zip(names, located, strict=True) if reason is None}, notes


def _lists(folder: Path) -> dict[str, Path]:
    """Return the list file of each class, in natural order."""
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: is no folder. `lists` is a folder of .txt files, one a class.")
    files = [name for name in os.listdir(folder) if name.lower().endswith(".txt") and not name.startswith(".")]
    if not files:
        raise DataError(f"{printable(folder)}: holds no .txt file. There must be one for each class.")
    return {printable(name[: -len(".txt")]): folder / name for name in sorted(files, key=natural_key)}


def _images(root: Path, folder: Path, images: str | None) -> dict[str, str]:
    """Return paths by the line that names them: images like the pattern, or all outside the folder of lists."""
    tree = walk(root)
    if images is None:
        lists = f"{os.path.relpath(folder, root)}/"
        paths = {path: path for path in tree.images if not path.startswith(lists)}
    else:  # a file named like the pattern counts, whatever its ending
        like = NamePattern.of(images)
        matches = [(like.match(path), path) for path in sorted((*tree.images, *tree.others), key=path_key)]
        paths = {match["id"]: path for match, path in matches if match}
    if not paths:
        wanted = f"like {images!r}" if images else f"outside {printable(folder)}"
        raise DataError(f"{printable(root)}: no image {wanted} in this folder. Mend `images` or `root`.")
    return paths


# Labels in file names: a pattern such as `{class}_{n}.jpg`.

HEADS = {"class": "label"}
"""Placeholders whose head has another name: `{class}` is the head of the folder form too."""

NO_HEADS = ("n", "id", "_")
"""Placeholders that label nothing; `{n}` is a number."""


@dataclass(frozen=True)
class NamePattern:
    """A pattern of paths. A placeholder stands for the shortest text that fits, without "/"; twice for the same."""

    text: str
    placeholders: tuple[str, ...]
    regex: re.Pattern[str]

    @staticmethod
    def of(text: str) -> NamePattern:
        """Parse a pattern. Raises ValueError for braces that hold no name."""
        literals, names = re.split(r"\{[^{}]*\}", text), re.findall(r"\{([^{}]*)\}", text)
        if any(brace in literal for literal in literals for brace in "{}") or not all(names):
            raise ValueError(f"{text!r}: a placeholder is a name in braces, such as {{class}} or {{n}}")
        groups: dict[str, int] = {}
        regex = re.escape(literals[0])
        for name, literal in zip(names, literals[1:], strict=True):
            if name in groups:
                regex += f"(?P=at{groups[name]})"
            else:
                some = "[0-9]+" if name == "n" else "[^/]+?"
                regex += some if name == "_" else f"(?P<at{groups.setdefault(name, len(groups))}>{some})"
            regex += re.escape(literal)
        return NamePattern(text, tuple(groups), re.compile(regex, re.DOTALL))

    @property
    def heads(self) -> dict[str, str]:
        """The placeholder of each head. Raises ValueError where two placeholders are one head."""
        wanted = [name for name in self.placeholders if name not in NO_HEADS]
        heads = {HEADS.get(name, name): name for name in wanted}
        if len(heads) < len(wanted):
            raise ValueError(f"{self.text!r}: {{class}} is the head `label`, and {{label}} stands beside it")
        return heads

    def match(self, path: str) -> dict[str, str] | None:
        """Return the text of each placeholder, or None where the path does not match."""
        match = self.regex.fullmatch(path)
        return None if match is None else {name: match[f"at{i}"] for i, name in enumerate(self.placeholders)}


def find_by_name(root: Path, pattern: str) -> RawLabels:
    """Return the images below `root` whose path (where the pattern has a "/") or name is like the pattern.

    Raises DataError where there are none.
    """
    like = NamePattern.of(pattern)
    tree = walk(root)
    # A file named like the pattern counts, whatever its ending; of the others only images are reported.
    everything = sorted((*tree.images, *tree.others), key=path_key)
    matches = {path: like.match(path if "/" in pattern else path.rpartition("/")[2]) for path in everything}
    paths, left_out = drop_invalid_names([path for path, match in matches.items() if match])
    if not paths:
        held = f"none of the {len(tree.images)} there is, such as" if tree.images else "there is none at all"
        such = f" {printable(tree.images[0])!r}" if tree.images else ""
        raise DataError(f"{printable(root)}: no image is named like {pattern!r}; {held}{such}. Mend `names` or `root`.")
    unlike = [LeftOut(printable(path), f"its name is not like {pattern}") for path in tree.images if not matches[path]]
    labels = {head: [(matches[path] or {})[name] for path in paths] for head, name in like.heads.items()}
    return RawLabels(
        source=root,
        root=root,
        table=label_table(paths, {head: pl.Series(names, dtype=pl.String) for head, names in labels.items()}),
        heads=tuple((head, "multiclass") for head in labels),
        classes={head: sorted(set(names)) for head, names in labels.items()},
        left_out=(*left_out, *unlike),
    )


# Lists of images beside files of integers, row for row, with class names in another file.


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
