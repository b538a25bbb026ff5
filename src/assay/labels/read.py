"""What `data` may say, and reading it: a folder, or a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from assay.errors import DataError
from assay.labels.folders import find_in_folder
from assay.labels.found import Found, assemble, quoted
from assay.labels.pictures import Fence, shown, walk
from assay.labels.samples import Samples
from assay.labels.split import SplitSettings, split
from assay.labels.table_form import Columns, find_in_table, name_column, picture_cells
from assay.labels.tables import is_table, read_rows, texts
from assay.settings import Settings

OF_A_TABLE = ("root", "image", "heads", "group", "weight", "delimiter")
"""Settings that mean nothing where a folder is given."""


class HeadColumns(Settings):
    """Where a table holds the labels of a head."""

    column: str = Field(description="The column that holds the class names.")
    kind: Literal["exclusive"] = "exclusive"


class DataSettings(Settings):
    """The pictures and their labels: a folder a class, or a table."""

    folder: Path | None = Field(default=None, description="A folder with a folder of pictures for each class.")
    table: Path | None = Field(default=None, description="A CSV, TSV or Parquet file that names pictures and labels.")
    root: Path | None = Field(default=None, description="The folder that the paths in the table start from.")
    image: str | None = Field(default=None, description="The column that names the pictures.")
    heads: dict[str, HeadColumns] = Field(default_factory=dict, description="The label columns; default: all others.")
    group: str | None = Field(default=None, description="The column whose equal cells stay on one side of the split.")
    weight: str | None = Field(default=None, description="The column of weights, 0 or more.")
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="What parts the cells of a text table."
    )
    split: SplitSettings = SplitSettings()

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [form for form in FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(FORMS)} (given: {', '.join(given) or 'none'})")
        if self.folder is not None:
            said = [name for name in OF_A_TABLE if getattr(self, name)]
            said += ["split.column"] if self.split.column is not None else []
            if said:
                raise ValueError(f"{', '.join(said)}: said of a table, but a folder is given")
        return self


def _folder(data: DataSettings, base: Path) -> Found:
    return find_in_folder(_absolute(base, data.folder))


def _table(data: DataSettings, base: Path) -> Found:
    heads = {name: head.column for name, head in data.heads.items()}
    columns = Columns(data.image, heads, data.split.column, data.group, data.weight)
    root = _absolute(base, data.root) if data.root is not None else None
    return find_in_table(_absolute(base, data.table), root=root, columns=columns, delimiter=data.delimiter)


FORMS: dict[str, Callable[[DataSettings, Path], Found]] = {"folder": _folder, "table": _table}
"""How data may come: the key that says so, and what reads it."""


def read(data: DataSettings, *, base: Path) -> Samples:
    """Pictures and labels to train on, with their split; relative paths start from `base`.

    Contents are hashed, nothing is decoded. Raises DataError for data that cannot be trained on.
    """
    samples = read_whole(data, base=base)
    for head in samples.space:
        if head.kind == "exclusive" and head.size < 2:
            held = f"only the class {head.classes[0]!r}" if head.size else "no label at all"
            raise DataError(
                f"{shown(_source(data))}: {head.name!r} has {held}, and there must be at least two classes "
                "to tell apart. Add pictures of another, or name other label columns with `heads`."
            )
    return split(samples, val=data.split.val, test=data.split.test, seed=data.split.seed)


def read_whole(data: DataSettings, *, base: Path) -> Samples:
    """The same, not split and with any number of classes: to score a model on."""
    return assemble(FORMS[_form(data)](data, base))


def _form(data: DataSettings) -> str:
    return next(form for form in FORMS if getattr(data, form) is not None)


def _source(data: DataSettings) -> str:
    return str(getattr(data, _form(data)))


def read_folder(folder: Path) -> Samples:
    """Pictures in a folder a class, not split."""
    return assemble(find_in_folder(_absolute(Path(), folder)))


def read_table(
    table: Path, *, root: Path | None = None, columns: Columns | None = None, delimiter: str | None = None
) -> Samples:
    """Pictures that a CSV, TSV or Parquet file names, not split."""
    at = _absolute(Path(), root) if root is not None else None
    return assemble(find_in_table(_absolute(Path(), table), root=at, columns=columns, delimiter=delimiter))


def find_pictures(source: Path, *, image: str | None = None) -> list[tuple[str, Path]]:
    """Pictures to label: (name as given, absolute path), from a picture, a folder or a table.

    A folder is searched to any depth and sorted naturally, names relative to it. A table keeps its rows in
    order, each as often as it is named, missing files too. Raises DataError where there are none.
    """
    place = _absolute(Path(), source)
    if place.is_dir():
        found = [(shown(path), place / path) for path in walk(place).pictures]
        if not found:
            raise DataError(f"{shown(source)}: no pictures in this folder. Give a picture, a folder or a table.")
        return found
    if not place.exists():
        raise DataError(f"{shown(source)}: does not exist. Give a picture, a folder of pictures or a table.")
    if not is_table(place):
        return [(shown(source), place)]
    rows = read_rows(place)
    column = name_column(rows, image)
    rows, fence, named = texts(rows, [column]), Fence(place.parent), []
    for row, cell in enumerate(picture_cells(rows, column)):
        try:
            path, _ = fence.locate(cell)
        except DataError as error:
            raise DataError(f"{rows.at(row)}: {error}") from error
        named.append((cell, place.parent / path))
    if not named:
        raise DataError(f"{shown(source)}: names no pictures; {quoted([column])} has no rows. Add some.")
    return named


def _absolute(base: Path, path: Path | None) -> Path:
    return Path(os.path.abspath(base / (path or "")))
