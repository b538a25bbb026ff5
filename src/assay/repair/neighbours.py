"""Probabilities of classes by the labels of the nearest images in feature space."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from assay.arrays import Floats, Ints, Reals
from assay.errors import DataError
from assay.labels.space import Codes, Head

BLOCK = 16_000_000  # similarities at a time: 64 MB
COPY = 1e-5  # share of the squared lengths below which a squared distance is that of a copy; float32 is sure of 1e-6


def posterior(head: Head, codes: Codes, features: Reals, *, neighbours: int = 20, fold: Ints | None = None) -> Floats:
    """Return probabilities (N, K) of classes by the nearest other images; NaN for images without a known label.

    The neighbours are the images with a known label of least cosine distance, of features standardised over these.
    The image itself and copies of it, which would repeat its label, are none of them, and none of the same `fold`
    (N,) is, where one is given: images of one group lie in one fold. A neighbour counts by
    (1 + cosine) / 2, which breaks ties; the prior of the classes counts as one neighbour more (m-estimate, Cestnik
    1990), so that a tag of which no neighbour knows has its prior.

    Raises DataError where a feature of a labelled image is no finite number.
    """
    rows = np.flatnonzero(head.known(codes))
    probabilities = np.full((len(codes), head.size), np.nan, np.float32)
    if len(rows) == 0:
        return probabilities
    vectors = _standardised(head, rows, features)
    known, present = (cells(codes[rows]).astype(np.float32) for cells in (head.decided, head.present))
    prior = present.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    parts = None if fold is None else fold[rows]
    for block, nearest, weights in _nearest(vectors, count=min(neighbours, len(rows)), fold=parts):
        have = np.einsum("bn,bnk->bk", weights, present[nearest])
        total = np.einsum("bn,bnk->bk", weights, known[nearest])
        probabilities[rows[block]] = (have + prior) / (total + 1)
    return probabilities


def _standardised(head: Head, rows: Ints, features: Reals) -> Floats:
    """Return features of these rows, each with mean 0 and deviation 1 over them; 0 where it never varies."""
    vectors = features[rows].astype(np.float32, copy=False)  # a copy already, changed in place below
    good = np.isfinite(vectors).all(axis=1)
    if not good.all():
        raise DataError(
            f"Head {head.name!r}, row {rows[~good][0]}: the features of this image are no finite numbers "
            f"({np.count_nonzero(~good)} such rows). Leave out images that could not be read."
        )
    vectors -= vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = np.sqrt(np.einsum("nf,nf->f", vectors, vectors) / np.float32(len(vectors)))
    vectors /= np.where(deviation > 0, deviation, 1)
    return vectors


def _nearest(vectors: Floats, *, count: int, fold: Ints | None) -> Iterator[tuple[slice, Ints, Floats]]:
    """Yield blocks of rows, the `count` nearest others (b, count) of each, and weights, 0 for what is no neighbour."""
    squares = np.einsum("nf,nf->n", vectors, vectors)
    lengths = np.sqrt(np.where(squares > 0, squares, 1))
    step = max(1, BLOCK // len(vectors))
    for start in range(0, len(vectors), step):
        block = slice(start, start + step)
        products = vectors[block] @ vectors.T  # (b, n)
        copies = products >= (squares[block, None] + squares) * np.float32((1 - COPY) / 2)
        products /= lengths
        products[copies] = -np.inf
        if fold is not None:
            products[fold[block, None] == fold] = -np.inf
        nearest = np.argpartition(products, -count, axis=1)[:, -count:]
        cosines = np.take_along_axis(products, nearest, axis=1) / lengths[block, None]
        yield block, nearest, np.maximum((1 + cosines) / 2, 0)
