"""Copies among images: exact ones by content, changed ones by what they show; clusters of them, conflicts and leaks.

A changed copy is recognised in two stages. Perceptual signatures, the lowest frequencies of an image and of windows of
it (as pHash, Zauner 2010, without rounding to bits), give candidates; mirrored ones too, without a further transform.
Of a candidate pair one image is then laid over the other, and they are copies where they agree far better than either
does with its other candidates: how well different images agree depends on the data set, and on the image. Likely pairs
are compared once more in greater detail, where different things of one outline differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from assay.arrays import Bools, Floats, Ints, Pixels
from assay.images.colour import GREY
from assay.repair.nearest import nearest_to
from assay.repair.registration import agreement, detailed_agreement, turn, turned

FREQUENCIES = 8  # of each direction in a signature
SIDE = 32  # of the images that are compared
SIDES = {1.0: (0.0,), 0.88: (0.0, 0.06, 0.12), 0.76: (0.0, 0.08, 0.16, 0.24)}  # of windows, and where they begin
TURNS, TURNED = (-6.0, 6.0), 0.85  # degrees by which a window is turned, and its side
MANY = 50_000  # images above which only the largest windows are compared, so that an hour does not become a day
CANDIDATES = 3  # nearest signatures of each window, one of which may be that of the image itself
LEAST, NEAREST = 0.65, 6  # cosine of signatures from which a pair is compared, and how many pairs of an image
DETAILED = 64  # side at which pairs that are likely are compared again
LIKELY, SAME, NOISE = 0.6, 0.87, 2.0  # least agreement of a likely pair, of one of one image, and levels of noise
LIKELY_UNIQUE, UNIQUE, SHARED = 0.8, 0.6, 0.3  # what copies disagree by, as a share of what the next candidate does
RARE, CERTAIN = 0.05, 0.01  # quantile of what unknown candidates disagree by, and the least that is assumed
PLAIN = 0.25  # standard deviation of the levels of an image that shows nothing, such as calm water
FRAMED, LEVEL, EDGE = 0.3, 4.0, 5.0  # a border: share of a side at most, levels within it, and of the step at its end
BLOCK, QUERIES = 1024, 65_536  # images at a time, and signatures
BITS = 7  # of 63 that the hashes of candidates differ in at most
MIRRORED = np.uint64(0x5555555555555555)  # bits of odd frequencies from left to right
Hashes: TypeAlias = npt.NDArray[np.uint64]


class Window(NamedTuple):
    """A part of an image, in shares of its sides, whether it is mirrored, and by how many degrees it is turned."""

    top: float
    left: float
    side: float
    mirrored: bool = False
    angle: float = 0.0

    def map(self) -> Floats:
        """Return the map (2, 3) of coordinates from -1 to 1 in the window to those of the whole image."""
        across = -self.side if self.mirrored else self.side
        part = [[across, 0, 2 * self.left + self.side - 1], [0, self.side, 2 * self.top + self.side - 1], [0, 0, 1]]
        return np.asarray((turn(self.angle) @ np.array(part, np.float32))[:2])


def exact_pairs(hashes: Sequence[str | None]) -> Ints:
    """Return pairs (P, 2) of rows with the same content hash: each later row with the first one."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(hash_, row), row) for row, hash_ in enumerate(hashes) if hash_ is not None]
    return _pairs(np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64))


def near_pairs(pixels: Pixels, *, progress: Callable[[int, int], None] | None = None) -> tuple[Ints, Floats]:
    """Return pairs (P, 2) of rows that show one image, and their agreement (P,) up to 1; most similar first.

    `pixels` (N, S, S, 3), as of a cache. Exact copies are among the pairs, but where an image shows nothing at all: two
    blank images cannot be distinguished. Of an image with many copies only some pairs are returned; `clusters` has all.
    `progress` is called with the images that are done, and all: an image is half done once it has its candidates.
    """
    if len(pixels) < 2:
        return _pairs(np.empty(0, np.int64)), np.empty(0, np.float32)
    images = _thumbnails(pixels, np.arange(len(pixels)), SIDE)
    count = len(images)
    report = progress or (lambda done, total: None)
    pairs, maps = _candidates(images, lambda share: report(int(share * count / 2), count))
    similarity, maps = agreement(
        images, pairs, maps, progress=lambda share: report(int((1 + share) * count / 2), count)
    )
    similarity[_plain(images)[pairs].any(axis=1) | (similarity < LIKELY)] = 0
    likely = np.flatnonzero(standing_out(pairs, similarity, count=count, unique=LIKELY_UNIQUE))
    rows, ends = np.unique(pairs[likely], return_inverse=True)
    detailed, contrasts = detailed_agreement(_thumbnails(pixels, rows, DETAILED), ends.reshape(-1, 2), maps[likely])
    # Noise of a copy hides what has little contrast: correlations fall by the share that it has of the variance.
    least = np.maximum(SAME / (1 + (NOISE / (contrasts + 1e-6)) ** 2), LIKELY)
    similarity[likely] = np.where(detailed < least, 0, detailed)
    chosen = likely[standing_out(pairs, similarity, count=count, unique=UNIQUE)[likely]]
    report(count, count)
    pairs, similarity = _pairs(pairs[chosen]), similarity[chosen]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -similarity))
    return pairs[order], similarity[order]


def plain_images(pixels: Pixels) -> Bools:
    """Return which images (N, S, S, 3) show nothing, such as calm water, and are copies of none."""
    return _plain(_thumbnails(pixels, np.arange(len(pixels)), SIDE))


def standing_out(pairs: Ints, similarity: Floats, *, count: int, unique: float) -> Bools:
    """Return which of the candidate pairs (P, 2) of `count` images, of a similarity (P,) up to 1, are copies.

    What the candidates of an image disagree by, 1 - similarity, is ordered. Copies are those before a gap: the first
    one disagrees by at most `unique` of what the next does, and several by at most SHARED. A pair of copies is one by
    the order of both its images, and a similarity of 0 is none. Behind the last of NEAREST candidates there may be
    more, as alike as the last ones of all images: RARE of these disagree less than is assumed of the next.
    """
    ends, gaps = pairs.T.ravel(), np.tile(1 - similarity, 2)
    order = np.lexsort((gaps, ends))
    ends, gaps = ends[order], gaps[order]
    first, last = (np.diff(ends, **beyond) != 0 for beyond in ({"prepend": -1}, {"append": -1}))
    group = np.cumsum(first) - 1
    rank = np.arange(len(ends)) - np.flatnonzero(first)[group]
    full = last & (rank + 1 >= NEAREST)
    furthest_gaps = np.ones(count)
    furthest_gaps[ends[full]] = gaps[full]
    unknown = max(CERTAIN, float(np.quantile(furthest_gaps, RARE)))
    following = np.where(last, np.where(full, unknown, 1.0), np.roll(gaps, -1))
    ahead = (gaps <= np.where(rank == 0, unique, SHARED) * following) & (gaps < 1)
    furthest = np.full(group.max(initial=-1) + 1, -1)
    np.maximum.at(furthest, group[ahead], rank[ahead])
    copies = np.empty(len(ends), np.bool_)
    copies[order] = rank <= furthest[group]
    return np.asarray(copies.reshape(2, -1).all(axis=0))


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


def windows(count: int) -> list[Window]:
    """Return the windows that are compared with the whole of `count` images, plain and mirrored."""
    grid = [
        (top, left, side)
        for side, begins in SIDES.items()
        for top in begins
        for left in begins
        if side != 0.88 or (top == 0.06) == (left == 0.06)  # the centre and the corners
    ]
    chosen = grid if count <= MANY else grid[:1]
    # Mirrored and cropped by a quarter is rare enough not to be looked for, and so is mirrored and turned.
    used = [Window(*part, mirrored) for part in chosen for mirrored in (False, True) if not mirrored or part[2] > 0.8]
    inset = (1 - TURNED) / 2
    return used + [Window(inset, inset, TURNED, angle=angle) for angle in TURNS if count <= MANY]


def signatures(images: Floats, window: Window) -> Floats:
    """Return the signatures (N, 63) of a window of grey images (N, S, S).

    They are amplitudes of cosines, larger ones for higher frequencies, of which natural images have less.
    """
    frequency = np.arange(FREQUENCIES)
    cosines = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * frequency[:, None])
    side = images.shape[1]
    if window.angle:
        images = turned(images, window.angle)
    rows, columns = (
        cosines @ _areas(side, np.array([begin * side]), np.array([(begin + window.side) * side]))[0]
        for begin in (window.top, window.left)
    )
    if window.mirrored:
        columns = columns * (-1.0) ** frequency[:, None]
    weights = np.hypot(frequency[:, None], frequency) ** 0.5
    values = rows.astype(np.float32) @ images @ columns.T.astype(np.float32) * weights.astype(np.float32)
    return np.asarray(values.reshape(len(images), -1)[:, 1:], np.float32)


def perceptual_hashes(pixels: Pixels) -> Hashes:
    """Return a hash of 64 bits (N,) of what each image (N, S, S, 3) shows, 0 of one that shows nothing.

    They are the signs of its signature: those of pHash (Zauner 2010), but around 0, so that the bits of a mirrored
    image are those of `MIRRORED` apart.
    """
    images = _thumbnails(pixels, np.arange(len(pixels)), SIDE)
    bits = np.ones((len(images), 64), np.bool_)  # the last one is no sign: no image with content has the hash 0
    bits[:, :-1] = signatures(images, Window(0, 0, 1)) > 0
    hashes = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)[:, 0]
    return np.where(_plain(images), np.uint64(0), hashes)


def alike(hashes: Hashes) -> Bools:
    """Return which hashes (N,) are within `BITS` of that of another image, or of its mirror image; 0 is of none.

    Of so few bits that differ, one byte of the eight holds none: only hashes that share a byte are compared
    (multi-index hashing, Norouzi et al. 2012, section 3). The cost grows with the square of the images.
    """
    visible = hashes != 0
    unique, index, counts = np.unique(hashes[visible], return_inverse=True, return_counts=True)
    matched = counts > 1
    pool, owner = np.concatenate([unique, unique ^ MIRRORED]), np.tile(np.arange(len(unique)), 2)
    for byte in pool.view(np.uint8).reshape(-1, 8).T:
        order = np.argsort(byte, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(byte[order])) + 1):
            upright = members[members < len(unique)]
            for start in range(0, len(upright), BLOCK):
                some = upright[start : start + BLOCK]
                near = np.bitwise_count(pool[some, None] ^ pool[members]) <= BITS
                near &= some[:, None] != owner[members]
                matched[some] |= near.any(axis=1)
                matched[owner[members[near.any(axis=0)]]] = True
    result = np.zeros(len(hashes), np.bool_)
    result[visible] = matched[index]
    return result


def _candidates(images: Floats, progress: Callable[[float], None]) -> tuple[Ints, Floats]:
    """Return pairs (P, 2) of a template and an image with a window that is like it, and the map (P, 2, 3) of that.

    `progress` is called with the share that is done.
    """
    count, used = len(images), windows(len(images))
    likely: list[tuple[Ints, Floats, Ints]] = []

    def blocks() -> Iterator[Floats]:
        return (
            signatures(images[start : start + QUERIES], window) for window in used for start in range(0, count, QUERIES)
        )

    done = 0
    for rows, cosines in nearest_to(signatures(images, used[0]), blocks(), CANDIDATES):
        query = (done + np.arange(len(rows))) % count
        chosen = (cosines > LEAST) & (rows != query[:, None])
        likely.append(
            (
                np.stack([rows, np.broadcast_to(query[:, None], rows.shape)], axis=2)[chosen],
                cosines[chosen],
                np.full(chosen.sum(), done // count),
            )
        )
        done += len(rows)
        progress(done / (count * len(used)))
    pairs, cosines, number = (np.concatenate(part) for part in zip(*likely, strict=True))
    one, other = _pairs(pairs).T
    order = np.lexsort((number, -cosines, other, one))
    _, first = np.unique(one[order] * count + other[order], return_index=True)
    best = order[first]
    best = best[_ranks(np.concatenate([one[best], other[best]]), cosines[best]) < NEAREST]
    return pairs[best], np.array([window.map() for window in used])[number[best]]


def _ranks(ends: Ints, cosines: Floats) -> Ints:
    """Return the rank (P,) of each pair among those of its two images (2 P,), first by first: the better of the two."""
    order = np.lexsort((-np.tile(cosines, 2), ends))
    begins = np.flatnonzero(np.diff(ends[order], prepend=-1))
    ranks = np.empty(len(ends), np.int64)
    ranks[order] = np.arange(len(ends)) - np.repeat(begins, np.diff(begins, append=len(ends)))
    return np.asarray(ranks.reshape(2, -1).min(axis=0))


def _plain(images: Floats) -> Bools:
    return np.asarray(images.std(axis=(1, 2)) < PLAIN)


def _thumbnails(pixels: Pixels, rows: Ints, size: int) -> Floats:
    """Return these rows of images as (n, size, size) in grey, without borders of one colour."""
    images = np.empty((len(rows), size, size), np.float32)
    for start in range(0, len(rows), BLOCK):
        grey = np.asarray(pixels[rows[start : start + BLOCK]] @ GREY.astype(np.float32), np.float32)
        down, across = _within_border(grey), _within_border(grey.transpose(0, 2, 1))
        side = grey.shape[1]
        parts = _areas(side, *down, size) @ grey @ _areas(side, *across, size).transpose(0, 2, 1)
        images[start : start + BLOCK] = parts
    return images


def _within_border(grey: Floats) -> tuple[Ints, Ints]:
    """Return the first line (b,) of each image (b, S, S) within its border, and the one after the last.

    A border is of one level and ends in a step along most of a side, unlike the ground before which a thing stands;
    where there is none an image begins at 0.
    """
    side, limits = grey.shape[1], []
    mean, deviation = grey.mean(axis=2), grey.std(axis=2)
    steps = (np.abs(np.diff(grey, axis=1)) > EDGE).mean(axis=2)
    for level, spread, step in ((mean, deviation, steps), (mean[:, ::-1], deviation[:, ::-1], steps[:, ::-1])):
        flat = (spread < LEVEL) & (np.abs(level - level[:, :1]) < LEVEL)
        width = np.where(flat.all(axis=1), 0, np.argmin(flat, axis=1))
        sharp = np.take_along_axis(step, np.clip(width - 1, 0, side - 2)[:, None], axis=1)[:, 0] > 0.5
        # One line more: that between border and image holds some of both.
        limits.append(np.where((width > 0) & (width <= FRAMED * side) & sharp, width + 1, 0))
    return limits[0], side - limits[1]


def _areas(side: int, begin: Ints, end: Ints, size: int = SIDE) -> Floats:
    """Return the matrices (b, size, side) that reduce the pixels from `begin` to `end` (b,) to `size` means."""
    edges = begin[:, None] + (end - begin)[:, None] * np.linspace(0, 1, size + 1)
    pixel = np.arange(side)
    inside = np.minimum(edges[:, 1:, None], pixel + 1) - np.maximum(edges[:, :-1, None], pixel)
    inside = np.clip(inside, 0, None)
    return np.asarray(inside / inside.sum(axis=2, keepdims=True), np.float32)


def _pairs(pairs: Ints) -> Ints:
    return np.sort(pairs.reshape(-1, 2), axis=1)
