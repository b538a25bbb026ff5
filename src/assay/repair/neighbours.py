"""Probabilities of classes by the labels of the nearest images in feature space."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from assay.arrays import Floats, Ints, Reals
from assay.errors import DataError
from assay.labels.space import Codes, Head

BLOCK = 16_000_000  # similarities at a time: 64 MB
COPY = 1e-5  # share of the squared lengths below which a squared distance is that of a copy; float32 is sure of 1e-6


def posterior(
    head: Head,
    codes: Codes,
    features: Reals,
    *,
    neighbours: int = 20,
    fold: Ints | None = None,
    held: Reals | None = None,
) -> Floats:
    """Return probabilities (N, K) of classes by the nearest other images; NaN for images without a known label.

    The neighbours are the images with a known label of least cosine distance, of features standardised over these.
    The image itself and copies of it, which would repeat its label, are none of them, and none of the same `fold`
    (N,) is, where one is given: images of one group lie in one fold. A neighbour counts by
    (1 + cosine) / 2, which breaks ties; the prior of the classes counts as one neighbour more (m-estimate, Cestnik
    1990), so that a tag of which no neighbour knows has its prior.

    With `held`, features (M, F) of images that are none of these, the probabilities (M, K) are theirs.
    Raises DataError where a feature of an image to be used is no finite number.
    """
    rows = np.flatnonzero(head.known(codes))
    asked = rows if held is None else np.arange(len(held))
    probabilities = np.full((len(codes) if held is None else len(held), head.size), np.nan, np.float32)
    if len(rows) == 0:
        return probabilities
    known_features = _finite(head, rows, features)
    mean = known_features.mean(axis=0, dtype=np.float64).astype(np.float32)
    vectors, deviation = _standardised(known_features, mean)
    queries = vectors if held is None else (_finite(head, asked, held) - mean) / deviation
    known, present = (cells(codes[rows]).astype(np.float32) for cells in (head.decided, head.present))
    prior = present.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    parts = None if fold is None or held is not None else fold[rows]
    for block, nearest, weights in _nearest(queries, vectors, count=min(neighbours, len(rows)), fold=parts):
        have = np.einsum("bn,bnk->bk", weights, present[nearest])
        total = np.einsum("bn,bnk->bk", weights, known[nearest])
        probabilities[asked[block]] = (have + prior) / (total + 1)
    return probabilities


def neighbour_posterior(
    head: Head, codes: Codes, rows: Ints, cosines: Floats, *, fold: Ints, neighbours: int = 20
) -> Floats:
    """Return probabilities (N, K) as `posterior` does, from known neighbours: rows (N, k) and cosines (N, k).

    Of each image's neighbours, nearest first, the first `neighbours` count that have a known label, lie in another
    `fold` (N,) and are no copy.
    """
    known, present = (cells(codes).astype(np.float32) for cells in (head.decided, head.present))
    prior = present.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    counts = head.known(codes)[rows] & (fold[rows] != fold[:, None]) & (cosines < 1 - COPY)
    counts &= np.cumsum(counts, axis=1) <= neighbours
    weights = np.where(counts, np.maximum((1 + cosines) / 2, 0), 0).astype(np.float32)
    have = np.zeros((len(codes), head.size), np.float32)
    total = np.zeros_like(have)
    for column in range(rows.shape[1]):  # no array (N, k, K), which for many classes is large
        have += weights[:, column, None] * present[rows[:, column]]
        total += weights[:, column, None] * known[rows[:, column]]
    probabilities: Floats = (have + prior.astype(np.float32)) / (total + 1)
    return probabilities


def _finite(head: Head, rows: Ints, features: Reals) -> Floats:
    """Return a copy of the features of these rows. Raises DataError where one is no finite number."""
    vectors = features[rows].astype(np.float32, copy=False)
    good = np.isfinite(vectors).all(axis=1)
    if not good.all():
        raise DataError(
            f"Head {head.name!r}, row {rows[~good][0]}: the features of this image are no finite numbers "
            f"({np.count_nonzero(~good)} such rows). Leave out images that could not be read."
        )
    return vectors


def _standardised(vectors: Floats, mean: Floats) -> tuple[Floats, Floats]:
    """Return vectors, changed in place, with mean 0 and deviation 1, or 0 where they never vary, and divisors (F,)."""
    vectors -= mean
    deviation = np.sqrt(np.einsum("nf,nf->f", vectors, vectors) / np.float32(len(vectors)))
    divisors = np.where(deviation > 0, deviation, 1)
    vectors /= divisors
    return vectors, divisors


def _nearest(
    queries: Floats, vectors: Floats, *, count: int, fold: Ints | None
) -> Iterator[tuple[slice, Ints, Floats]]:
    """Yield blocks of queries, the `count` nearest vectors (b, count) of each, and weights, 0 for what is no neighbour.

    Copies of a query are none, nor are vectors of its `fold`, which is given where the queries are the vectors.
    """
    squares = np.einsum("nf,nf->n", vectors, vectors)
    lengths = np.sqrt(np.where(squares > 0, squares, 1))
    step = max(1, BLOCK // len(vectors))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        lengths_squared = np.einsum("nf,nf->n", queries[block], queries[block])[:, None]
        products = queries[block] @ vectors.T  # (b, n)
        copies = products >= (lengths_squared + squares) * np.float32((1 - COPY) / 2)
        products /= lengths
        products[copies] = -np.inf
        if fold is not None:
            products[fold[block, None] == fold] = -np.inf
        nearest = np.argpartition(products, -count, axis=1)[:, -count:]
        cosines = np.take_along_axis(products, nearest, axis=1) / np.sqrt(
            np.where(lengths_squared > 0, lengths_squared, 1)
        )
        yield block, nearest, np.maximum((1 + cosines) / 2, 0)
