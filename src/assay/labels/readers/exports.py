"""What the readers of other programs' label files share: JSON with its places, files by split, rows of a table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from assay.errors import DataError
from assay.files import fingerprint, whole_folder, write_text
from assay.labels.image_files import is_foreign, is_unicode
from assay.labels.left_out import LeftOut
from assay.labels.readers.columns import Columns
from assay.labels.readers.folder import split_of
from assay.labels.readers.label_cells import JSON, HeadColumns
from assay.labels.readers.table_files import Rows
from assay.labels.readers.text_files import read_text
from assay.labels.space import Kind
from assay.messages import printable, quoted

HEAD = "label"
"""The head of a format that names none."""

ANNOTATION_FOLDERS = frozenset({"annotations", "annotation", "labels", "ann", "meta", "metadata"})
"""Folders (any case) of label files, beside those of the images."""

AGAIN = "Export it again, or mend it there."


@dataclass(frozen=True)
class Options:
    """The settings beside a label file of another program."""

    root: Path | None = None
    head: str | None = None
    kind: Kind | Mapping[str, Kind] | None = None  # of each head, where heads differ
    heads: Mapping[str, HeadColumns] = field(default_factory=dict)
    crop: Literal["boxes"] | None = None
    unpack: Path | None = None

    def kind_of(self, head: str) -> Kind | None:
        """Return the kind that a head is to have; None where the labels decide."""
        return self.kind.get(head) if isinstance(self.kind, Mapping) else self.kind


@dataclass(frozen=True)
class Export:
    """The images of a label file as rows of a table, the meaning of its columns, and the folder of the images."""

    rows: Rows
    columns: Columns
    root: Path
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image of a label file: its place there, its name, and its labels by head (None: not known)."""

    at: int | str
    name: str
    labels: Mapping[str, Sequence[str] | None]
    split: str | None = None
    group: str | None = None
    annotator: str | None = None


# JSON with its places.


class Json:
    """A value of a JSON file, and where it stands, for messages: `above`, and the key or number of it there."""

    __slots__ = ("_above", "_step", "value")  # of millions of entries: a position is spelt when it is asked for

    def __init__(self, value: object, above: Json | str, step: str = "") -> None:
        self.value, self._above, self._step = value, above, step

    @property
    def at(self) -> str:
        return f"{self._above.at if isinstance(self._above, Json) else self._above}{self._step}"

    @staticmethod
    def read(path: Path) -> Json:
        """Return the content of a file. Raises DataError that names the line of what is no JSON."""
        name = printable(path)
        try:
            return Json(json.loads(read_text(path)[0]), name)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}, line {error.lineno}: is no JSON ({error.msg}). {AGAIN}") from error
        except RecursionError as error:
            raise DataError(f"{name}: is nested too deeply for label files. {AGAIN}") from error

    def fault(self, rule: str) -> DataError:
        return DataError(f"{self.at}: {rule}")

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, Mapping) and self.value.get(key) is not None

    def __getitem__(self, key: str) -> Json:
        """Return the value of a key. Raises DataError where this is no object, or has no such key."""
        if not isinstance(self.value, Mapping):
            raise self.fault(f"holds {_named(self.value)} where an object with {key!r} belongs. {AGAIN}")
        if self.value.get(key) is None:
            raise self.fault(f"has no {key!r}. {AGAIN}")
        return Json(self.value[key], self, f", {key}")

    def get(self, key: str) -> Json | None:
        """Return the value of a key, or None."""
        if key not in self:
            return None
        return self[key]

    def plain(self, key: str) -> object:
        """Return the value of a key as it is, or None."""
        return self.value.get(key) if isinstance(self.value, Mapping) else None

    def names(self) -> list[str]:
        """Return the keys of an object. Raises DataError for anything else."""
        if not isinstance(self.value, Mapping):
            raise self.fault(f"holds {_named(self.value)} where an object belongs. {AGAIN}")
        return [Json(key, self.at).text() for key in self.value]

    def items(self, key: str | None = None) -> list[Json]:
        """Return the entries of a list, or of the one under a key, which may be missing."""
        if key is not None and key not in self:
            return []
        listed = self if key is None else self[key]
        if not isinstance(listed.value, list):
            raise listed.fault(f"holds {_named(listed.value)} where a list belongs. {AGAIN}")
        return [Json(value, listed, f"[{number}]") for number, value in enumerate(listed.value)]

    def text(self) -> str:
        """Return a name: a text that is not blank, or a whole number. Raises DataError for anything else."""
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return str(self.value)
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.fault(f"holds {_named(self.value)} where a name belongs. {AGAIN}")
        if not is_unicode(self.value):
            raise self.fault("holds half a character (a lone surrogate). Mend the name.")
        return self.value

    def number(self) -> int:
        """Return a whole number. Raises DataError for anything else."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self.fault(f"holds {_named(self.value)} where a whole number belongs. {AGAIN}")
        return self.value

    def choice(self, names: Sequence[str], what: str) -> str:
        """Return the name at a position. Raises DataError for a position that is none."""
        position = self.number()
        if not 0 <= position < len(names):
            raise self.fault(
                f"{position} is no {what}: there are {len(names)}, from 0 to {len(names) - 1}. Mend one of the two."
            )
        return names[position]


def _named(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return printable(text if len(text) <= 40 else f"{text[:40]} ...")


# Files by split, and where their images are.


@dataclass(frozen=True)
class LabelFile:
    """A label file: its path, its name below the folder given, its split, and whether it is the only one."""

    path: Path
    name: str
    split: str | None = None
    alone: bool = True

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def above(self) -> str:
        """The folder as what stands before a name in it."""
        return f"{self.folder}/" if self.folder else ""


def files_by_split(source: Path, is_wanted: Callable[[Path], bool], what: str) -> list[LabelFile]:
    """Return the file, or the files below a folder that are wanted.

    A file is of the split that its folder or a part of its name is named after; a single one, whose images are
    parted, of none. Raises DataError where there is none.
    """
    if not source.is_dir():
        return [LabelFile(source, source.name)]
    files = [path for path in _files(source) if is_wanted(path)]
    if not files:
        raise DataError(f"{printable(source)}: holds no {what}. Give the file, or the folder that it lies in.")
    names = [path.relative_to(source).as_posix() for path in files]
    if len(files) == 1:
        return [LabelFile(files[0], names[0])]
    return [LabelFile(path, name, _split_of(path, source), False) for path, name in zip(files, names, strict=True)]


def _files(source: Path) -> Iterator[Path]:
    """Yield the files of a folder and of the folders in it, sorted, without hidden ones."""
    for path in sorted(source.iterdir()):
        if is_foreign(path.name) and not path.name.startswith("_"):
            continue
        if path.is_dir():
            yield from sorted(inside for inside in path.iterdir() if inside.is_file() and not is_foreign(inside.name))
        elif path.is_file():
            yield path


def _split_of(path: Path, source: Path) -> str | None:
    """Return the split that a file is named after: `val` of `valid/_annotations.json` or `instances_val2017.json`."""
    words = [path.parent.name] if path.parent != source else []
    words += [path.stem, *re.split(r"[-_. ]", path.stem)]
    return next((split for word in words if (split := split_of(word))), None)


def image_root(path: Path, given: Path | None) -> Path:
    """Return the folder that names of images start from: the one given, or that of the file or above `annotations`."""
    folder = path if path.is_dir() else path.parent
    return given or (folder.parent if folder.name.casefold() in ANNOTATION_FOLDERS else folder)


def path_in(root: Path, folders: Sequence[str], name: str) -> str:
    """Return the path below `root` of an image that a file names, in the first of these folders that holds it."""
    paths = (f"{folder}/{name}" if folder not in ("", ".") else name for folder in folders)
    return next((path for path in paths if (root / path).is_file()), name)


# Rows of a table.

Entry = tuple[int, str, Sequence[str] | None]
"""An image in a label file: its number there, its path, and its labels (None: not known)."""


def listed_images(
    files: Sequence[LabelFile],
    read: Callable[[LabelFile], tuple[Sequence[str], Iterable[Entry]]],
    *,
    source: Path,
    unit: str,
    root: Path,
    options: Options,
) -> Export:
    """Return the images of label files under one head, as `export_of`; `read` gives classes and images of a file."""
    head, images, classes = options.head or HEAD, list[LabelledImage](), dict[str, None]()
    for file in files:
        names, entries = read(file)
        classes |= dict.fromkeys(names)
        for number, path, labels in entries:
            at = number if file.alone else f"{number} of {file.name}"
            images.append(LabelledImage(at, path, {head: labels}, file.split))
    return export_of(images, source=source, unit=unit, root=root, options=options, classes={head: list(classes)})


def export_of(
    images: Sequence[LabelledImage],
    *,
    source: Path,
    unit: str,
    root: Path,
    options: Options,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Export:
    """Return images as rows. `classes` are all classes of a head, in order, where the format declares them.

    A head is of tags where `kind` says so, or an image has several; of classes otherwise, where none means unknown.
    """
    if not images:
        raise DataError(f"{printable(source)}: names no image. Add some.")
    names = dict.fromkeys([*(classes or ()), *(head for image in images for head in image.labels)])
    facts = {"image": [image.name for image in images]} | {
        fact: [getattr(image, fact) for image in images]
        for fact in ("split", "group", "annotator")
        if any(getattr(image, fact) is not None for image in images)
    }
    frame, heads = pl.DataFrame(facts, schema=dict.fromkeys(facts, pl.String)), dict[str, HeadColumns]()
    notes: list[str] = []
    for head in names:
        column = f"{head} (label)" if head in facts else head
        labels = [image.labels.get(head) for image in images]
        wanted = options.kind_of(head)
        kind = wanted or ("multilabel" if any(len(set(one or ())) > 1 for one in labels) else "multiclass")
        notes += [] if wanted else [_kind_note(head, kind)]
        cells = _tags(labels) if kind == "multilabel" else _classes(images, labels, source, unit)
        frame = frame.with_columns(pl.Series(column, cells, dtype=pl.String))
        declared = tuple(dict.fromkeys((classes or {}).get(head, ())))
        separator = JSON if kind == "multilabel" else None
        heads[head] = HeadColumns(column=column, kind=kind, separator=separator, classes=declared)
    if not heads:
        raise DataError(f"{printable(source)}: labels none of its {len(images):,} images. Label some there.")
    group, annotator = ("group" if "group" in facts else None), ("annotator" if "annotator" in facts else None)
    split = "split" if "split" in facts else None
    columns = Columns("image", heads, split=split, group=group, annotator=annotator)
    return Export(Rows(source, frame, [image.at for image in images], unit, tuple(notes)), columns, root)


def _kind_note(head: str, kind: Kind) -> str:
    if kind == "multiclass":
        return f"{head}: no image has several labels, so they are classes. If an image may: `kind: multilabel`."
    return f"{head}: an image has several labels, so they are tags; one without any has none of them."


def _tags(labels: Sequence[Sequence[str] | None]) -> list[str | None]:
    return [None if one is None else json.dumps(one, ensure_ascii=False) for one in labels]


def _classes(
    images: Sequence[LabelledImage], labels: Sequence[Sequence[str] | None], source: Path, unit: str
) -> list[str | None]:
    """Return the class of each image. Raises DataError for one with several."""
    names = [list(dict.fromkeys(one or ())) for one in labels]
    torn = next((row for row, one in enumerate(names) if len(one) > 1), None)
    if torn is not None:
        raise DataError(
            f"{printable(source)}, {unit} {images[torn].at}: {images[torn].name!r} has the labels "
            f"{quoted(names[torn])}, and `kind: multiclass` is one. Remove some there, or write `kind: multilabel`."
        )
    return [one[0] if one else None for one in names]


# Images out of label files and tables, written to a folder once.


KEY = ".source"
"""The file that names the content a folder was made of; written last."""


def unpacked(
    source: Path, given: Path | None, name: str, write: Callable[[Path], None], *, images: Sequence[Path] = ()
) -> Path:
    """Return the folder of the images that `write` takes out of a source, written where it is not there yet.

    It is `given`, or NAME in the hidden folder .assay beside the source. A source that has changed, or an
    image that it names, is written anew: whole or not at all.
    """
    folder = given or source.parent / ".assay" / name
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    about = [(path, os.stat(path)) for path in (*files, *images)]
    key = fingerprint(*(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in about))
    if (folder / KEY).is_file() and (folder / KEY).read_text(encoding="utf-8") == key:
        return folder
    if folder.exists() and not (folder / KEY).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{printable(folder)}: holds other files, which are not touched. Name a new folder as `unpack`."
        )
    with whole_folder(folder) as beside:
        write(beside)
        write_text(beside / KEY, key)
    return folder
