"""A sample of what is to be handed in: its columns, order and ids are copied, and must match."""

from __future__ import annotations

import csv
import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.errors import DataError
from assay.export.columns import Cells, Column, Joining, answers, ids_of, of_class
from assay.labels.readers.table_files import DELIMITERS, Rows, read_rows
from assay.labels.space import Head, LabelSpace
from assay.messages import printable

LOOKED_AT = 200  # rows that tell which column holds the ids
SEPARATORS = (", ", "; ", " | ", " ", ",", ";", "|", "/", "+")


@dataclass(frozen=True)
class Sample:
    """A sample submission: its cells as text, and what parts them."""

    rows: Rows
    delimiter: str

    def arranged(self, images: Sequence[tuple[str, Path]]) -> tuple[str, list[tuple[str, Path]]]:
        """The column of ids, and the images in its order, each under its id.

        An id is an image's path as given, or any end of its path, with or without the file's ending.

        Raises DataError for an id that is no image, several, or there twice, and for images left over.
        """
        found, frame = _Images(images), self.rows.frame
        looked = {name: frame[name].head(LOOKED_AT).drop_nulls().to_list() for name in frame.columns}
        column = max(looked, key=lambda name: found.count(looked[name]))
        lines: dict[int, int] = {}
        for line, cell in enumerate(frame[column].to_list()):
            place = self._one(found, line, column, cell)
            if place in lines:
                raise DataError(
                    f"{self.rows.at(line)}: {cell!r} is the image of {self.rows.unit} "
                    f"{self.rows.lines[lines[place]]} already. Remove one of the two rows."
                )
            lines[place] = line
        left = [name for place, name in enumerate(found.names) if place not in lines]
        if left:
            raise DataError(
                f"{printable(self.rows.source)}: has no row for {len(left)} of the {len(found.names)} images "
                f"({_some(left)}). Give only the images that it asks for, or the sample of these."
            )
        cells = frame[column].to_list()
        return column, [(cells[line], found.paths[place]) for place, line in lines.items()]

    def _one(self, found: _Images, line: int, column: str, cell: str | None) -> int:
        if cell is None:
            raise DataError(f"{self.rows.at(line)}: column {column!r} is blank, and names no image. Fill it in.")
        places = found.called(cell)
        if not places:
            raise DataError(
                f"{self.rows.at(line)}: {cell!r} (column {column!r}) is none of the {len(found.names)} images "
                f"({_some(found.names)}). Give the images that this sample asks for."
            )
        if len(places) > 1:
            both = " and ".join(repr(found.names[place]) for place in places[:2])
            raise DataError(f"{self.rows.at(line)}: {cell!r} may be {both}. Write more of the path, or rename one.")
        return places[0]

    def columns(self, space: LabelSpace, *, ids: str, tags: str | None, joining: Joining) -> list[Column]:
        """The sample's columns, filled by the model.

        A class's column (called `CLASS`, `HEAD:CLASS` or `HEAD_CLASS`) gets probabilities; under an
        multi-label head 0 and 1 where the sample has nothing else; `tags` ("joined", "one-hot") overrules
        both. Columns called as in the full form get the label and its confidence, and so does, as the
        label, a single column that is called otherwise, where there is one head.

        Raises DataError for a column that is nothing the model answers.
        """
        classes = _spelt(space)
        asked = [name for name in self.rows.frame.columns if name != ids]
        if not asked:
            raise DataError(f"{self._header()}: only {ids!r} is there, and no column for what the model answers.")
        named = [column.name for column in answers(space, top=None, joining=Joining())]
        others = [name for name in asked if name in named or name not in classes]
        unknown = [name for name in others if name not in named]
        if unknown and (len(space) > 1 or len(asked) > 1):
            raise DataError(self._unknown(unknown[0], [*named, *classes]))
        filled: dict[str, Cells] = {ids: ids_of}
        for name in asked:
            if name not in others:
                head, place = classes[name]
                one_hot = self._is_binary(head, classes, ids, tags)
                filled[name] = of_class(space, head, place, one_hot=one_hot)
        if others:
            joining = self._joining(space, others, joining)
            said = {column.name: column.cells for column in answers(space, top=None, joining=joining)}
            filled |= {name: said[name if name in named else named[0]] for name in others}
        return [Column(name, filled[name]) for name in self.rows.frame.columns]

    def _is_binary(self, head: Head, classes: dict[str, tuple[Head, int]], ids: str, tags: str | None) -> bool:
        """Whether the columns of a head's classes get 0 and 1 instead of probabilities."""
        if tags is not None or head.kind == "multiclass":
            return tags == "one-hot"
        frame = self.rows.frame
        own = [name for name in frame.columns if name in classes and classes[name][0] == head and name != ids]
        return all(set(frame[name].unique()) <= {"0", "1"} for name in own)

    def _joining(self, space: LabelSpace, columns: Sequence[str], given: Joining) -> Joining:
        """Tags joined as in these columns, by a blank where none are joined there; no tag is a blank cell."""
        cells = [cell for name in columns for cell in self.rows.frame[name].drop_nulls().unique().to_list()]
        seen = next((mark for mark in SEPARATORS for head in space if _joins(mark, head, cells)), " ")
        return Joining(given.separator or seen, given.none or "")

    def _unknown(self, name: str, known: Sequence[str]) -> str:
        near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(map(repr, known[:12])) + (" ..." if len(known) > 12 else "")
        return f"{self._header()}: column {name!r} is nothing that the model answers, which is {listed}.{hint}"

    def _header(self) -> str:
        return f"{printable(self.rows.source)}, line 1"


def read_sample(path: Path) -> Sample:
    """Read a sample submission (.csv or .tsv). Raises DataError for one that cannot be copied."""
    if path.suffix.lower() not in DELIMITERS:
        raise DataError(f"{printable(path)}: a sample ends in {', '.join(DELIMITERS)}. Save it as CSV.")
    delimiter = _delimiter(path)
    rows = read_rows(path, delimiter=delimiter)
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter=delimiter), [])
    if not all(cell.strip() for cell in header):
        raise DataError(f"{printable(path)}, line 1: a column has no name. Name it, or remove it.")
    if not rows.frame.height:
        raise DataError(f"{printable(path)}: has no rows. A sample names every image to be labelled.")
    return Sample(rows, delimiter)


def _delimiter(path: Path) -> str:
    usual = DELIMITERS[path.suffix.lower()]
    if not path.is_file():
        return usual  # reading it says what is wrong
    with open(path, encoding="utf-8", errors="replace") as file:
        header = file.readline()
    return usual if usual in header else next((mark for mark in ";\t|" if mark in header), usual)


class _Images:
    """Finds images by the ends of their paths."""

    def __init__(self, images: Iterable[tuple[str, Path]]) -> None:
        once: dict[Path, str] = {}
        for name, path in images:  # a table may name one twice
            once.setdefault(path, name)
        self.names, self.paths = list(once.values()), list(once)
        self._given = {name: place for place, name in enumerate(self.names)}
        self._whole = [path.as_posix() for path in self.paths]
        self._bare = [path.with_suffix("").as_posix() for path in self.paths]
        self._by_end: dict[str, list[int]] = defaultdict(list)
        for place, path in enumerate(self.paths):
            for end in {path.name, path.stem}:
                self._by_end[end].append(place)

    def called(self, cell: str) -> list[int]:
        """The places of all images that a cell may mean: one, if all is well."""
        if cell in self._given:
            return [self._given[cell]]
        end = "/" + cell.removeprefix("./").lstrip("/")
        near = self._by_end.get(end.rpartition("/")[2], ())
        whole = [place for place in near if self._whole[place].endswith(end)]
        return whole or [place for place in near if self._bare[place].endswith(end)]

    def count(self, cells: Iterable[str]) -> int:
        """How many images these cells name beyond doubt."""
        return len({places[0] for cell in cells if len(places := self.called(cell)) == 1})


def _spelt(space: LabelSpace) -> dict[str, tuple[Head, int]]:
    """All that a class may be called in a header; the bare name only where no other head has it too."""
    classes = [(head, place, name) for head in space for place, name in enumerate(head.classes)]
    often = Counter(name for _, _, name in classes)
    spelt = {name: (head, place) for head, place, name in classes if often[name] == 1}
    for mark in ":_":
        for head, place, name in classes:
            spelt.setdefault(f"{head.name}{mark}{name}", (head, place))
    return spelt


def _joins(mark: str, head: Head, cells: Iterable[str]) -> bool:
    """Whether a mark stands between classes of a head in one of the cells."""
    if head.kind == "multiclass":
        return False
    return any(mark in cell and cell not in head.index and set(cell.split(mark)) <= head.index.keys() for cell in cells)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (" ..." if len(names) > 3 else "")
