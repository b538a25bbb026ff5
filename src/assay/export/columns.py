"""Columns of a submission: the cells that each makes from predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from assay.arrays import Bools, Floats, Reals
from assay.errors import DataError
from assay.labels.space import Head, LabelSpace
from assay.models.uncertainty import Uncertainty
from assay.predictions.conformal import set_thresholds
from assay.predictions.novelty import limit, ranks
from assay.predictions.predict import Predictions

Cells = Callable[[Predictions], list[str]]
"""The cells of a column for some images; those of unreadable images are not used."""
Numbers = Callable[[Predictions], Reals]


@dataclass(frozen=True)
class Column:
    """A column's name and cells. One with `always` has a cell also for an image that could not be read.

    `label`: whether it holds predicted labels, which may be withheld. `numbers`: those that the cells are texts of,
    (N,) or (N, F).
    """

    name: str
    cells: Cells
    always: bool = False
    label: bool = False
    numbers: Numbers | None = None

    @staticmethod
    def of_numbers(name: str, numbers: Numbers) -> Column:
        return Column(name, lambda chunk: _text(numbers(chunk)), numbers=numbers)


@dataclass(frozen=True)
class TagFormat:
    """How several tags are written in one cell; None picks a separator and a mark for no tag that are unambiguous."""

    separator: str | None = None
    none: str | None = None

    def marks(self, head: Head) -> tuple[str, str]:
        """Return separator and mark for none. Raises DataError where a cell would not read back the same."""
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


@dataclass(frozen=True)
class Doubt:
    """What is written of how sure a prediction is: sets of a coverage, `unlike_training`, labels withheld.

    `abstain` is the share of images like the training images whose label may be withheld by mistake.
    """

    coverage: float | None = None
    by_class: bool = False
    unlike: bool = False
    abstain: float | None = None

    @property
    def by_distance(self) -> bool:
        return self.unlike or self.abstain is not None


NO_DOUBT = Doubt()


def full_form(
    space: LabelSpace,
    *,
    top: int | None = None,
    one_hot: bool = False,
    tags: TagFormat | None = None,
    doubt: Doubt = NO_DOUBT,
    uncertainty: Uncertainty | None = None,
    features: bool = False,
) -> list[Column]:
    """Return every column that predictions can fill.

    `image`, then `label` and `confidence`, then a class each its probability (or 0 or 1), then `error`: why
    an image could not be read. With several heads they are called `HEAD`, `HEAD confidence` and
    `HEAD:class`. With `top`, the so many most probable classes of each head, as `label`, `confidence`,
    `label 2`, `confidence 2` ..., stand instead of a column a class. With `doubt`, `set` follows the confidence,
    and `unlike_training` all labels; it needs the `uncertainty` of the model. With `features`, they stand before the
    error.

    Raises DataError where two columns would have one name.
    """
    labels = label_columns(space, top=top, tags=tags or TagFormat())
    if uncertainty is not None:
        labels = _doubted(labels, space, tags or TagFormat(), doubt, uncertainty)
    classes = [] if top is not None else _class_columns(space, {column.name for column in labels}, one_hot)
    vectors = [Column.of_numbers("features", _features)] if features else []
    errors = Column("error", _error, always=True)
    columns = [Column("image", ids_of, always=True), *labels, *classes, *vectors, errors]
    names = [column.name for column in columns]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(
            f"the heads {', '.join(repr(head.name) for head in space)} would give two columns the name "
            f"{twice[0]!r}. Rename a head in the plan."
        )
    return columns


def label_columns(space: LabelSpace, *, top: int | None, tags: TagFormat) -> list[Column]:
    """Return the label of each head and its confidence; with `top`, of the so many most probable classes."""
    return list(_label_columns(space, top, tags))


def _label_columns(space: LabelSpace, top: int | None, tags: TagFormat) -> Iterator[Column]:
    for head, at in space.each():
        label, prefix = ("label", "") if len(space) == 1 else (head.name, f"{head.name} ")
        if top is None:
            yield Column(label, _label(head, at, tags), label=True)
            yield Column.of_numbers(f"{prefix}confidence", _confidence(head, at))
            continue
        for rank in range(min(top, head.size)):
            suffix = f" {rank + 1}" if rank else ""
            yield Column(f"{label}{suffix}", _ranked_label(head, at, rank), label=True)
            confidence = f"{label}{suffix} confidence" if prefix else f"confidence{suffix}"
            yield Column.of_numbers(confidence, _ranked_confidence(at, rank))


def _doubted(
    labels: Sequence[Column], space: LabelSpace, tags: TagFormat, doubt: Doubt, uncertainty: Uncertainty
) -> list[Column]:
    """Return the columns of labels with those of a doubt; `label` columns are blank where it withholds them."""
    columns = list(labels)
    rank = _ranks(uncertainty)
    if doubt.abstain is not None and (cut := limit(doubt.abstain, len(uncertainty.distances))) is not None:
        columns = [_withheld(one, rank, cut) if one.label else one for one in columns]
    if doubt.coverage is not None:
        for number, (head, at) in enumerate(space.each()):
            name = "set" if len(space) == 1 else f"{head.name} set"
            cuts = set_thresholds(uncertainty.cells[number], doubt.coverage, head.size, by_class=doubt.by_class)
            columns.append(Column(name, _set(head, at, tags, cuts)))
    if doubt.by_distance:
        columns.append(Column.of_numbers("unlike_training", rank))
    return columns


def _ranks(uncertainty: Uncertainty) -> Callable[[Predictions], Reals]:
    def of(chunk: Predictions) -> Reals:
        assert chunk.distances is not None
        return ranks(chunk.distances, uncertainty.distances)

    return of


def _withheld(column: Column, rank: Callable[[Predictions], Reals], cut: float) -> Column:
    def cells(chunk: Predictions) -> list[str]:
        return ["" if foreign else cell for cell, foreign in zip(column.cells(chunk), rank(chunk) >= cut, strict=True)]

    return Column(column.name, cells)


def _set(head: Head, at: slice, tags: TagFormat, cuts: Floats) -> Cells:
    """Return the classes from their thresholds (K,) up, the most probable first."""
    separator, none = tags.marks(head)

    def cells(chunk: Predictions) -> list[str]:
        inside = np.take_along_axis(chunk.probabilities[:, at] >= cuts, order := _order(chunk, at), axis=1)
        return [
            separator.join(head.classes[number] for number in row[kept]) or none
            for row, kept in zip(order, inside, strict=True)
        ]

    return cells


def _class_columns(space: LabelSpace, labels: set[str], one_hot: bool) -> list[Column]:
    plain = len(space) == 1 and {"image", "error", *labels}.isdisjoint(space.heads[0].classes)
    return [
        _class_column(name if plain else f"{head.name}:{name}", space, head, number, one_hot)
        for head in space
        for number, name in enumerate(head.classes)
    ]


def _class_column(name: str, space: LabelSpace, head: Head, number: int, one_hot: bool) -> Column:
    cells, at = of_class(space, head, number, one_hot=one_hot), space.columns_of(head.name).start + number
    return Column(name, cells, numbers=None if one_hot else lambda chunk: chunk.probabilities[:, at])


def of_class(space: LabelSpace, head: Head, number: int, *, one_hot: bool) -> Cells:
    """Return a class's probability with all digits of a float32, or 1 where it is predicted and 0 where it is not."""
    at = space.columns_of(head.name)
    if not one_hot:
        return lambda chunk: _text(chunk.probabilities[:, at.start + number])
    return lambda chunk: ["1" if value else "0" for value in _predicted(chunk, head, at)[:, number].tolist()]


def integers(space: LabelSpace) -> list[Column]:
    """Return each multi-class head's class as its number from 0, each class of a multi-label head as 0 or 1.

    Where all classes of a head are called by whole numbers, these are the labels, and are given as they are.
    """
    columns = []
    for head, at in space.each():
        if head.multiclass:
            columns.append(Column(head.name, _label_of(_numbers(head), at)))
            continue
        prefix = "" if len(space) == 1 else f"{head.name}:"
        for number, name in enumerate(head.classes):
            columns.append(Column(f"{prefix}{name}", of_class(space, head, number, one_hot=True)))
    return columns


def _numbers(head: Head) -> list[str]:
    named = all(name.removeprefix("-").isdecimal() and name == str(int(name)) for name in head.classes)
    return list(head.classes) if named else [str(number) for number in range(head.size)]


def ids_of(chunk: Predictions) -> list[str]:
    return chunk.ids


def _features(chunk: Predictions) -> Reals:
    assert chunk.features is not None
    return chunk.features


def _error(chunk: Predictions) -> list[str]:
    return [chunk.unreadable.get(name, "") for name in chunk.ids]


def _label(head: Head, at: slice, tags: TagFormat) -> Cells:
    if head.multiclass:
        return _label_of(head.classes, at)
    separator, none = tags.marks(head)
    return lambda chunk: [
        separator.join(compress(head.classes, row)) or none for row in _predicted(chunk, head, at).tolist()
    ]


def _label_of(names: Sequence[str], at: slice) -> Cells:
    return lambda chunk: [names[number] for number in chunk.probabilities[:, at].argmax(axis=1).tolist()]


def _confidence(head: Head, at: slice) -> Numbers:
    """Return how probable the prediction is; of tags, that of the least certain of the head's classes."""
    if head.multiclass:
        return lambda chunk: chunk.probabilities[:, at].max(axis=1)

    def of_tags(chunk: Predictions) -> Reals:
        probabilities = chunk.probabilities[:, at]
        return np.asarray(np.where(_predicted(chunk, head, at), probabilities, 1 - probabilities).min(axis=1))

    return of_tags


def _ranked_label(head: Head, at: slice, rank: int) -> Cells:
    return lambda chunk: [head.classes[number] for number in _order(chunk, at)[:, rank].tolist()]


def _ranked_confidence(at: slice, rank: int) -> Numbers:
    return lambda chunk: np.take_along_axis(chunk.probabilities[:, at], _order(chunk, at)[:, rank : rank + 1], axis=1)[
        :, 0
    ]


def _order(chunk: Predictions, at: slice) -> npt.NDArray[np.intp]:
    return np.argsort(-chunk.probabilities[:, at], axis=1, kind="stable")


def _predicted(chunk: Predictions, head: Head, at: slice) -> Bools:
    """Return which classes of a head are predicted, (N, K)."""
    return head.present(head.decide(chunk.probabilities[:, at], chunk.cuts[:, at]))


def _text(values: Reals) -> list[str]:
    """Return the shortest texts that read back as the same float32."""
    cells: list[str] = values.astype(np.float32).astype(str).tolist()
    return cells
