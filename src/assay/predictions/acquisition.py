"""Which images to label next, where few labels are known: an order of rows, best first.

All take a `Pool` and return rows of it that have no label. Compared on foundation models' features by Gupte et al. 2024
("Revisiting Active Learning in the Era of Vision Foundation Models"), where DropQuery is introduced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from assay.arrays import Bools, Floats, Ints, Reals, unit_rows
from assay.predictions.baselines import random_rows

AcquisitionName = Literal["random", "uncertainty", "margin", "k_center", "dropquery", "central", "diverse"]

CANDIDATES = 20_000  # images that are clustered: of more, a random part
MOST_CLUSTERS = 1_000  # of 20,000 images: some seconds
PASSES = 3  # of dropout
DROPPED = 0.75  # share of the features that a pass leaves out
DOUBTFUL = 10  # images of least margin that are clustered, for each that is asked for


@dataclass(frozen=True, eq=False)
class Pool:
    """Images of which some are labelled: features (N, F), which are labelled (N,), and probabilities (N, K).

    `predict` is the model that gave the probabilities: features (n, F) -> probabilities (n, K).
    """

    features: Floats
    labelled: Bools
    probabilities: Reals
    predict: Callable[[Floats], Reals]

    @property
    def rows(self) -> Ints:
        """The images without a label."""
        return np.flatnonzero(~self.labelled)


class Acquire(Protocol):
    """Return up to `count` rows of the pool to label next, the best first; randomness comes from the seed alone."""

    def __call__(self, pool: Pool, count: int, *, seed: int) -> Ints: ...


def random(pool: Pool, count: int, *, seed: int) -> Ints:
    """Return images at random."""
    return np.random.default_rng(seed).permutation(pool.rows)[:count]


def uncertainty(pool: Pool, count: int, *, seed: int) -> Ints:
    """Return the images whose most probable class is least probable (Lewis & Gale 1994)."""
    return _lowest(pool.rows, pool.probabilities.max(axis=1), count)


def margin(pool: Pool, count: int, *, seed: int) -> Ints:
    """Return the images whose two most probable classes are closest (Scheffer et al. 2001)."""
    return _lowest(pool.rows, margins(pool.probabilities), count)


def k_center(pool: Pool, count: int, *, seed: int) -> Ints:
    """Return the images farthest from all that are labelled or returned before (core-set, Sener & Savarese 2018).

    Greedy, by Euclidean distance of the features: N x F operations an image.
    """
    rows = random_rows(pool.rows, CANDIDATES, seed)
    vectors = pool.features[rows].astype(np.float32)
    squares = np.einsum("nf,nf->n", vectors, vectors)
    nearest = np.full(len(rows), np.inf, np.float32)

    def approach(centre: Floats) -> None:
        np.minimum(nearest, squares - 2 * (vectors @ centre) + centre @ centre, out=nearest)

    for row in np.flatnonzero(pool.labelled):
        approach(pool.features[row].astype(np.float32))
    chosen: list[int] = []
    for _ in range(min(count, len(rows))):
        best = int(nearest.argmax()) if np.isfinite(nearest).all() else int(squares.argmin())
        chosen.append(best)
        approach(vectors[best])
        nearest[best] = -1.0
    return rows[np.array(chosen, np.int64)]


def dropquery(pool: Pool, count: int, *, seed: int) -> Ints:
    """Return central images of clusters of those whose prediction changes where features are left out.

    DropQuery (Gupte et al. 2024): three passes leave out 75 % of the features at random; candidates are the images of
    which more than half of the passes predict another class than all the features do. They are clustered into `count`
    parts by k-means, and the image closest to each centre is taken. Where there are fewer candidates, the images of
    least margin follow.
    """
    chance = np.random.default_rng(seed)
    rows = random_rows(pool.rows, CANDIDATES, seed)
    vectors, whole = pool.features[rows], pool.probabilities[rows].argmax(axis=1)
    changed = np.zeros(len(rows))
    for _ in range(PASSES):
        kept = chance.random(vectors.shape, np.float32) >= DROPPED
        changed += pool.predict(vectors * kept / np.float32(1 - DROPPED)).argmax(axis=1) != whole
    candidates = rows[changed > PASSES / 2]
    chosen = candidates[_centres(pool.features[candidates], min(count, len(candidates)), seed=seed)]
    return _then_margin(pool, chosen, count)


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
    rows = margin(pool, DOUBTFUL * count, seed=seed)
    weights = 1 - margins(pool.probabilities[rows])
    chosen = rows[_centres(pool.features[rows], min(count, len(rows)), weights=weights, seed=seed)]
    return _then_margin(pool, chosen, count)


ACQUISITIONS: dict[AcquisitionName, Acquire] = {
    "random": random,
    "uncertainty": uncertainty,
    "margin": margin,
    "k_center": k_center,
    "dropquery": dropquery,
    "central": central,
    "diverse": diverse,
}


def margins(probabilities: Reals) -> Reals:
    """Return the most probable class's probability less the next one's, (N,)."""
    if probabilities.shape[1] < 2:
        return np.asarray(probabilities.max(axis=1))
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def _lowest(rows: Ints, scores: Reals, count: int) -> Ints:
    return rows[np.argsort(scores[rows], kind="stable")[:count]]


def _then_margin(pool: Pool, chosen: Ints, count: int) -> Ints:
    """Return the chosen rows, and those of least margin behind them where they are fewer than `count`."""
    rest = margin(pool, count + len(chosen), seed=0)
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
