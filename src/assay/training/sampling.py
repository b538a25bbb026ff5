"""The images of an epoch, their order and their partners: functions of the epoch, so that a restart is exact.

Images are named by rows. Of N images, row + n N is the image of `row` drawn for the (n + 1)-th time in its epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from assay.arrays import Bools, Doubles, Floats, Ints
from assay.errors import DataError
from assay.images.augment import Augment
from assay.labels.space import Codes, Head, LabelSpace, find_class, require_known
from assay.settings import Choice, by_name


class Order(Protocol):
    """The rows of every epoch."""

    @property
    def length(self) -> int:
        """Rows of an epoch, the same number in each; an image drawn twice counts twice."""

    def rows(self, epoch: int) -> Ints:
        """Return the rows of an epoch, in order."""


@dataclass(frozen=True)
class Shuffled:
    """Every image once an epoch, in a new order in each."""

    count: int
    seed: int

    @property
    def length(self) -> int:
        return self.count

    def rows(self, epoch: int) -> Ints:
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)


@dataclass(frozen=True)
class ShuffledByShard:
    """Every image once an epoch, so that each shard is read from its beginning to its end.

    A few shards, in a new order in each epoch, are read at a time, in turns, through a buffer: an image comes at most
    so many rows early or late, at random.
    """

    shards: Ints  # (N,) of each image, which lie in the order of their rows
    seed: int
    at_once: int = 8
    buffer: int = 4096

    @property
    def length(self) -> int:
        return len(self.shards)

    def rows(self, epoch: int) -> Ints:
        generator = np.random.default_rng([self.seed, epoch])
        _, shard, sizes = np.unique(self.shards, return_inverse=True, return_counts=True)
        turn = generator.permutation(len(sizes))[shard] // self.at_once
        by_shard = np.argsort(shard, kind="stable")
        position = np.empty(self.length)
        position[by_shard] = np.arange(self.length) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        read = np.lexsort((position / sizes[shard], turn))  # in turns, as many images of each as it has
        return read[np.argsort(np.arange(self.length) + self.buffer * generator.random(self.length), kind="stable")]


def number_repeats(rows: Ints, count: int) -> Ints:
    """Return rows of `count` images, of which one may be repeated, as distinct rows: repeat n is row + n count."""
    order = np.argsort(rows, kind="stable")
    ranked = rows[order]
    again = np.empty_like(rows)
    again[order] = np.arange(len(rows)) - np.searchsorted(ranked, ranked)
    return rows + count * again


def split_batches(rows: Ints, size: int) -> list[Ints]:
    """Return the rows of each optimiser step, at most `size`; their numbers differ by one at most."""
    return np.array_split(rows, max(1, -(-len(rows) // size)))


def partners(rows: Ints, share: float = 1.0) -> Ints:
    """Return the row that each row of an optimiser step is mixed with: the one before it, as the order is random.

    All but `share` of them, evenly spaced, are their own partners: mixed with themselves they are not changed.
    """
    steps = np.floor(np.arange(len(rows) + 1) * share + 0.5)
    return np.where(np.diff(steps) > 0, np.roll(rows, 1), rows)


# How often images are drawn in an epoch, so that rare classes are drawn more often, or frequent ones less often.

Heads = Annotated[
    tuple[str, ...] | None, Field(min_length=1, description="The heads whose classes count; default: all.")
]
Most = Annotated[float | None, Field(ge=1, description="The most draws of an image in an epoch.")]


class Oversample(Choice):
    """Repeat images until every class is drawn as often as the most frequent one."""

    kind: Literal["oversample"] = "oversample"
    heads: Heads = None
    most: Most = None


class SquareRoot(Choice):
    """Half of that on a logarithmic scale: classes are drawn by the square roots of their counts."""

    kind: Literal["square_root"] = "square_root"
    heads: Heads = None
    most: Most = None


class Undersample(Choice):
    """Draw every class as often as the rarest one: of frequent classes a different part in every epoch."""

    kind: Literal["undersample"] = "undersample"
    heads: Heads = None


class Balanced(Choice):
    """Draw as many images as there are, equally many of each class in every batch."""

    kind: Literal["balanced"] = "balanced"
    heads: Heads = None


AnySampling = Oversample | SquareRoot | Undersample | Balanced
Sampling = Annotated[AnySampling, Field(discriminator="kind"), by_name(AnySampling)]
"""Sampling in a plan: a name, or a mapping with a kind."""


def repeat_counts(
    settings: AnySampling, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any]
) -> Doubles:
    """Return how often each image (N,) is drawn in an epoch, on average, by its labels and their weights (N, H).

    A class of weight n (the sum over its images) has the factor (m / n) ** q: m is the n of the most frequent class
    of the head, or of the rarest one to undersample; q is 1, or 1/2 for the square root. An image takes the largest
    factor among its known classes, over all heads and tags, as in repeat factor sampling (Gupta et al. 2019,
    "LVIS", section 5.2: r = max(1, sqrt(t / f)), the largest of an image's categories). With one multi-class head the
    square root is that of Mahajan et al. 2018 and Kang et al. 2020 (q = 1/2). Images without a tag are repeated
    under no head, and undersampled like a class. In balanced batches an image is drawn as often as the
    turns of its classes come to it. Labels that are unknown or weigh 0 do not count; an image of which
    nothing counts is drawn once. Raises PlanError for a head that does not exist, DataError where no label counts.
    """
    parts = _parts(settings, space, codes, weights)
    count = len(weights)
    if isinstance(settings, Balanced):
        times = np.zeros(count)
        groups = _groups(parts)
        for group in groups:
            times[group] += count / (len(groups) * len(group))
        return times
    power = 0.5 if isinstance(settings, SquareRoot) else 1.0
    times = np.full(count, np.nan)
    for part in parts:
        times = np.fmax(times, part.factors(power, repeat=not isinstance(settings, Undersample)))
    times[np.isnan(times)] = 1.0
    most = None if isinstance(settings, Undersample) else settings.most
    return times if most is None else np.minimum(times, most)


@dataclass(frozen=True)
class SampledOrder:
    """Every image as often as its number says, rounded down or up at random.

    Systematic sampling in a random order (Madow 1949): ticks one apart along the running sum of the numbers. The
    total is the same in every epoch, and an image of 2.3 is drawn 2 or 3 times, on average 2.3.
    """

    times: Doubles  # (N,) draws an epoch, on average
    seed: int

    @property
    def length(self) -> int:
        return max(1, round(float(self.times.sum())))

    def rows(self, epoch: int) -> Ints:
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.times))
        ends = np.cumsum(self.times[order])
        ends *= self.length / ends[-1]
        ends[-1] = self.length  # exactly: every tick lies before it
        ticks = generator.random() + np.arange(self.length)
        drawn = order[np.searchsorted(ends, ticks, side="right")]
        return number_repeats(generator.permutation(drawn), len(self.times))


@dataclass(frozen=True)
class RoundRobinOrder:
    """Every optimiser step takes the next image of each class in turn, in a new order of the classes each time.

    Class-aware sampling (Shen, Lin and Huang 2016) with turns instead of draws: in a step the classes differ by one
    image at most. Within an epoch an image is repeated only when all of its class have been drawn.
    """

    classes: tuple[Ints, ...]  # the images of each
    count: int  # images in all, and rows of an epoch
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
            turn = np.flatnonzero(turns == number)
            rows[turn] = members[_round_and_round(len(members), len(turn), generator)]
        return number_repeats(rows, self.count)


def round_robin(
    settings: Balanced, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any], *, step: int, seed: int
) -> RoundRobinOrder:
    """Return balanced batches over all classes of the heads; images without a tag are a class too."""
    members = _groups(_parts(settings, space, codes, weights))
    return RoundRobinOrder(tuple(members), len(weights), step, seed)


def shift_prior(times: Doubles, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any]) -> list[Floats]:
    """Return the class weights (K,) a head that equal drawing the images (N,) so many times an epoch.

    Under a multi-class head, the mean draws of the images of a class over those of all; under a multi-label head, over
    those of the images without it. This is exact for images that are sampled by one head; where other labels decide
    too, it is their average effect on this head. A class without known labels weighs 1.
    """
    class_weights = []
    for index, head in enumerate(space):
        part = _Part(head, codes[index], weights[:, index].astype(np.float64))
        drawn = _Part(head, codes[index], part.weights * times)
        mean_draws = _quotient(drawn.counts, part.counts)
        if head.multiclass:
            rest = np.full(head.size, _quotient(drawn.counts.sum(), part.counts.sum()))
        else:
            rest = _quotient(drawn.absent, part.absent)
        class_weights.append(np.nan_to_num(mean_draws / rest, nan=1.0).astype(np.float32))
    return class_weights


@dataclass(frozen=True)
class _Part:
    """One head's labels and their weights (N,)."""

    head: Head
    codes: Codes
    weights: Doubles

    @property
    def known(self) -> Bools:
        """The cells that count, in the shape of the codes."""
        return (self.codes >= 0) & self.head.spread(self.weights > 0)

    @property
    def counts(self) -> Doubles:
        """The weight of the images of each class (K,)."""
        if self.head.multiclass:
            known = self.known
            return np.bincount(self.codes[known], self.weights[known], self.head.size).astype(np.float64)
        return self._weight(self.shows)

    @property
    def absent(self) -> Doubles:
        """The weight of the images known to lack each tag (K,)."""
        return self._weight((self.codes == 0) & self.known)

    @property
    def shows(self) -> Bools:
        """The tags (N, K) that each image is known to have."""
        return np.asarray((self.codes == 1) & self.known)

    @property
    def without(self) -> Bools:
        """The images (N,) with known tags, none of which is present."""
        return np.asarray(self.known.any(axis=1) & ~self.shows.any(axis=1))

    def factors(self, power: float, *, repeat: bool) -> Doubles:
        """Return the factor (N,) of each image under this head alone; NaN where nothing of it counts."""
        counts, factors = self.counts, np.full(len(self.weights), np.nan)
        present = counts > 0
        target = (counts[present].max() if repeat else counts[present].min()) if present.any() else 1.0
        by_class = np.full(len(counts), np.nan)
        by_class[present] = (target / counts[present]) ** power
        if self.head.multiclass:
            factors[self.known] = by_class[self.codes[self.known]]
            return factors
        shows, without = self.shows, self.without
        untagged = float(self.weights[without].sum())
        factors[without] = 1.0 if repeat or not present.any() else min(1.0, target / untagged)
        largest = np.where(shows, by_class, -np.inf).max(axis=1, initial=-np.inf)
        return np.where(shows.any(axis=1), largest, factors)

    def groups(self) -> list[Ints]:
        """Return the images of each class, then those without a tag; empty groups are left out."""
        if self.head.multiclass:
            groups = [np.flatnonzero((self.codes == label) & self.known) for label in range(self.head.size)]
        else:
            groups = [*(np.flatnonzero(column) for column in self.shows.T), np.flatnonzero(self.without)]
        return [members for members in groups if len(members)]

    def _weight(self, cells: Bools) -> Doubles:
        return np.asarray(self.weights @ cells, np.float64)


def _parts(settings: AnySampling, space: LabelSpace, codes: Sequence[Codes], weights: npt.NDArray[Any]) -> list[_Part]:
    """Return the heads that the plan names, or all; those without a label that counts are left out."""
    names = [head.name for head in space]
    for name in settings.heads or ():
        require_known(name, names, "head", "sampling, heads")
    wanted = settings.heads or names
    parts = [
        _Part(head, codes[index], weights[:, index].astype(np.float64))
        for index, head in enumerate(space)
        if head.name in wanted
    ]
    parts = [part for part in parts if part.known.any()]
    if not parts:
        raise DataError(
            f"sampling: no training image has a label under {', '.join(wanted)} that counts, so there is nothing to "
            "balance. Leave sampling out, or name other heads."
        )
    return parts


def _groups(parts: Sequence[_Part]) -> list[Ints]:
    return [members for part in parts for members in part.groups()]


def _round_and_round(count: int, length: int, generator: np.random.Generator) -> Ints:
    """Return `length` numbers below `count`, each once before any is repeated, in a new order each time."""
    times = -(-length // count)
    order: Ints = np.argsort(generator.random((times, count)), axis=1)
    return order.ravel()[:length]


def _quotient(part: Doubles, whole: Doubles) -> Doubles:
    """Return `part / whole`, NaN where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0))


def augment_by_class(names: Iterable[str], space: LabelSpace, codes: Sequence[Codes]) -> Ints:
    """Return the index (N,) of the first of these classes that each image is known to have; -1 where it has none.

    `names` as in `per_class` of a plan. Raises PlanError, see `find_class`.
    """
    chosen = np.full(len(codes[0]), -1, np.int64)
    for number, name in enumerate(names):
        index, label = find_class(name, space, "augment, per_class")
        shows: Bools = space.heads[index].present(codes[index])[:, label]
        chosen[shows & (chosen < 0)] = number
    return chosen


def extra_repeats(augment: Augment, chosen: Ints) -> Doubles:
    """Return the factor (N,) of each image's draws by `more` of its class."""
    factors = np.array([*(settings.more for settings in augment.per_class.values()), 1.0])  # the last one for -1
    return factors[chosen]
