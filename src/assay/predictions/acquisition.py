"""Which images to label next, where few labels are known: an order of rows, best first.

All take a `Pool` and return up to `count` rows of it that have no label; randomness comes from the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from assay.arrays import Bools, Floats, Ints, Reals, unit_rows
from assay.predictions.baselines import random_rows

CANDIDATES = 20_000  # images that are clustered: of more, a random part
MOST_CLUSTERS = 1_000  # of 20,000 images: some seconds
DOUBTFUL = 10  # images of least margin that are clustered, for each that is asked for


@dataclass(frozen=True, eq=False)
class Pool:
    """Images of which some are labelled: features (N, F), which are labelled (N,), and probabilities (N, K)."""

    features: Floats
    labelled: Bools
    probabilities: Reals

    @property
    def rows(self) -> Ints:
        """The images without a label."""
        return np.flatnonzero(~self.labelled)


def margin(pool: Pool, count: int) -> Ints:
    """Return the images whose two most probable classes are closest (Scheffer et al. 2001)."""
    rows = pool.rows
    return rows[np.argsort(margins(pool.probabilities)[rows], kind="stable")[:count]]


def central(pool: Pool, count: int, *, seed: int) -> Ints:
    """Return the image closest to the centre of each of the largest clusters without a labelled image.

    For the first labels, when no model is there or none to rely on. There are as many clusters as images are labelled
    and asked for (TypiClust, Hacohen et al. 2022, "Active Learning on a Budget").
    """
    rows, known = random_rows(pool.rows, CANDIDATES, seed), np.flatnonzero(pool.labelled)
    clusters = min(count + len(known), MOST_CLUSTERS, len(rows))
    chosen = rows[_centres(pool.features[rows], clusters, known=pool.features[known], seed=seed)]
    return _then_margin(pool, chosen[:count], count)


def diverse(pool: Pool, count: int, *, seed: int) -> Ints:
    """Return the image closest to the centre of each of `count` clusters of those of least margin.

    The ten times `count` images of least margin are clustered by k-means, in which an image weighs one less its margin
    (Zhdanov 2019, "Diverse mini-batch active learning").
    """
    rows = margin(pool, DOUBTFUL * count)
    weights = 1 - margins(pool.probabilities[rows])
    chosen = rows[_centres(pool.features[rows], min(count, len(rows)), weights=weights, seed=seed)]
    return _then_margin(pool, chosen, count)


def margins(probabilities: Reals) -> Reals:
    """Return the most probable class's probability less the next one's, (N,)."""
    if probabilities.shape[1] < 2:
        return np.asarray(probabilities.max(axis=1))
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def _then_margin(pool: Pool, chosen: Ints, count: int) -> Ints:
    """Return the chosen rows, and those of least margin behind them where they are fewer than `count`."""
    rest = margin(pool, count + len(chosen))
    return np.append(chosen, rest[~np.isin(rest, chosen)])[:count]


def _centres(
    vectors: Floats, count: int, *, weights: Reals | None = None, known: Floats | None = None, seed: int
) -> Ints:
    """Return the vector closest to the centre of each of `count` clusters without a `known` one, the largest first."""
    from sklearn.cluster import KMeans

    if count < 1:
        return np.zeros(0, np.int64)
    known = vectors[:0] if known is None else known
    everything = unit_rows(np.concatenate([vectors, known]))
    clusters = KMeans(count, n_init=1, max_iter=30, random_state=seed).fit(everything, sample_weight=weights)
    cluster, covered = np.split(clusters.labels_, [len(vectors)])
    distance = ((everything[: len(vectors)] - clusters.cluster_centers_[cluster]) ** 2).sum(axis=1)
    free = np.flatnonzero(~np.isin(cluster, covered))
    order = free[np.lexsort((distance[free], cluster[free]))]
    names, first = np.unique(cluster[order], return_index=True)
    sizes = np.bincount(cluster, minlength=count)[names]
    return order[first][np.argsort(-sizes, kind="stable")]
