"""How often pictures are shown in an epoch, so that rare classes are shown oftener, or frequent ones less often.

A picture has one number, the showings it gets in an epoch on average, made of the labels known of it. What an epoch
shows is then a function of these numbers, the seed and the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field

from assay.balance.names import require
from assay.errors import DataError
from assay.labels.space import Codes, Head, LabelSpace
from assay.training.choices import Choice, by_name
from assay.training.order import Rows, in_steps, told_apart

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Heads = Annotated[
    tuple[str, ...] | None, Field(min_length=1, description="The heads whose classes count; default: all.")
]
Most = Annotated[float | None, Field(ge=1, description="The most showings of a picture in an epoch.")]


class Oversample(Choice):
    """Repeat pictures until every class is shown as often as the most frequent one."""

    kind: Literal["oversample"] = "oversample"
    heads: Heads = None
    most: Most = None


class SquareRoot(Choice):
    """Half of that way on a logarithmic scale: classes are shown by the square roots of their counts."""

    kind: Literal["square_root"] = "square_root"
    heads: Heads = None
    most: Most = None


class Undersample(Choice):
    """Show only a part of the frequent classes, another one in every epoch: as often as the rarest class."""

    kind: Literal["undersample"] = "undersample"
    heads: Heads = None


class Balanced(Choice):
    """Show as many pictures as there are, in every batch equally many of each class."""

    kind: Literal["balanced"] = "balanced"
    heads: Heads = None


AnySampling = Oversample | SquareRoot | Undersample | Balanced
SamplingName = Literal["oversample", "square_root", "undersample", "balanced"]
Sampling = Annotated[
    AnySampling,
    Field(discriminator="kind"),
    BeforeValidator(by_name, json_schema_input_type=SamplingName | AnySampling),
]
"""Sampling in a plan: a name, or a mapping with a kind."""


def showings(settings: AnySampling, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any]) -> Floats:
    """How often each picture (N,) is shown in an epoch, on average, by its labels and their weights (N, H).

    A class of weight n (the sum over its pictures) has the factor (m / n) ** q: m is the n of the most frequent class
    of the head, or of the rarest one to undersample; q is 1, or 1/2 for the square root. A picture takes the largest
    factor among the classes known of it, over all heads and tags, as in repeat factor sampling (Gupta et al. 2019,
    "LVIS", section 5.2: r = max(1, sqrt(t / f)), the largest of a picture's categories). With one exclusive head the
    square root is that of Mahajan et al. 2018 and Kang et al. 2020 (q = 1/2). Pictures without a tag are repeated
    under no head, and undersampled like a class of their own. In balanced batches a picture is shown as often as the
    turns of its classes come to it. A label that is unknown, or weighs nothing, never counts; a picture of which
    nothing counts is shown once. Raises PlanError for a head that is not there, DataError where no label counts.
    """
    parts = _parts(settings, space, codes, weights)
    count = len(weights)
    if isinstance(settings, Balanced):
        found = np.zeros(count)
        members = _groups(parts)
        for group in members:
            found[group] += count / (len(members) * len(group))
        return found
    power = 0.5 if isinstance(settings, SquareRoot) else 1.0
    found = np.full(count, np.nan)
    for part in parts:
        found = np.fmax(found, part.factors(power, repeat=not isinstance(settings, Undersample)))
    found[np.isnan(found)] = 1.0
    most = None if isinstance(settings, Undersample) else settings.most
    return found if most is None else np.minimum(found, most)


@dataclass(frozen=True)
class Drawn:
    """Every epoch shows each picture as often as its number says, rounded down or up by chance.

    Systematic sampling in a random order (Madow 1949): ticks one apart along the running sum of the numbers. The
    total is the same in every epoch, and a picture of 2.3 showings gets 2 or 3, on average 2.3.
    """

    times: Floats  # (N,) showings on average
    seed: int

    @property
    def length(self) -> int:
        return max(1, round(float(self.times.sum())))

    def rows(self, epoch: int) -> Rows:
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.times))
        ends = np.cumsum(self.times[order])
        ends *= self.length / ends[-1]
        ends[-1] = self.length  # whatever the rounding: every tick lies before it
        ticks = generator.random() + np.arange(self.length)
        drawn = order[np.searchsorted(ends, ticks, side="right")]
        return told_apart(generator.permutation(drawn), len(self.times))


@dataclass(frozen=True)
class Rounds:
    """Every optimiser step goes round the classes, in a new order each time, and takes the next picture of each.

    Class-aware sampling (Shen, Lin and Huang 2016) with turns instead of draws: in a step the classes differ by one
    picture at most. Within an epoch a picture comes again only when all of its class have been shown.
    """

    classes: tuple[Rows, ...]  # the pictures of each
    count: int  # of pictures in all, and of showings in an epoch
    step: int  # pictures an optimiser step, at most
    seed: int

    @property
    def length(self) -> int:
        return self.count

    def rows(self, epoch: int) -> Rows:
        generator = np.random.default_rng([self.seed, epoch])
        sizes = [len(rows) for rows in in_steps(np.arange(self.length), self.step)]
        turns = np.concatenate([_round_and_round(len(self.classes), size, generator) for size in sizes])
        rows = np.empty(self.length, np.int64)
        for number, members in enumerate(self.classes):
            places = np.flatnonzero(turns == number)
            rows[places] = members[_round_and_round(len(members), len(places), generator)]
        return told_apart(rows, self.count)


def rounds(
    settings: Balanced, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any], *, step: int, seed: int
) -> Rounds:
    """Balanced batches over all classes of the heads, pictures without a tag as a class of their own."""
    members = _groups(_parts(settings, space, codes, weights))
    return Rounds(tuple(members), len(weights), step, seed)


def prior_moved(
    times: Floats, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any]
) -> list[npt.NDArray[np.float32]]:
    """What showing pictures (N,) that often does to the classes, as the class weights (K,) a head that do the same.

    Under an exclusive head the mean showings of the pictures of a class by those of all; under an independent head by
    those of the pictures without it. For a picture that was drawn by one head, exactly so; where its other labels had
    a say, what they did to this head on average. A class of which nothing is known weighs 1.
    """
    found = []
    for place, head in enumerate(space):
        part = _Part(head, codes[place], weights[:, place].astype(np.float64))
        shown = _Part(head, codes[place], part.weights * times)
        own = _over(shown.counts, part.counts)
        if head.kind == "exclusive":
            rest = np.full(head.size, _over(shown.counts.sum(), part.counts.sum()))
        else:
            rest = _over(shown.absent, part.absent)
        found.append(np.nan_to_num(own / rest, nan=1.0).astype(np.float32))
    return found


@dataclass(frozen=True)
class _Part:
    """One head's labels and their weights (N,)."""

    head: Head
    codes: Codes
    weights: Floats

    @property
    def known(self) -> Bools:
        """The cells that count, in the shape of the codes."""
        weighs = self.weights > 0
        return (self.codes >= 0) & (weighs if self.head.kind == "exclusive" else weighs[:, None])

    @property
    def counts(self) -> Floats:
        """The weight of the pictures of each class (K,)."""
        if self.head.kind == "exclusive":
            known = self.known
            found: Floats = np.bincount(self.codes[known], self.weights[known], self.head.size).astype(np.float64)
            return found
        return self._summed((self.codes == 1) & self.known)

    @property
    def absent(self) -> Floats:
        """The weight of the pictures known to be without each tag (K,)."""
        return self._summed((self.codes == 0) & self.known)

    @property
    def without(self) -> Bools:
        """The pictures (N,) that some tags are known of, and none to be there."""
        found: Bools = self.known.any(axis=1) & ~((self.codes == 1) & self.known).any(axis=1)
        return found

    def factors(self, power: float, *, repeat: bool) -> Floats:
        """The factor (N,) of each picture under this head alone; NaN where nothing of it counts."""
        counts, found = self.counts, np.full(len(self.weights), np.nan)
        present = counts > 0
        aim = (counts[present].max() if repeat else counts[present].min()) if present.any() else 1.0
        by_class = np.full(len(counts), np.nan)
        by_class[present] = (aim / counts[present]) ** power
        if self.head.kind == "exclusive":
            found[self.known] = by_class[self.codes[self.known]]
            return found
        shows = (self.codes == 1) & self.known
        without = self.without
        alone = float(self.weights[without].sum())
        found[without] = 1.0 if repeat or not present.any() else min(1.0, aim / alone)
        largest = np.where(shows, by_class, -np.inf).max(axis=1, initial=-np.inf)
        return np.where(shows.any(axis=1), largest, found)

    def groups(self) -> list[Rows]:
        """The pictures of each class, then those without a tag; empty ones are left out."""
        if self.head.kind == "exclusive":
            found = [np.flatnonzero((self.codes == place) & self.known) for place in range(self.head.size)]
        else:
            shows = (self.codes == 1) & self.known
            found = [*(np.flatnonzero(column) for column in shows.T), np.flatnonzero(self.without)]
        return [members for members in found if len(members)]

    def _summed(self, cells: Bools) -> Floats:
        return np.asarray(self.weights @ cells, np.float64)


def _parts(settings: AnySampling, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any]) -> list[_Part]:
    """The heads that the plan names, or all; those of which no label counts are left out."""
    names = [head.name for head in space]
    for name in settings.heads or ():
        require(name, names, "head", "sampling, heads")
    wanted = settings.heads or names
    found = [
        _Part(head, codes[place], weights[:, place].astype(np.float64))
        for place, head in enumerate(space)
        if head.name in wanted
    ]
    counting = [part for part in found if part.known.any()]
    if not counting:
        raise DataError(
            f"sampling: no training picture has a label under {', '.join(wanted)} that counts, so there is nothing to "
            "balance. Leave sampling out, or name other heads."
        )
    return counting


def _groups(parts: Sequence[_Part]) -> list[Rows]:
    return [members for part in parts for members in part.groups()]


def _round_and_round(count: int, length: int, generator: np.random.Generator) -> Rows:
    """Numbers below `count`, each once before any comes again, in a new order each time; `length` of them."""
    times = -(-length // count)
    order: Rows = np.argsort(generator.random((times, count)), axis=1)
    return order.ravel()[:length]


def _over(part: Floats, whole: Floats) -> Floats:
    """A quotient; NaN where there is nothing below the line."""
    found: Floats = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
    return found
