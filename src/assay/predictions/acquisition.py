"""Which images to label next, where few labels are known: an order of rows, best first.

All take a `Pool` and return rows of it that have no label. Compared on foundation models' features by Gupte et al. 2024
("Revisiting Active Learning in the Era of Vision Foundation Models"), where DropQuery is introduced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from assay.arrays import Bools, Floats, Ints, Reals
from assay.predictions.baselines import random_rows

AcquisitionName = Literal["random", "uncertainty", "margin", "k_center", "dropquery", "central"]

CANDIDATES = 20_000  # images that are clustered: of more, a random part
PASSES = 3  # of dropout
DROPPED = 0.75  # share of the features that a pass leaves out


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
    chosen = candidates[_centres(pool.features[candidates], min(count, len(candidates)), seed)]
    rest = margin(pool, count + len(chosen), seed=seed)
    return np.append(chosen, rest[~np.isin(rest, chosen)])[:count]


def central(pool: Pool, count: int, *, seed: int) -> Ints:
    """Return the image closest to the centre of each of `count` clusters, of the largest cluster first.

    For the first labels, when no model is there (Hacohen et al. 2022, "Active Learning on a Budget": typical images
    first).
    """
    rows = random_rows(pool.rows, CANDIDATES, seed)
    return rows[_centres(pool.features[rows], min(count, len(rows)), seed)]


ACQUISITIONS: dict[AcquisitionName, Acquire] = {
    "random": random,
    "uncertainty": uncertainty,
    "margin": margin,
    "k_center": k_center,
    "dropquery": dropquery,
    "central": central,
}


def margins(probabilities: Reals) -> Reals:
    """Return the most probable class's probability less the next one's, (N,)."""
    if probabilities.shape[1] < 2:
        return np.asarray(probabilities.max(axis=1))
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def _lowest(rows: Ints, scores: Reals, count: int) -> Ints:
    return rows[np.argsort(scores[rows], kind="stable")[:count]]


def _centres(vectors: Floats, count: int, seed: int) -> Ints:
    """Return the vector closest to the centre of each of `count` clusters, of the largest cluster first."""
    from sklearn.cluster import KMeans

    if count < 1:
        return np.zeros(0, np.int64)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    clusters = KMeans(count, n_init=1, max_iter=30, random_state=seed).fit(vectors)
    distance = ((vectors - clusters.cluster_centers_[clusters.labels_]) ** 2).sum(axis=1)
    order = np.lexsort((distance, clusters.labels_))
    names, first = np.unique(clusters.labels_[order], return_index=True)
    sizes = np.bincount(clusters.labels_)[names]
    return order[first][np.argsort(-sizes, kind="stable")]
