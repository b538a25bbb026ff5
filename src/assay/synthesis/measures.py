"""Distances between sets of features: how alike two sets of images are, and how varied one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy  # its modules are imported when they are first used

from assay.arrays import Reals


def frechet(one: Reals, other: Reals) -> float:
    """Frechet distance of two normal distributions fitted to features (n, F) and (m, F) (Heusel et al. 2017).

    Few images make it too large, the more so the fewer they are: compare only distances of equal n and m.
    The trace of the root of the product of covariances is the sum of the singular values of the product of the
    centred features, so that no covariance (F, F) is formed. Raises ValueError for fewer than two of either.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{len(one)} and {len(other)} images: a covariance needs two of either set")
    means = [features.mean(axis=0, dtype=np.float64) for features in (one, other)]
    centred = [(part - mean) / np.sqrt(len(part) - 1) for part, mean in zip((one, other), means, strict=True)]
    traces = sum(float((part**2).sum()) for part in centred)
    shared = float(np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum())
    return max(0.0, float(((means[0] - means[1]) ** 2).sum()) + traces - 2 * shared)


def mean_distance(features: Reals) -> float:
    """Mean Euclidean distance between two different images of a set (n, F). Raises ValueError for fewer than two."""
    if len(features) < 2:
        raise ValueError("one image has no other to be apart from")
    return float(scipy.spatial.distance.pdist(np.asarray(features, np.float64)).mean())


# How like real images of a class the synthetic ones are, by the features of a backbone.

COLLAPSED = 0.5  # of the variety of real images: where a network makes few images again and again


@dataclass(frozen=True)
class Likeness:
    """Frechet distances to one half of a class's real images, each of n images to n, so that they compare."""

    n: int
    made: float  # of the synthetic images
    real: float  # of the other half
    other: float | None  # of the nearest other class with n images; None where there is none
    nearest: int | None  # that class
    variety: float  # mean distance between two synthetic images, by that between two real ones

    @property
    def collapsed(self) -> bool:
        """Return whether the synthetic images are much more alike than real ones."""
        return self.variety < COLLAPSED

    def to_json(self, classes: tuple[str, ...]) -> dict[str, object]:
        return {
            "n": self.n,
            "frechet": {"made": self.made, "real": self.real, "other class": self.other},
            "nearest other class": None if self.nearest is None else classes[self.nearest],
            "variety": self.variety,
            "collapsed": self.collapsed,
        }


def measure_likeness(real: Mapping[int, Reals], code: int, made: Reals, *, seed: int) -> Likeness:
    """Compare features of the synthetic images of a class (m, F) with those of real images by class, each (n, F).

    The halves are drawn by `seed`. Raises ValueError where the class has fewer than four real images or there
    are fewer than two synthetic ones.
    """
    images = real[code][np.random.default_rng(seed).permutation(len(real[code]))]
    n = min(len(images) // 2, len(made))
    half = images[:n]
    others = {
        other: frechet(features[:n], half) for other, features in real.items() if other != code and len(features) >= n
    }
    nearest = min(others, key=lambda other: others[other], default=None)
    return Likeness(
        n=n,
        made=frechet(made[:n], half),
        real=frechet(images[n : 2 * n], half),
        other=None if nearest is None else others[nearest],
        nearest=nearest,
        variety=mean_distance(made) / max(mean_distance(images), 1e-12),
    )
