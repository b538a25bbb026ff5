"""The label cells of a table: class names, tags in one cell, or a column of 0 and 1 for each class."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from assay.errors import DataError
from assay.labels.image_files import is_unicode, natural_key
from assay.labels.readers.table_files import Rows
from assay.labels.samples import tag_lists
from assay.labels.space import Kind
from assay.labels.spelling import Spelling, change_notes, settled_cells
from assay.messages import nearest, yaml_text
from assay.settings import Settings

Flags = npt.NDArray[np.int8]
"""The cells (K, N) of K columns of 0 and 1; -1 is blank."""

JSON = "json"
"""The separator of cells that are JSON lists of strings."""


class HeadColumns(Settings):
    """The columns of a table that hold the labels of a head. A blank cell is an unknown label."""

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
    none: str | None = Field(
        default=None, description='The cell of an image known to have no tag, such as "-"; "" is a blank cell.'
    )
    classes: tuple[str, ...] = Field(
        default=(), description="All classes in order, with images or without; default: those in the column, sorted."
    )

    @property
    def multiclass(self) -> bool:
        """Whether `kind` is multi-class, or no other setting implies tags."""
        return self.kind == "multiclass" if self.kind else not (self.separator or self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The declared classes, if any."""
        return self.classes or self.columns

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns that are read."""
        return self.columns if self.column is None else (self.column,)

    def require_consistent(self) -> None:
        if (self.column is None) == (not self.columns):
            raise ValueError("give either `column` or `columns`")
        of_tags = [name for name in ("separator", "none") if getattr(self, name) is not None]
        if of_tags and self.columns:
            raise ValueError(f"{' and '.join(of_tags)}: about tags in one column, but `columns` are given")
        if of_tags and self.multiclass:
            raise ValueError(f"{' and '.join(of_tags)}: about tags, so it must be `kind: multilabel`")
        for name in ("columns", "classes"):
            _require_unique(name, getattr(self, name))
        if self.columns and len(self.names) != len(self.columns):
            raise ValueError(
                f"{len(self.classes)} classes and {len(self.columns)} columns; give a name for each column"
            )


def _require_unique(field: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if not name.strip():
            raise ValueError(f"{field}: {name!r} is blank, and a blank label is an unknown one")
        if count > 1:
            raise ValueError(f"{field}: {name!r} is named twice")


def settle_cells(
    rows: Rows, heads: Mapping[str, HeadColumns], spelling: Spelling
) -> tuple[Rows, dict[str, HeadColumns], list[str]]:
    """Return rows and heads with class names and declared classes as a spelling settles them, and notes on changes.

    Before rows of one image are compared: they may differ in spelling alone. Of several tags in a cell only a cell that
    is unknown as a whole is settled; the tags are when they are parted.
    """
    cells, notes, settled = rows.series(), [], dict(heads)
    blanked = Spelling(missing=spelling.missing)
    for name, head in heads.items():
        if head.column is not None:
            names = (spelling(label) or label for label in head.classes)
            settled[name] = head.model_copy(update={"classes": tuple(dict.fromkeys(names))})
            rule = spelling if head.multiclass else blanked
            cells[head.column], changes = settled_cells(cells[head.column], rule)
            notes += [f"{name}: {note}" for note in change_notes(changes)]
        elif spelling.missing:
            cells |= {column: _blanked(cells[column], blanked) for column in head.columns}
    return replace(rows, frame=pl.DataFrame(list(cells.values()))), settled, notes


def _blanked(cells: pl.Series, spelling: Spelling) -> pl.Series:
    """Return a column of 0 and 1, blank where a cell is a word for an unknown label."""
    if cells.dtype == pl.String:
        return settled_cells(cells, spelling)[0]
    if not cells.dtype.is_numeric():
        return cells
    missing = pl.Series(spelling.missing, dtype=pl.String).cast(pl.Float64, strict=False).drop_nulls()
    return cells.set(cells.cast(pl.Float64).is_in(missing.implode()), None)


def read_cells(rows: Rows, name: str, head: HeadColumns, spelling: Spelling) -> dict[str, pl.Series]:
    """Return the checked columns of a head; each series bears the name of its source.

    "label:NAME" holds class names, or tags as JSON text; or "flag:NAME:k" holds 0, 1 or null for class k.
    Raises DataError for an invalid cell and for a class that is not declared.
    """
    if head.columns and not head.multiclass:
        flags = enumerate(_flags(rows, head.columns))
        cells = pl.DataFrame([pl.Series(f"flag:{name}:{k}", values) for k, values in flags])
        known = cells.with_columns(pl.when(pl.all() >= 0).then(pl.all())).get_columns()
        return {flag.name: flag.alias(column) for flag, column in zip(known, head.columns, strict=True)}
    if head.columns:
        return {f"label:{name}": _one_of(rows, name, head)}
    return {f"label:{name}": _class_names(rows, head) if head.multiclass else _tags(rows, head, spelling)}


def labels_of(frame: pl.DataFrame, name: str, head: HeadColumns) -> list[pl.Series]:
    """Return the columns of Samples from those of `read_cells`: "label:NAME", and for flags "unknown:NAME"."""
    if head.multiclass:
        return [frame[f"label:{name}"]]
    if not head.columns:
        lists = [f"label:{name}", *([f"unknown:{name}"] if f"unknown:{name}" in frame.columns else [])]
        return [frame[column].str.json_decode(pl.List(pl.String)) for column in lists]
    columns = frame.select(f"flag:{name}:{k}" for k in range(len(head.columns)))
    flags = columns.fill_null(-1).to_numpy()  # (N, K); an expression a class takes minutes where there are thousands
    labels, unknown = tag_lists(head.names, flags == 1, flags < 0)
    return [labels.alias(f"label:{name}"), unknown.alias(f"unknown:{name}")]


def blank_notes(frame: pl.DataFrame, heads: Mapping[str, HeadColumns]) -> list[str]:
    """Return notes on multi-label heads with blank cells: they are unknown, which may not be meant.

    `frame` has the columns of Samples.
    """
    notes = []
    for name, head in heads.items():
        column = f"label:{name}" if head.column else f"unknown:{name}"
        if head.multiclass or head.none is not None or column not in frame.columns:
            continue
        cells = frame[f"label:{name}"]
        blank = cells.null_count() + (0 if head.column else int(frame[f"unknown:{name}"].is_not_null().sum()))
        if not blank:
            continue
        images = "1 image has" if blank == 1 else f"{blank:,} images have"
        if head.column is None:
            notes.append(f"{name}: {images} a blank cell, which is an unknown tag. Write 0 where the tag is not there.")
        else:
            notes.append(
                f'{name}: {images} a blank cell: their tags are unknown. If a blank means no tag, write `none: ""` of '
                'that head; if only some do, write - in those cells and `none: "-"`.'
            )
    return notes


def not_declared(label: str, classes: Sequence[str]) -> str:
    """Return the message about a label that is no declared class."""
    known = ", ".join(map(repr, classes[:10])) + (" ..." if len(classes) > 10 else "")
    way_out = f"{nearest(label, classes)} Mend the label, or add it to `classes`.".lstrip()
    return f"{label!r} is no declared class; these are {known}. {way_out}"


def _class_names(rows: Rows, head: HeadColumns) -> pl.Series:
    cells = rows.frame[head.column or ""]
    if head.classes:
        strange = cells.is_not_null() & ~cells.is_in(head.classes)
        if strange.any():
            row = strange.arg_max() or 0
            raise DataError(f"{rows.at(row)}: {not_declared(cells[row], head.classes)}")
    return cells


def _tags(rows: Rows, head: HeadColumns, spelling: Spelling) -> pl.Series:
    cells = rows.frame[head.column or ""]
    positions = {name: (k, "") for k, name in enumerate(head.classes)}
    order = (lambda tag: positions.get(tag, (-1, tag))) if head.classes else cache(natural_key)
    texts: dict[str, str] = {}  # the same tags in another order are the same text: rows can be compared
    for row, cell in enumerate(cells):
        if cell is None or cell in texts:
            continue
        try:
            tags = [spelling(tag) or tag for tag in _split_tags(cell, head)]
        except ValueError as error:
            raise DataError(f"{rows.at(row)}: {cell!r} in column {head.column!r} {error}") from error
        for tag in tags:
            if head.classes and tag not in positions and spelling(tag) is not None:
                raise DataError(f"{rows.at(row)}: {not_declared(tag, head.classes)}")
        texts[cell] = json.dumps(sorted(set(tags), key=order), ensure_ascii=False)
    blank = "[]" if head.none == "" else None
    return pl.Series(cells.name, [blank if cell is None else texts[cell] for cell in cells], dtype=pl.String)


def _split_tags(cell: str, head: HeadColumns) -> list[str]:
    """Return the tags of a cell. Raises ValueError whose message continues a sentence that begins with the cell."""
    if head.none is not None and cell.strip() == head.none.strip():
        return []
    if head.separator == JSON:
        return _from_json(cell)
    tags = [tag.strip() for tag in (cell.split(head.separator) if head.separator else [cell])]
    tags = [tag for tag in tags if tag]
    if not tags:
        marker = f"write {head.none!r}" if head.none is not None else "declare a marker with `none`"
        raise ValueError(f"names no tag. Leave the cell blank if the tags are not known; if there are none, {marker}.")
    if head.none is not None and head.none.strip() in tags:
        raise ValueError(f"says {head.none!r} (no tag) beside a tag. Remove one of the two.")
    return tags


def _from_json(cell: str) -> list[str]:
    rule = 'is no JSON list of tags, such as ["beach", "night"] or [] for none. Mend it.'
    try:
        tags = json.loads(cell)
    except (ValueError, RecursionError):
        tags = _from_python(cell, rule)
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() and is_unicode(tag) for tag in tags):
        raise ValueError(rule)
    return tags


def _from_python(cell: str, rule: str) -> object:
    """Return a list as Python prints it, `['beach', 'night']`: so data frames are saved."""
    try:
        return ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(rule) from error


def _flags(rows: Rows, columns: Sequence[str]) -> Flags:
    """Return columns (K, N) of 0 and 1, true and false, or blank. All columns of a type are read at once.

    Raises DataError for another type, or another cell.
    """
    series = rows.series()
    flags: Flags = np.empty((len(columns), len(rows.frame)), np.int8)
    by_type: dict[pl.DataType, list[int]] = {}
    for k, column in enumerate(columns):
        by_type.setdefault(series[column].dtype, []).append(k)
    for kind, numbers in by_type.items():
        if not (kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)):
            named = f"{rows.at(0)}: column {columns[numbers[0]]!r}"
            raise DataError(f"{named} holds {kind}, and the column of a class holds 0 or 1.")
        cells = pl.concat([series[columns[k]] for k in numbers])
        flags[numbers] = _zeros_and_ones(cells).reshape(len(numbers), -1)
    wrong = np.argwhere(flags == _NEITHER)
    if len(wrong):
        k, row = wrong[0].tolist()
        raise DataError(
            f"{rows.at(row)}: {series[columns[k]][row]!r} in column {columns[k]!r} is neither 0 nor 1. The column of a "
            "class holds 1 (the image shows it), 0 (it does not) or nothing (not known). A cell that means not known "
            f"too is named under `data`: `missing: [{yaml_text(str(series[columns[k]][row]))}]`."
        )
    return flags


_NEITHER = -2


def _zeros_and_ones(cells: pl.Series) -> Flags:
    """Return 0, 1, -1 where blank, or `_NEITHER`."""
    if cells.dtype == pl.String:
        words = {"": None, "true": "1", "false": "0", "1,0": "1", "0,0": "0"}
        cells = cells.str.strip_chars().str.to_lowercase().replace(words)
    values = cells.cast(pl.Float64, strict=False).fill_null(_NEITHER).to_numpy()
    flags = np.where(np.isin(values, (0.0, 1.0)), np.nan_to_num(values), _NEITHER)
    return np.where(cells.is_null().to_numpy(), -1, flags).astype(np.int8)


def _one_of(rows: Rows, name: str, head: HeadColumns) -> pl.Series:
    """Return the class whose column holds the only 1 of a row; null where all are blank."""
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
    codes = pl.Series(np.where(known, flags.argmax(axis=0), -1)) if len(flags) else pl.Series([], dtype=pl.Int64)
    return classes.gather(codes.replace({-1: None}))
