"""How sure a figure is: 95 % intervals by the bootstrap over pictures (Efron 1979)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

COVERAGE = 0.95
CELLS = 4_000_000  # of one block of draws: 16 MB, whatever the number of pictures


@dataclass(frozen=True)
class Figure:
    """A number, the pictures it was measured on, and its 95 % interval (None where none was drawn)."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}–{self.high:.3f}]"

    def to_json(self) -> dict[str, float | int | None]:
        return {"value": self.value, "n": self.n, "low": self.low, "high": self.high}


def draws(pictures: int, count: int, *, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """Draw `count` resamples of `pictures` with replacement, as weights.

    Yields blocks (pictures, b) whose columns each sum to `pictures`; the sizes of the blocks bound
    the memory and do not change the draws.
    """
    if pictures < 1:
        return
    generator = np.random.default_rng(seed)
    width = max(1, CELLS // pictures)
    for first in range(0, count, width):
        block = np.empty((min(width, count - first), pictures), dtype=np.float32)
        for row in block:
            drawn = generator.integers(0, pictures, size=pictures, dtype=np.int32)
            row[:] = np.bincount(drawn, minlength=pictures)
        # pictures first: sums over pictures then run along rows that lie together in memory
        yield np.ascontiguousarray(block.T)


def interval(resampled: Floats) -> tuple[float, float] | None:
    """The middle 95 % of a figure over resamples (B,); those in which it is undefined are left out."""
    defined = resampled[np.isfinite(resampled)]
    if not defined.size:
        return None
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def with_interval(value: float, n: int, resampled: Floats) -> Figure:
    """A figure and the interval of its resamples (B,); with B = 0, no interval."""
    bounds = interval(resampled)
    return Figure(value, n) if bounds is None else Figure(value, n, *bounds)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `n` (Wilson 1927), which stays within 0 and 1 and holds for few pictures."""
    z = 1.959964  # of the normal distribution, 2.5 % in each tail
    middle = (hits + z * z / 2) / (n + z * z)
    half = z * np.sqrt(hits * (n - hits) / n + z * z / 4) / (n + z * z)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
