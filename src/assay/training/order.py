"""What an epoch shows, in what order and company: a function of the epoch alone, so that continuing is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
"""Pictures to show, by their rows.

Of N pictures, row + n N is the one of `row` once more: for the (n + 1)-th time in its epoch.
"""


class Order(Protocol):
    """The pictures of every epoch."""

    @property
    def length(self) -> int:
        """Pictures shown in an epoch, the same number in each; one shown twice counts twice."""

    def rows(self, epoch: int) -> Rows:
        """What an epoch shows, in order."""


@dataclass(frozen=True)
class Shuffled:
    """Every picture once an epoch, in an order of the epoch."""

    count: int
    seed: int

    @property
    def length(self) -> int:
        return self.count

    def rows(self, epoch: int) -> Rows:
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)


def told_apart(rows: Rows, count: int) -> Rows:
    """Rows of `count` pictures, among which one may come again, with the second showing and later ones told apart."""
    order = np.argsort(rows, kind="stable")
    ranked = rows[order]
    again = np.empty_like(rows)
    again[order] = np.arange(len(rows)) - np.searchsorted(ranked, ranked)
    return rows + count * again


def in_steps(rows: Rows, size: int) -> list[Rows]:
    """The rows of each optimiser step, at most `size`, and one more or less than another's: none is a leftover."""
    return np.array_split(rows, max(1, -(-len(rows) // size)))


def partners(rows: Rows, share: float = 1.0) -> Rows:
    """Whom each picture of an optimiser step may be mixed with: the one before it, as good as any in a random order.

    All but `share` of them, spread evenly, are their own partners: mixed with themselves they stay as they are.
    """
    reached = np.floor(np.arange(len(rows) + 1) * share + 0.5)
    return np.where(np.diff(reached) > 0, np.roll(rows, 1), rows)
