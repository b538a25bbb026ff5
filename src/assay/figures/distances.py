"""Distances between sets of features: how alike two sets of pictures are, and how varied one is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def frechet(one: Floats, other: Floats) -> float:
    """Frechet distance of two normal distributions fitted to features (n, F) and (m, F) (Heusel et al. 2017).

    Few pictures make it too large, the more so the fewer they are: compare only distances of equal n and m.
    The trace of the root of the product of covariances is the sum of the singular values of the product of the
    centred features, so that no covariance (F, F) is formed. Raises ValueError for fewer than two of either.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{len(one)} and {len(other)} pictures: a covariance needs two of either set")
    means, centred = zip(*(_centred(features) for features in (one, other)), strict=True)
    apart = float(((means[0] - means[1]) ** 2).sum())
    traces = sum(float((part**2).sum()) for part in centred)
    shared = float(np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum())
    return max(0.0, apart + traces - 2 * shared)


def spread(features: Floats) -> float:
    """Mean Euclidean distance between two different pictures of a set (n, F). Raises ValueError for fewer than two."""
    if len(features) < 2:
        raise ValueError("one picture has no other to be apart from")
    wide = np.asarray(features, dtype=np.float64)
    wide = wide - wide.mean(axis=0)  # smaller numbers lose fewer digits below
    squares = (wide**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * wide @ wide.T, 0.0))
    np.fill_diagonal(apart, 0.0)
    return float(apart.sum() / (len(wide) * (len(wide) - 1)))


def _centred(features: Floats) -> tuple[Floats, Floats]:
    """The mean (F,), and what is left (n, F) divided so that its squares sum to the variances."""
    wide = np.asarray(features, dtype=np.float64)
    mean = wide.mean(axis=0)
    return mean, (wide - mean) / np.sqrt(len(wide) - 1)
