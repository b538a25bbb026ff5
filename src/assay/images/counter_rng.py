"""Counter-based random numbers: they depend on a key alone.

A stateful generator gives an image other numbers when the batch, the order or the number of workers changes. Here a
key is made of the image, epoch and view, and its numbers follow by counting: splitmix64 (Steele, Lea and Flood 2014,
"Fast splittable pseudorandom number generators"), vectorised.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike

from assay.arrays import Doubles, Ints, Keys, Pixels

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: counting by it visits every number
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def image_keys(
    *,
    seed: int,
    step: int,
    epoch: int,
    images: ArrayLike,
    occurrence: ArrayLike = 0,
    view: ArrayLike = 0,
) -> Keys:
    """Return a key for each image (B,) from whole numbers; `occurrence` and `view` are scalars or (B,)."""
    state = np.zeros(1, np.uint64)
    for part in (seed, step, epoch, images, occurrence, view):
        state = _mix_bits((state ^ _as_integer(part)) + _GOLDEN)
    return state


def contents(pixels: Pixels) -> Ints:
    """Return a checksum (B,) of the content of each image (B, S, S, 3)."""
    return np.array([zlib.crc32(np.ascontiguousarray(image).data) for image in pixels], dtype=np.int64)


def uniform(keys: Keys, count: int) -> Doubles:
    """Return uniform numbers (B, count) in [0, 1); a larger `count` keeps the first ones."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix_bits(keys[:, None] + steps)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _as_integer(part: ArrayLike) -> Keys:
    numbers = np.asarray(part)
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"a key is made of whole numbers, not of {numbers.dtype}")
    return numbers.astype(np.uint64)  # negative ones wrap around


def _mix_bits(state: Keys) -> Keys:
    """Apply the finalizer of splitmix64: every input bit changes about half of the output bits."""
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
