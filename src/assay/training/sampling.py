"""What an epoch shows, in what order and company: a function of the epoch alone, so that continuing is exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field

from assay.arrays import Bools, Doubles, Floats, Ints
from assay.errors import DataError
from assay.images.augment import Augment
from assay.labels.space import Codes, Head, LabelSpace, find_class, require_known
from assay.settings import Choice, parse_named

"""Images to show, by their rows.

Of N images, row + n N is the one of `row` once more: for the (n + 1)-th time in its epoch.
"""


class Order(Protocol):
    """The images of every epoch."""

    @property
    def length(self) -> int:
        """Images shown in an epoch, the same number in each; one shown twice counts twice."""

    def rows(self, epoch: int) -> Ints:
        """What an epoch shows, in order."""


@dataclass(frozen=True)
class Shuffled:
    """Every image once an epoch, in an order of the epoch."""

    count: int
    seed: int

    @property
    def length(self) -> int:
        return self.count

    def rows(self, epoch: int) -> Ints:
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)


def number_repeats(rows: Ints, count: int) -> Ints:
    """Rows of `count` images, among which one may come again, with the second showing and later ones told apart."""
    order = np.argsort(rows, kind="stable")
    ranked = rows[order]
    again = np.empty_like(rows)
    again[order] = np.arange(len(rows)) - np.searchsorted(ranked, ranked)
    return rows + count * again


def split_batches(rows: Ints, size: int) -> list[Ints]:
    """The rows of each optimiser step, at most `size`, and one more or less than another's: none is a leftover."""
    return np.array_split(rows, max(1, -(-len(rows) // size)))


def partners(rows: Ints, share: float = 1.0) -> Ints:
    """Whom each image of an optimiser step may be mixed with: the one before it, as good as any in a random order.

    All but `share` of them, spread evenly, are their own partners: mixed with themselves they stay as they are.
    """
    reached = np.floor(np.arange(len(rows) + 1) * share + 0.5)
    return np.where(np.diff(reached) > 0, np.roll(rows, 1), rows)


# How often images are shown in an epoch, so that rare classes are shown oftener, or frequent ones less often.

Heads = Annotated[
    tuple[str, ...] | None, Field(min_length=1, description="The heads whose classes count; default: all.")
]
Most = Annotated[float | None, Field(ge=1, description="The most showings of an image in an epoch.")]


class Oversample(Choice):
    """Repeat images until every class is shown as often as the most frequent one."""

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
    """Show as many images as there are, in every batch equally many of each class."""

    kind: Literal["balanced"] = "balanced"
    heads: Heads = None


AnySampling = Oversample | SquareRoot | Undersample | Balanced
SamplingName = Literal["oversample", "square_root", "undersample", "balanced"]
Sampling = Annotated[
    AnySampling,
    Field(discriminator="kind"),
    BeforeValidator(parse_named, json_schema_input_type=SamplingName | AnySampling),
]
"""Sampling in a plan: a name, or a mapping with a kind."""


def repeat_counts(
    settings: AnySampling, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any]
) -> Doubles:
    """How often each image (N,) is shown in an epoch, on average, by its labels and their weights (N, H).

    A class of weight n (the sum over its images) has the factor (m / n) ** q: m is the n of the most frequent class
    of the head, or of the rarest one to undersample; q is 1, or 1/2 for the square root. An image takes the largest
    factor among the classes known of it, over all heads and tags, as in repeat factor sampling (Gupta et al. 2019,
    "LVIS", section 5.2: r = max(1, sqrt(t / f)), the largest of an image's categories). With one multi-class head the
    square root is that of Mahajan et al. 2018 and Kang et al. 2020 (q = 1/2). Images without a tag are repeated
    under no head, and undersampled like a class of their own. In balanced batches an image is shown as often as the
    turns of its classes come to it. A label that is unknown, or weighs nothing, never counts; an image of which
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
class SampledOrder:
    """Every epoch shows each image as often as its number says, rounded down or up by chance.

    Systematic sampling in a random order (Madow 1949): ticks one apart along the running sum of the numbers. The
    total is the same in every epoch, and an image of 2.3 showings gets 2 or 3, on average 2.3.
    """

    times: Doubles  # (N,) showings on average
    seed: int

    @property
    def length(self) -> int:
        return max(1, round(float(self.times.sum())))

    def rows(self, epoch: int) -> Ints:
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.times))
        ends = np.cumsum(self.times[order])
        ends *= self.length / ends[-1]
        ends[-1] = self.length  # whatever the rounding: every tick lies before it
        ticks = generator.random() + np.arange(self.length)
        drawn = order[np.searchsorted(ends, ticks, side="right")]
        return number_repeats(generator.permutation(drawn), len(self.times))


@dataclass(frozen=True)
class RoundRobinOrder:
    """Every optimiser step goes round the classes, in a new order each time, and takes the next image of each.

    Class-aware sampling (Shen, Lin and Huang 2016) with turns instead of draws: in a step the classes differ by one
    image at most. Within an epoch an image comes again only when all of its class have been shown.
    """

    classes: tuple[Ints, ...]  # the images of each
    count: int  # of images in all, and of showings in an epoch
    step: int  # images an optimiser step, at most
    seed: int

    @property
    def length(self) -> int:
        return self.count

    def rows(self, epoch: int) -> Ints:
        generator = np.random.default_rng([self.seed, epoch])
        sizes = [len(rows) for rows in split_batches(np.arange(self.length), self.step)]
        turns = np.concatenate([_round_and_round(len(self.classes), size, generator) for size in sizes])
        rows = np.empty(self.length, np.int64)
        for number, members in enumerate(self.classes):
            places = np.flatnonzero(turns == number)
            rows[places] = members[_round_and_round(len(members), len(places), generator)]
        return number_repeats(rows, self.count)


def round_robin(
    settings: Balanced, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any], *, step: int, seed: int
) -> RoundRobinOrder:
    """Balanced batches over all classes of the heads, images without a tag as a class of their own."""
    members = _groups(_parts(settings, space, codes, weights))
    return RoundRobinOrder(tuple(members), len(weights), step, seed)


def shift_prior(times: Doubles, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any]) -> list[Floats]:
    """What showing images (N,) that often does to the classes, as the class weights (K,) a head that do the same.

    Under a multi-class head the mean showings of the images of a class by those of all; under a multi-label head by
    those of the images without it. For an image that was drawn by one head, exactly so; where its other labels had
    a say, what they did to this head on average. A class of which nothing is known weighs 1.
    """
    found = []
    for place, head in enumerate(space):
        part = _Part(head, codes[place], weights[:, place].astype(np.float64))
        shown = _Part(head, codes[place], part.weights * times)
        own = _times(shown.counts, part.counts)
        if head.kind == "multiclass":
            rest = np.full(head.size, _times(shown.counts.sum(), part.counts.sum()))
        else:
            rest = _times(shown.absent, part.absent)
        found.append(np.nan_to_num(own / rest, nan=1.0).astype(np.float32))
    return found


@dataclass(frozen=True)
class _Part:
    """One head's labels and their weights (N,)."""

    head: Head
    codes: Codes
    weights: Doubles

    @property
    def known(self) -> Bools:
        """The cells that count, in the shape of the codes."""
        weighs = self.weights > 0
        return (self.codes >= 0) & (weighs if self.head.kind == "multiclass" else weighs[:, None])

    @property
    def counts(self) -> Doubles:
        """The weight of the images of each class (K,)."""
        if self.head.kind == "multiclass":
            known = self.known
            found: Doubles = np.bincount(self.codes[known], self.weights[known], self.head.size).astype(np.float64)
            return found
        return self._summed((self.codes == 1) & self.known)

    @property
    def absent(self) -> Doubles:
        """The weight of the images known to be without each tag (K,)."""
        return self._summed((self.codes == 0) & self.known)

    @property
    def without(self) -> Bools:
        """The images (N,) that some tags are known of, and none to be there."""
        found: Bools = self.known.any(axis=1) & ~((self.codes == 1) & self.known).any(axis=1)
        return found

    def factors(self, power: float, *, repeat: bool) -> Doubles:
        """The factor (N,) of each image under this head alone; NaN where nothing of it counts."""
        counts, found = self.counts, np.full(len(self.weights), np.nan)
        present = counts > 0
        aim = (counts[present].max() if repeat else counts[present].min()) if present.any() else 1.0
        by_class = np.full(len(counts), np.nan)
        by_class[present] = (aim / counts[present]) ** power
        if self.head.kind == "multiclass":
            found[self.known] = by_class[self.codes[self.known]]
            return found
        shows = (self.codes == 1) & self.known
        without = self.without
        alone = float(self.weights[without].sum())
        found[without] = 1.0 if repeat or not present.any() else min(1.0, aim / alone)
        largest = np.where(shows, by_class, -np.inf).max(axis=1, initial=-np.inf)
        return np.where(shows.any(axis=1), largest, found)

    def groups(self) -> list[Ints]:
        """The images of each class, then those without a tag; empty ones are left out."""
        if self.head.kind == "multiclass":
            found = [np.flatnonzero((self.codes == place) & self.known) for place in range(self.head.size)]
        else:
            shows = (self.codes == 1) & self.known
            found = [*(np.flatnonzero(column) for column in shows.T), np.flatnonzero(self.without)]
        return [members for members in found if len(members)]

    def _summed(self, cells: Bools) -> Doubles:
        return np.asarray(self.weights @ cells, np.float64)


def _parts(settings: AnySampling, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any]) -> list[_Part]:
    """The heads that the plan names, or all; those of which no label counts are left out."""
    names = [head.name for head in space]
    for name in settings.heads or ():
        require_known(name, names, "head", "sampling, heads")
    wanted = settings.heads or names
    found = [
        _Part(head, codes[place], weights[:, place].astype(np.float64))
        for place, head in enumerate(space)
        if head.name in wanted
    ]
    counting = [part for part in found if part.known.any()]
    if not counting:
        raise DataError(
            f"sampling: no training image has a label under {', '.join(wanted)} that counts, so there is nothing to "
            "balance. Leave sampling out, or name other heads."
        )
    return counting


def _groups(parts: Sequence[_Part]) -> list[Ints]:
    return [members for part in parts for members in part.groups()]


def _round_and_round(count: int, length: int, generator: np.random.Generator) -> Ints:
    """Numbers below `count`, each once before any comes again, in a new order each time; `length` of them."""
    times = -(-length // count)
    order: Ints = np.argsort(generator.random((times, count)), axis=1)
    return order.ravel()[:length]


def _times(part: Doubles, whole: Doubles) -> Doubles:
    """A quotient; NaN where there is nothing below the line."""
    found: Doubles = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
    return found


# Which images are augmented by the settings of a class, and how much oftener they are shown.


def augment_by_class(names: Iterable[str], space: LabelSpace, codes: Sequence[Codes]) -> Ints:
    """The place (N,) of the first of these classes that each image is known to show; -1 where it shows none.

    `names` as in `per_class` of a plan. Raises PlanError, see `class_named`.
    """
    chosen = np.full(len(codes[0]), -1, np.int64)
    for number, name in enumerate(names):
        place, own = find_class(name, space, "augment, per_class")
        shows = codes[place] == own if space.heads[place].kind == "multiclass" else codes[place][:, own] == 1
        chosen[shows & (chosen < 0)] = number
    return chosen


def extra_repeats(augment: Augment, chosen: Ints) -> Doubles:
    """How many times as often as else each image (N,) is to be shown."""
    factors = np.array([*(own.more for own in augment.per_class.values()), 1.0])  # the last one for -1
    return factors[chosen]
