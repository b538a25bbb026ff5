"""What a file to hand in says of images, a column at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from assay.arrays import Bools, Floats
from assay.errors import DataError
from assay.labels.space import Head, LabelSpace
from assay.predictions.predict import Predictions

Cells = Callable[[Predictions], list[str]]
"""The cells of a column for some images; those of unreadable images are not looked at."""


@dataclass(frozen=True)
class Column:
    """A column's name and cells. One with `always` has a cell also for an image that could not be read."""

    name: str
    cells: Cells
    always: bool = False


@dataclass(frozen=True)
class Joining:
    """How several tags stand in one cell: what parts them, and what stands for none; None picks what is clear."""

    separator: str | None = None
    none: str | None = None

    def marks(self, head: Head) -> tuple[str, str]:
        """Separator and mark for none under a head. Raises DataError where a cell would not read back the same."""
        separator, none = self.separator, self.none
        if separator is None:
            clear = (mark for mark in (";", "|", " / ", "\n") if not any(mark in name for name in head.classes))
            separator = next(clear, "\t")
        elif torn := [name for name in head.classes if separator in name]:
            raise DataError(
                f"{separator!r} cannot part the tags of {head.name!r}: the class {torn[0]!r} holds it. "
                "Give another --separator, or a column a class: --tags one-hot"
            )
        if none is None:
            none = "-" if "-" not in head.index else "(none)"
        elif all(part in head.index for part in none.split(separator)):
            raise DataError(f"--none {none!r}: reads as classes of {head.name!r}. Give a mark that is none of them.")
        return separator, none


def full_form(
    space: LabelSpace, *, top: int | None = None, one_hot: bool = False, joining: Joining | None = None
) -> list[Column]:
    """All there is to say of an image.

    `image`, then `label` and `confidence`, then a class each its probability (or 0 or 1), then `error`: why
    an image could not be read. With several heads they are called `HEAD`, `HEAD confidence` and
    `HEAD:class`. With `top`, the so many most probable classes of each head, as `label`, `confidence`,
    `label 2`, `confidence 2` ..., stand instead of a column a class.

    Raises DataError where two columns would have one name.
    """
    said = answers(space, top=top, joining=joining or Joining())
    classes = [] if top is not None else _class_columns(space, {column.name for column in said}, one_hot)
    columns = [Column("image", ids_of, always=True), *said, *classes, Column("error", _error, always=True)]
    names = [column.name for column in columns]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(
            f"the heads {', '.join(repr(head.name) for head in space)} would give two columns the name "
            f"{twice[0]!r}. Rename a head in the plan."
        )
    return columns


def answers(space: LabelSpace, *, top: int | None, joining: Joining) -> list[Column]:
    """The label of each head and its confidence; with `top`, of the so many most probable classes."""
    return list(_answers(space, top, joining))


def _answers(space: LabelSpace, top: int | None, joining: Joining) -> Iterator[Column]:
    for head, at in zip(space, space.slices, strict=True):
        label, before = ("label", "") if len(space) == 1 else (head.name, f"{head.name} ")
        if top is None:
            yield Column(label, _label(head, at, joining))
            yield Column(f"{before}confidence", _confidence(head, at))
            continue
        for rank in range(min(top, head.size)):
            place = f" {rank + 1}" if rank else ""
            yield Column(f"{label}{place}", _ranked_label(head, at, rank))
            behind = f"{label}{place} confidence" if before else f"confidence{place}"
            yield Column(behind, _ranked_confidence(at, rank))


def _class_columns(space: LabelSpace, said: set[str], one_hot: bool) -> list[Column]:
    plain = len(space) == 1 and {"image", "error", *said}.isdisjoint(space.heads[0].classes)
    return [
        Column(name if plain else f"{head.name}:{name}", of_class(space, head, place, one_hot=one_hot))
        for head in space
        for place, name in enumerate(head.classes)
    ]


def of_class(space: LabelSpace, head: Head, place: int, *, one_hot: bool) -> Cells:
    """A class's probability with all digits of a float32, or 1 where it is the answer and 0 where it is not."""
    at = next(at for one, at in zip(space, space.slices, strict=True) if one.name == head.name)
    if not one_hot:
        return lambda chunk: _text(chunk.probabilities[:, at.start + place])
    if head.kind == "multilabel":
        return lambda chunk: _zero_or_one(_given(chunk, at)[:, place])
    return lambda chunk: _zero_or_one(chunk.probabilities[:, at].argmax(axis=1) == place)


def integers(space: LabelSpace) -> list[Column]:
    """Each multi-class head's class as its place from 0, each class of a multi-label head as 0 or 1.

    Where all classes of a head are called by whole numbers, these are the labels, and are given as they are.
    """
    columns = []
    for head, at in zip(space, space.slices, strict=True):
        before = "" if len(space) == 1 else f"{head.name}:"
        if head.kind == "multiclass":
            columns.append(Column(head.name, _label_of(_numbers(head), at)))
            continue
        for place, name in enumerate(head.classes):
            columns.append(Column(f"{before}{name}", of_class(space, head, place, one_hot=True)))
    return columns


def _numbers(head: Head) -> list[str]:
    named = all(name.removeprefix("-").isdecimal() and name == str(int(name)) for name in head.classes)
    return list(head.classes) if named else [str(place) for place in range(head.size)]


def ids_of(chunk: Predictions) -> list[str]:
    return chunk.ids


def _error(chunk: Predictions) -> list[str]:
    return [chunk.unreadable.get(name, "") for name in chunk.ids]


def _label(head: Head, at: slice, joining: Joining) -> Cells:
    if head.kind == "multiclass":
        return _label_of(head.classes, at)
    separator, none = joining.marks(head)
    return lambda chunk: [separator.join(compress(head.classes, given)) or none for given in _given(chunk, at).tolist()]


def _label_of(names: list[str] | tuple[str, ...], at: slice) -> Cells:
    return lambda chunk: [names[place] for place in chunk.probabilities[:, at].argmax(axis=1).tolist()]


def _confidence(head: Head, at: slice) -> Cells:
    """How probable the answer is; of tags, that of the least certain of the head's classes."""
    if head.kind == "multiclass":
        return lambda chunk: _text(chunk.probabilities[:, at].max(axis=1))

    def of_tags(chunk: Predictions) -> list[str]:
        probabilities = chunk.probabilities[:, at]
        return _text(np.where(_given(chunk, at), probabilities, 1 - probabilities).min(axis=1))

    return of_tags


def _ranked_label(head: Head, at: slice, rank: int) -> Cells:
    return lambda chunk: [head.classes[place] for place in _order(chunk, at)[:, rank].tolist()]


def _ranked_confidence(at: slice, rank: int) -> Cells:
    return lambda chunk: _text(
        np.take_along_axis(chunk.probabilities[:, at], _order(chunk, at)[:, rank : rank + 1], axis=1)[:, 0]
    )


def _order(chunk: Predictions, at: slice) -> npt.NDArray[np.intp]:
    return np.argsort(-chunk.probabilities[:, at], axis=1, kind="stable")


def _given(chunk: Predictions, at: slice) -> Bools:
    """Which tags of a head are given, (N, K)."""
    thresholds = np.broadcast_to(chunk.thresholds, chunk.probabilities.shape)
    given: Bools = chunk.probabilities[:, at] >= thresholds[:, at]
    return given


def _text(values: Floats) -> list[str]:
    """The shortest text that reads back as the same float32."""
    cells: list[str] = values.astype(np.float32).astype(str).tolist()
    return cells


def _zero_or_one(values: Bools) -> list[str]:
    return ["1" if value else "0" for value in values.tolist()]
