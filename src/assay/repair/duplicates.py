"""Copies among images: exact ones by content, near ones by perceptual hashes; clusters of them, leaks, conflicts.

A perceptual hash holds the signs of the lowest frequencies of an image (pHash, Zauner 2010). Of a cosine transform that
of the mirrored image is known without a further one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from assay.arrays import Bools, Doubles, Floats, Ints, Pixels, Reals
from assay.labels.space import Codes
from assay.repair.nearest import Codes as Bits
from assay.repair.nearest import nearest_codes

FREQUENCIES = 16  # of each direction: 255 signs
SIDE = 32  # of the image whose frequencies are computed
NEIGHBOURS = 4  # hashes that are compared with each
DIFFERING = 40  # bits of 256 up to which two images are copies
BLOCK = 2048  # images at a time
GREY = np.array([0.299, 0.587, 0.114], np.float32)


def exact_pairs(hashes: Sequence[str | None]) -> Ints:
    """Return pairs (P, 2) of rows with the same content hash: each later row with the first one."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(hash_, row), row) for row, hash_ in enumerate(hashes) if hash_ is not None]
    return _pairs(np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2))


def near_pairs(pixels: Pixels, features: Reals | None = None) -> tuple[Ints, Floats]:
    """Return pairs (P, 2) of rows that show one image, and their similarity (P,) from 0 to 1; most similar first.

    `pixels` (N, S, S, 3), as of a cache. Exact copies are among the pairs.
    """
    codes, mirrored = hash_codes(pixels)
    unique, row_of, code_of = _unique(codes)
    rows, differing = nearest_codes(unique, np.concatenate([unique, mirrored[row_of]]), NEIGHBOURS + 1)
    asked = np.tile(np.arange(len(unique)), 2)[:, None]
    close = (differing <= DIFFERING) & (rows != asked)
    linked = np.stack([np.broadcast_to(asked, rows.shape)[close], rows[close]], axis=1)
    same = np.flatnonzero(row_of[code_of] != np.arange(len(codes)))
    pairs = np.concatenate([row_of[linked], np.stack([row_of[code_of[same]], same], axis=1)])
    similarity = np.concatenate([1 - differing[close] / (8 * codes.shape[1]), np.ones(len(same))]).astype(np.float32)
    best: dict[tuple[int, int], float] = {}
    for (one, other), value in zip(np.sort(pairs, axis=1).tolist(), similarity.tolist(), strict=True):
        best[one, other] = max(value, best.get((one, other), 0))
    ordered = sorted(best, key=lambda pair: (-best[pair], pair))
    return _pairs(np.array(ordered, np.int64)), np.array([best[pair] for pair in ordered], np.float32)


def clusters(pairs: Ints, count: int) -> Ints:
    """Return the cluster (N,) of each of `count` images linked by pairs (P, 2), by first row; -1 for images alone."""
    graph = sparse.coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, component = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(component, minlength=1)
    number = np.where(sizes[component] > 1, component, -1)
    _, dense = np.unique(number, return_inverse=True)
    return np.asarray(dense - (number.min(initial=0) < 0), np.int64)


def best_rows(cluster: Ints, *ranks: Ints) -> Ints:
    """Return the row (C,) to keep of each cluster (N,): that of the largest ranks (N,) in turn, or the first."""
    rows = np.flatnonzero(cluster >= 0)
    order = np.lexsort((rows, *(-rank[rows] for rank in reversed(ranks)), cluster[rows]))
    _, first = np.unique(cluster[rows][order], return_index=True)
    return np.asarray(rows[order][first])


def conflicting(cluster: Ints, codes: Codes) -> Bools:
    """Return which clusters (C,) hold two different known labels of a head, whose codes are (N,) or (N, K)."""
    count, known = int(cluster.max(initial=-1)) + 1, codes >= 0
    above = np.iinfo(np.int64).max  # every code
    highest = np.full((count, *codes.shape[1:]), -1)
    lowest = np.full_like(highest, above)
    member = cluster >= 0
    np.maximum.at(highest, cluster[member], codes[member])
    np.minimum.at(lowest, cluster[member], np.where(known, codes, above)[member])
    return np.asarray((highest > lowest).reshape(count, -1).any(axis=1))


def leaking(cluster: Ints, sides: Ints) -> Bools:
    """Return which clusters (C,) lie on two sides of a split (N,); -1 is none."""
    return conflicting(cluster, sides)


def successive(names: Sequence[str]) -> Ints:
    """Return pairs (P, 2) of rows whose names differ in their last number, by one, as those of frames do."""
    row_of: dict[tuple[str, int, str], int] = {}
    for row, name in enumerate(names):
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", name, re.DOTALL)
        if match and len(match[2]) < 19:
            row_of[match[1], int(match[2]), match[3]] = row
    following = [(row, row_of[key]) for (a, n, b), row in row_of.items() if (key := (a, n + 1, b)) in row_of]
    return _pairs(np.array(following, np.int64))


def hash_codes(pixels: Pixels) -> tuple[Bits, Bits]:
    """Return the perceptual hashes (N, 32) of images and of their mirror images, 256 bits each."""
    transform = _cosines(pixels.shape[1]).astype(np.float32)
    signs = np.empty((len(pixels), FREQUENCIES, FREQUENCIES), np.bool_)
    for start in range(0, len(pixels), BLOCK):
        grey = pixels[start : start + BLOCK] @ GREY
        signs[start : start + BLOCK] = transform @ grey @ transform.T > 0
    signs[:, 0, 0] = False
    flipped = signs.copy()
    flipped[:, :, 1::2] ^= True
    return _packed(signs), _packed(flipped)


def _packed(signs: Bools) -> Bits:
    return np.packbits(signs.reshape(len(signs), -1), axis=1)


def _cosines(side: int) -> Doubles:
    """Return the cosine transform (FREQUENCIES, side) of what a line of an image is when reduced to SIDE values."""
    edges = np.linspace(0, side, SIDE + 1)
    pixel = np.arange(side)
    area = np.clip(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None)
    angles = np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(FREQUENCIES)[:, None]
    return np.asarray(np.cos(angles) @ (area / area.sum(axis=1, keepdims=True)))


def _unique(codes: Bits) -> tuple[Bits, Ints, Ints]:
    """Return the different codes (U, B), the first row (U,) of each, and the code (N,) of each row."""
    whole = np.ascontiguousarray(codes).view(f"V{codes.shape[1]}").reshape(-1)
    _, row_of, code_of = np.unique(whole, return_index=True, return_inverse=True)
    return codes[row_of], row_of, code_of


def _pairs(pairs: Ints) -> Ints:
    return np.sort(pairs.reshape(-1, 2), axis=1)
