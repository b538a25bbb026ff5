"""The label cells of a table: class names, tags in one cell, or a column of 0 and 1 for each class."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from assay.arrays import Bools
from assay.errors import DataError
from assay.labels.image_files import is_unicode, natural_key
from assay.labels.readers.table_files import Rows
from assay.labels.space import Kind
from assay.settings import Settings

Flags = npt.NDArray[np.int8]
"""The cells (K, N) of K columns of 0 and 1; -1 is blank."""

JSON = "json"
"""The separator that says: a cell is a JSON list of strings."""


class HeadColumns(Settings):
    """Where a table holds the labels of a head. A blank cell is an unknown label."""

    column: str | None = Field(default=None, description="The column that holds class names or tags.")
    columns: tuple[str, ...] = Field(
        default=(),
        description="A column for each class, of 0 and 1; they are named like the classes, or see `classes`.",
    )
    kind: Kind | None = Field(
        default=None,
        description="multi-class: one of K classes; multi-label: any of K (default with `separator` or `columns`).",
    )
    separator: str | None = Field(
        default=None, min_length=1, description="What parts the tags in a cell, or `json`: a cell is a JSON list."
    )
    none: str | None = Field(default=None, min_length=1, description="The cell of an image known to have no tag.")
    classes: tuple[str, ...] = Field(
        default=(), description="All classes in order, shown by an image or not; default: those found, sorted."
    )

    @property
    def asks(self) -> Kind:
        """The kind, said or implied."""
        return self.kind or ("multilabel" if self.separator or self.columns else "multiclass")

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that are declared, if they are."""
        return self.classes or self.columns

    @property
    def sources(self) -> tuple[str, ...]:
        """All columns that are read."""
        return self.columns if self.column is None else (self.column,)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.column is None) == (not self.columns):
            raise ValueError("give either `column` or `columns`")
        of_tags = [name for name in ("separator", "none") if getattr(self, name) is not None]
        if of_tags and self.columns:
            raise ValueError(f"{' and '.join(of_tags)}: said of tags in one column, but `columns` are given")
        if of_tags and self.asks == "multiclass":
            raise ValueError(f"{' and '.join(of_tags)}: said of tags, so it must be `kind: multilabel`")
        for name in ("columns", "classes"):
            _require_unique(name, getattr(self, name))
        if self.columns and len(self.names) != len(self.columns):
            raise ValueError(
                f"{len(self.classes)} classes and {len(self.columns)} columns; give a name for each column"
            )
        return self


def _require_unique(field: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if not name.strip():
            raise ValueError(f"{field}: {name!r} is blank, and a blank label is an unknown one")
        if count > 1:
            raise ValueError(f"{field}: {name!r} is named twice")


def read_cells(rows: Rows, name: str, head: HeadColumns) -> dict[str, pl.Series]:
    """The columns of a head, checked, a cell a row; each series bears the name of what it was read from.

    "label:NAME" holds class names, or tags as JSON text; or "flag:NAME:k" holds 0, 1 or null for class k.
    Raises DataError for a cell that says nothing of the kind, or a class that is not declared.
    """
    if head.columns and head.asks == "multilabel":
        flags = enumerate(_flags(rows, head.columns))
        cells = pl.DataFrame([pl.Series(f"flag:{name}:{k}", values) for k, values in flags])
        known = cells.with_columns(pl.when(pl.all() >= 0).then(pl.all())).get_columns()
        return {flag.name: flag.alias(column) for flag, column in zip(known, head.columns, strict=True)}
    if head.columns:
        return {f"label:{name}": _one_of(rows, name, head)}
    if head.asks == "multilabel":
        return {f"label:{name}": _tags(rows, head)}
    return {f"label:{name}": _class_names(rows, head)}


def labels_of(frame: pl.DataFrame, name: str, head: HeadColumns) -> list[pl.Series]:
    """What Samples hold of a head: "label:NAME", and "unknown:NAME" of flags; from the columns of `read_cells`."""
    if head.asks == "multiclass":
        return [frame[f"label:{name}"]]
    if not head.columns:
        return [frame[f"label:{name}"].str.json_decode(pl.List(pl.String))]
    columns = frame.select(f"flag:{name}:{k}" for k in range(len(head.columns)))
    flags = columns.fill_null(-1).to_numpy()  # (N, K); an expression a class takes minutes where there are thousands
    known = np.any(flags >= 0, axis=1)
    torn = known & np.any(flags < 0, axis=1)
    return [
        _listed(flags == 1, head.names, known).alias(f"label:{name}"),
        _listed(flags < 0, head.names, torn).alias(f"unknown:{name}"),
    ]


def not_declared(label: str, classes: Sequence[str]) -> str:
    """What to say of a label in no declared class."""
    near = difflib.get_close_matches(label, classes, 1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = ", ".join(map(repr, classes[:10])) + (" ..." if len(classes) > 10 else "")
    return f"{label!r} is no declared class; these are {known}.{hint} Mend the label, or add it to `classes`."


def _class_names(rows: Rows, head: HeadColumns) -> pl.Series:
    cells = rows.frame[head.column or ""]
    if head.classes:
        strange = cells.is_not_null() & ~cells.is_in(head.classes)
        if strange.any():
            row = strange.arg_max() or 0
            raise DataError(f"{rows.at(row)}: {not_declared(cells[row], head.classes)}")
    return cells


def _tags(rows: Rows, head: HeadColumns) -> pl.Series:
    cells = rows.frame[head.column or ""]
    place = {name: (k, "") for k, name in enumerate(head.classes)}
    order = place.__getitem__ if head.classes else cache(natural_key)
    texts: dict[str, str] = {}  # the same tags in another order are the same text: rows can be compared
    for row, cell in enumerate(cells):
        if cell is None or cell in texts:
            continue
        try:
            tags = _parted(cell, head)
        except ValueError as error:
            raise DataError(f"{rows.at(row)}: {cell!r} in column {head.column!r} {error}") from error
        for tag in tags:
            if head.classes and tag not in place:
                raise DataError(f"{rows.at(row)}: {not_declared(tag, head.classes)}")
        texts[cell] = json.dumps(sorted(set(tags), key=order), ensure_ascii=False)
    return pl.Series(cells.name, [cell and texts[cell] for cell in cells], dtype=pl.String)


def _parted(cell: str, head: HeadColumns) -> list[str]:
    """The tags of a cell. Raises ValueError with the rest of a sentence that begins with the cell."""
    if head.none is not None and cell.strip() == head.none.strip():
        return []
    if head.separator == JSON:
        return _from_json(cell)
    tags = [tag.strip() for tag in (cell.split(head.separator) if head.separator else [cell])]
    tags = [tag for tag in tags if tag]
    if not tags:
        marker = f"write {head.none!r}" if head.none else "declare a marker with `none`"
        raise ValueError(f"names no tag. Leave the cell blank if the tags are not known; if there are none, {marker}.")
    if head.none is not None and head.none.strip() in tags:
        raise ValueError(f"says {head.none!r} (no tag) beside a tag. Remove one of the two.")
    return tags


def _from_json(cell: str) -> list[str]:
    rule = 'is no JSON list of tags, such as ["beach", "night"] or [] for none. Mend it.'
    try:
        tags = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise ValueError(rule) from error
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() and is_unicode(tag) for tag in tags):
        raise ValueError(rule)
    return tags


def _flags(rows: Rows, columns: Sequence[str]) -> Flags:
    """Columns of 0 and 1, true and false, or blank. All columns of a type are read at once.

    Raises DataError for another type, or another cell.
    """
    found = rows.series()
    flags: Flags = np.empty((len(columns), len(rows.frame)), np.int8)
    by_type: dict[pl.DataType, list[int]] = {}
    for k, column in enumerate(columns):
        by_type.setdefault(found[column].dtype, []).append(k)
    for kind, places in by_type.items():
        if not (kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)):
            named = f"{rows.at(0)}: column {columns[places[0]]!r}"
            raise DataError(f"{named} holds {kind}, and the column of a class holds 0 or 1.")
        cells = pl.concat([found[columns[k]] for k in places])
        flags[places] = _zeros_and_ones(cells).reshape(len(places), -1)
    wrong = np.argwhere(flags == _NEITHER)
    if len(wrong):
        k, row = wrong[0].tolist()
        raise DataError(
            f"{rows.at(row)}: {found[columns[k]][row]!r} in column {columns[k]!r} is neither 0 nor 1. The column of a "
            "class holds 1 (the image shows it), 0 (it does not) or nothing (not known)."
        )
    return flags


_NEITHER = -2


def _zeros_and_ones(cells: pl.Series) -> Flags:
    """0, 1, -1 where blank, or `_NEITHER`."""
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars().str.to_lowercase().replace({"": None, "true": "1", "false": "0"})
    values = cells.cast(pl.Float64, strict=False).fill_null(_NEITHER).to_numpy()
    flags = np.where(np.isin(values, (0.0, 1.0)), np.nan_to_num(values), _NEITHER)
    return np.where(cells.is_null().to_numpy(), -1, flags).astype(np.int8)


def _one_of(rows: Rows, name: str, head: HeadColumns) -> pl.Series:
    """The class whose column holds the one 1 of a row, null where all are blank."""
    flags = _flags(rows, head.columns)
    ones, known = (flags == 1).sum(axis=0), (flags >= 0).any(axis=0)
    wrong = np.flatnonzero(known & (ones != 1))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{rows.at(row)}: {ones[row]} of the columns of {name!r} hold a 1, and a multi-class head has one class. "
            "Mend the row, leave it blank if the class is not known, or say `kind: multilabel`."
        )
    classes = pl.Series(name, head.names, dtype=pl.String)
    places = pl.Series(np.where(known, flags.argmax(axis=0), -1)) if len(flags) else pl.Series([], dtype=pl.Int64)
    return classes.gather(places.replace({-1: None}))


def _listed(holds: Bools, names: Sequence[str], rows: npt.NDArray[Any]) -> pl.Series:
    """The names (K,) of those that hold (N, K), as a list a row; null outside of `rows` (N,)."""
    row, k = np.nonzero(holds & rows[:, None])
    tags = pl.Series(list(names), dtype=pl.String).gather(k)
    found = pl.DataFrame({"row": row, "tags": tags}).group_by("row", maintain_order=True).agg("tags")
    every = pl.DataFrame({"row": np.arange(len(rows)), "wanted": rows}).join(found, on="row", how="left")
    empty = pl.lit([], dtype=pl.List(pl.String))
    lists = pl.when("wanted").then(pl.col("tags").fill_null(empty))
    return every.sort("row").select(lists).to_series()
