"""95 % intervals by the percentile bootstrap over images (Efron 1979), of the means over seeds that tables here hold.

The package itself has other methods (`assay.metrics.intervals`); tables measured with this one say so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from assay.arrays import Floats
from assay.metrics.intervals import Metric

COVERAGE = 0.95
CELLS = 4_000_000  # of one block of draws: 16 MB, whatever the number of images


def draws(images: int, count: int, *, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """Draw `count` resamples of `images` with replacement, as weights.

    Yields blocks (images, b) whose columns each sum to `images`; the sizes of the blocks bound the memory and do not
    change the draws.
    """
    if images < 1:
        return
    generator = np.random.default_rng(seed)
    width = max(1, CELLS // images)
    for first in range(0, count, width):
        block = np.empty((min(width, count - first), images), dtype=np.float32)
        for row in block:
            drawn = generator.integers(0, images, size=images, dtype=np.int32)
            row[:] = np.bincount(drawn, minlength=images)
        # images first: sums over images then run along rows that lie together in memory
        yield np.ascontiguousarray(block.T)


def interval(resampled: Floats) -> tuple[float, float] | None:
    """The middle 95 % of a value over resamples (B,); those in which it is undefined are left out."""
    defined = resampled[np.isfinite(resampled)]
    if not defined.size:
        return None
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def with_interval(value: float, n: int, resampled: Floats) -> Metric:
    """A value and the interval of its resamples (B,); with B = 0, no interval."""
    bounds = interval(resampled)
    return Metric(value, n) if bounds is None else Metric(value, n, *bounds)
