"""Types of arrays by what they hold.

Shapes stand in docstrings: N images, K classes of a head, W logits of all heads, F features.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]  # logits, probabilities, features, weights
Doubles = npt.NDArray[np.float64]
Reals = npt.NDArray[np.floating[Any]]  # of either precision
Ints = npt.NDArray[np.int64]  # rows, codes, counts
Bools = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]  # (..., H, W, 3), RGB
Keys = npt.NDArray[np.uint64]  # hashes, and seeds of draws


class RowTable(Protocol):
    """Numbers of images by row: an array, or rows on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Ints) -> Floats: ...


def unit_rows(vectors: Floats) -> Floats:
    """Return vectors (N, F) at length 1; those of no length stay as they are."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)
