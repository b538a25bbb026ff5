"""Sample submissions: their columns, order and ids are copied, and must match."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from assay.errors import DataError
from assay.export.columns import Cells, Column, TagFormat, ids_of, label_columns, of_class
from assay.labels.readers.image_names import LEVELS, Level
from assay.labels.readers.table_files import DELIMITERS, Rows, read_rows
from assay.labels.readers.text_files import read_table_text
from assay.labels.shards import ImageFile
from assay.labels.space import Head, LabelSpace
from assay.messages import printable

ID_ROWS = 200  # by which the column of ids is recognised
SEPARATORS = (", ", "; ", " | ", " ", ",", ";", "|", "/", "+")


@dataclass(frozen=True)
class Sample:
    """A sample submission: its cells as text, and its delimiter."""

    rows: Rows
    delimiter: str

    def arranged(self, images: Sequence[tuple[str, ImageFile]]) -> tuple[str, list[tuple[str, ImageFile]], list[str]]:
        """Return the column of ids, the images in its order, each under its id, and notes on ids in another spelling.

        An id is an image's path as given, or any end of its path, with or without the file's ending; else its name in
        another case or Unicode form, or the same number.

        Raises DataError for an id that is no image, several, or there twice, and for images left over.
        """
        index, frame = _ImageIndex(images), self.rows.frame
        heads = {name: frame[name].head(ID_ROWS).drop_nulls().to_list() for name in frame.columns}
        column = max(heads, key=lambda name: index.count(heads[name]))
        cells = frame[column].to_list()
        lines: dict[int, int] = {}
        for line, cell in enumerate(cells):
            image = self._one(index, line, column, cells)
            if image in lines:
                raise DataError(
                    f"{self.rows.at(line)}: {cell!r} is the image of {self.rows.unit} "
                    f"{self.rows.lines[lines[image]]} already. Remove one of the two rows."
                )
            lines[image] = line
        left = [name for image, name in enumerate(index.names) if image not in lines]
        if left:
            raise DataError(
                f"{printable(self.rows.source)}: has no row for {len(left)} of the {len(index.names)} images "
                f"({_some(left)}). Give only the images that it asks for, or the sample of these."
            )
        return column, [(cells[line], index.paths[image]) for image, line in lines.items()], index.notes()

    def _one(self, index: _ImageIndex, line: int, column: str, cells: Sequence[str | None]) -> int:
        cell = cells[line]
        if cell is None:
            raise DataError(f"{self.rows.at(line)}: column {column!r} is blank, and names no image. Fill it in.")
        images = index.find(cell)
        if not images:
            raise DataError(self._other_ids(index, line, column, cells))
        if len(images) > 1:
            both = " and ".join(repr(index.names[image]) for image in images[:2])
            raise DataError(f"{self.rows.at(line)}: {cell!r} may be {both}. Write more of the path, or rename one.")
        return images[0]

    def _other_ids(self, index: _ImageIndex, line: int, column: str, cells: Sequence[str | None]) -> str:
        """Return the message about ids that are none of the images: the first, how many more, and the nearest image."""
        named, cell = f"the {len(index.names)} images ({_some(index.names)})", cells[line] or ""
        strange = sum(other is not None and not index.find(other) for other in cells)
        if strange == len(cells):
            return (
                f"{printable(self.rows.source)}: none of its columns has the names of {named}; {column!r} has "
                f"{cell!r}. It is the sample of other images: give those, or call these files like its ids."
            )
        near = difflib.get_close_matches(cell, index.names, 1, cutoff=0.8)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        more = f", nor are {strange - 1} more of its {len(cells)} ids" if strange > 1 else ""
        return (
            f"{self.rows.at(line)}: {cell!r} (column {column!r}) is none of {named}{more}.{hint} Give the images that "
            "this sample asks for, or the sample of these."
        )

    def columns(self, space: LabelSpace, *, ids: str, tags: str | None, given: TagFormat) -> list[Column]:
        """Return the sample's columns, filled by the model.

        A class's column (called `CLASS`, `HEAD:CLASS` or `HEAD_CLASS`) gets probabilities; under a
        multi-label head 0 and 1 where the sample has nothing else; `tags` ("joined", "one-hot") overrules
        both. Columns called as in the full form get the label and its confidence, and so does, as the
        label, a single column that is called otherwise, where there is one head.

        Raises DataError for a column that is nothing the model answers.
        """
        classes = _class_names(space)
        asked = [name for name in self.rows.frame.columns if name != ids]
        if not asked:
            raise DataError(f"{self._header()}: only {ids!r} is there, and no column for what the model answers.")
        named = [column.name for column in label_columns(space, top=None, tags=TagFormat())]
        others = [name for name in asked if name in named or name not in classes]
        unknown = [name for name in others if name not in named]
        if unknown and (len(space) > 1 or len(asked) > 1):
            raise DataError(self._unknown(unknown[0], [*named, *classes]))
        filled: dict[str, Cells] = {ids: ids_of}
        for name in asked:
            if name not in others:
                head, number = classes[name]
                one_hot = self._is_binary(head, classes, ids, tags)
                filled[name] = of_class(space, head, number, one_hot=one_hot)
        if others:
            marks = self._tag_format(space, others, given)
            labels = {column.name: column.cells for column in label_columns(space, top=None, tags=marks)}
            filled |= {name: labels[name if name in named else named[0]] for name in others}
        return [Column(name, filled[name]) for name in self.rows.frame.columns]

    def _is_binary(self, head: Head, classes: dict[str, tuple[Head, int]], ids: str, tags: str | None) -> bool:
        """Return whether the columns of a head's classes get 0 and 1 instead of probabilities."""
        if tags is not None or head.multiclass:
            return tags == "one-hot"
        frame = self.rows.frame
        names = [name for name in frame.columns if name in classes and classes[name][0] == head and name != ids]
        return all(set(frame[name].unique()) <= {"0", "1"} for name in names)

    def _tag_format(self, space: LabelSpace, columns: Sequence[str], given: TagFormat) -> TagFormat:
        """Return how tags are joined in these columns, by a blank where none are; no tag is a blank cell."""
        cells = [cell for name in columns for cell in self.rows.frame[name].drop_nulls().unique().to_list()]
        separator = next((mark for mark in SEPARATORS for head in space if _joins(mark, head, cells)), " ")
        return TagFormat(given.separator or separator, given.none or "")

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
    table = read_table_text(path, usual=DELIMITERS[path.suffix.lower()])
    rows = read_rows(path, delimiter=table.delimiter)
    if not all(cell.strip() for cell in table.records[0][1]):
        raise DataError(f"{printable(path)}, line 1: a column has no name. Name it, or remove it.")
    if not rows.frame.height:
        raise DataError(f"{printable(path)}: has no rows. A sample names every image to be labelled.")
    return Sample(rows, table.delimiter)


class _ImageIndex:
    """Finds images by the ends of their paths."""

    def __init__(self, images: Iterable[tuple[str, ImageFile]]) -> None:
        once: dict[ImageFile, str] = {}
        for name, path in images:  # a table may name one twice
            once.setdefault(path, name)
        self.names, self.paths = list(once.values()), list(once)
        self._by_name = {name: image for image, name in enumerate(self.names)}
        pure = [PurePosixPath(str(path)) for path in self.paths]
        self._paths = [path.as_posix() for path in pure]
        self._without_ending = [path.with_suffix("").as_posix() for path in pure]
        self._by_end: dict[str, list[int]] = defaultdict(list)
        for image, path in enumerate(self.paths):
            for end in {path.name, PurePosixPath(path.name).stem}:
                self._by_end[end].append(image)
        self._keys: dict[Level, dict[str, list[int]]] = {}
        self._loose: dict[str, tuple[Level, list[int]]] = {}

    def find(self, cell: str) -> list[int]:
        """Return the numbers of all images that a cell may mean."""
        if cell in self._by_name:
            return [self._by_name[cell]]
        end = "/" + cell.removeprefix("./").lstrip("/")
        near = self._by_end.get(end.rpartition("/")[2], ())
        with_ending = [image for image in near if self._paths[image].endswith(end)]
        exact = with_ending or [image for image in near if self._without_ending[image].endswith(end)]
        return exact or self._find_loosely(cell)

    def _find_loosely(self, cell: str) -> list[int]:
        if cell not in self._loose:
            name = cell.rpartition("/")[2]
            keys = {level: level.of_cell(name) for level in LEVELS if level.loose}
            matches = ((level, self._by_key(level).get(key, [])) for level, key in keys.items() if key is not None)
            self._loose[cell] = next(((level, images) for level, images in matches if images), (LEVELS[-1], []))
        return self._loose[cell][1]

    def _by_key(self, level: Level) -> dict[str, list[int]]:
        if level not in self._keys:
            index: dict[str, list[int]] = defaultdict(list)
            for image, path in enumerate(self.paths):
                if (key := level.of_file(path.name)) is not None:
                    index[key].append(image)
            self._keys[level] = dict(index)
        return self._keys[level]

    def notes(self) -> list[str]:
        """Return a note on the ids that are spelt otherwise than their images."""
        loose = [(cell, level, images[0]) for cell, (level, images) in self._loose.items() if len(images) == 1]
        if not loose:
            return []
        cell, level, image = loose[0]
        ids = "1 id of the sample is an image" if len(loose) == 1 else f"{len(loose):,} ids of the sample are images"
        return [f"{ids} {level.how}, such as {cell!r} for {self.names[image]!r}."]

    def count(self, cells: Iterable[str]) -> int:
        """Return how many images these cells name unambiguously; 0 where they do not differ as ids do."""
        named = [images[0] for cell in cells if len(images := self.find(cell)) == 1]
        return len(set(named)) if 2 * len(set(named)) >= len(named) else 0


def _class_names(space: LabelSpace) -> dict[str, tuple[Head, int]]:
    """Return every name of a class in a header; the bare name only where no other head has it too."""
    classes = [(head, number, name) for head in space for number, name in enumerate(head.classes)]
    counts = Counter(name for _, _, name in classes)
    names = {name: (head, number) for head, number, name in classes if counts[name] == 1}
    for mark in ":_":
        for head, number, name in classes:
            names.setdefault(f"{head.name}{mark}{name}", (head, number))
    return names


def _joins(mark: str, head: Head, cells: Iterable[str]) -> bool:
    """Return whether a mark stands between classes of a head in one of the cells."""
    if head.multiclass:
        return False
    return any(mark in cell and cell not in head.index and set(cell.split(mark)) <= head.index.keys() for cell in cells)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (" ..." if len(names) > 3 else "")
