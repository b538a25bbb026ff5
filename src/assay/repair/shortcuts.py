"""Shortcuts: what is not the subject of an image, and gives its class away all the same.

A small linear model learns each class from one cue alone, such as the corners or the size of the file, and is measured
out of fold by the area under the ROC curve (AUC). A class is named where the cue beats chance and, where the subject
may reach into the cue, also beats a control of the same kind: corners are compared with other patches, the border with
rings further inside, the bytes of a file with what the pixels need. Colour that fills an image says as much in one
patch as in another, and so is not named.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from scipy.special import ndtri

from assay.arrays import Bools, Doubles, Floats, Ints, Pixels, Reals
from assay.images.file_facts import FileFacts
from assay.labels.samples import Samples
from assay.labels.space import Codes, LabelSpace
from assay.metrics.intervals import TAIL, Metric, Z
from assay.training.feature_blocks import moments

CueName = Literal[
    "border", "corners", "mean_colour", "file_size", "image_size", "aspect", "format", "camera", "position"
]

CUE_TEXTS: dict[CueName, str] = {
    "border": "the border of the image",
    "corners": "one corner of the image",
    "mean_colour": "the mean colour",
    "file_size": "the size of the file",
    "image_size": "width and height",
    "aspect": "the aspect",
    "format": "the format of the file",
    "camera": "the camera in the EXIF data",
    "position": "the position in the list of files",
}
"""What each cue is."""

CONTROL_TEXTS: dict[CueName, str] = {
    "border": "rings further inside",
    "corners": "other patches",
    "file_size": "what the pixels need",
}
"""What the control of a cue is."""

LEAST_LABELS = 10  # images with a class, and without it, from which on it is judged
LEAST_AUC = 0.75  # that the lower limit must reach
MARGIN = 0.5  # of the separations of cue and control, in standard deviations
BINS = 24  # of a number
RARE = 5  # images of a format or camera, of fewer it is one of "others"
RIDGE = 0.1  # strength, with features of variance 1
GRID = 4  # patches along a side
PATCH = 8  # pixels of a patch along a side, as features
IMAGES = 24  # that a finding names
JPEG_QUALITY = 90


class Cue(NamedTuple):
    """Features (N, F) of a cue and of its controls, and which of them are compared.

    Each of `pairs` is a variant of the cue, such as one of four corners, and the controls of which it must beat the
    best. `legitimate`: the cue often is the subject itself, as the blue of the sea, so that no class is named by it.
    """

    name: CueName
    features: Sequence[Floats]
    pairs: Sequence[tuple[int, tuple[int, ...]]] = ((0, ()),)
    legitimate: bool = False


@dataclass(frozen=True, eq=False)
class CueScore:
    """How well a cue tells one class: its AUC out of fold, that of its best control, and images, the best first.

    `named`: it gives the class away.
    """

    cue: CueName
    head: str
    label: str
    auc: Metric
    control: float | None
    named: bool
    rows: Ints

    @property
    def text(self) -> str:
        """Return the score as a sentence."""
        beside = "" if self.control is None else f", {CONTROL_TEXTS[self.cue]} {self.control:.2f}"
        claim = f"{CUE_TEXTS[self.cue]} alone gives {self.label!r} away"
        return f"{claim[0].upper()}{claim[1:]}: AUC {self.auc}, chance 0.50{beside}."


def all_cue_scores(samples: Samples, images: Pixels, facts: FileFacts, folds: Ints) -> list[CueScore]:
    """Return how well each cue tells each class, of images (N, s, s, 3) as `reduced` and their folds (N,)."""
    space, codes = samples.space, samples.codes()
    cues = chain(image_cues(images), file_cues(facts, images), position_cues(samples.ids, space, codes))
    return cue_scores(space, codes, cues, folds)


def cue_scores(space: LabelSpace, codes: Sequence[Codes], cues: Iterable[Cue], folds: Ints) -> list[CueScore]:
    """Return the score of each cue for each class with enough images, those that give it away first.

    `codes` are one array a head, and images that belong together share one of the folds (N,). A class is named by
    limits that allow for the number of classes and cues. A cue that is the same for all images has no score.
    """
    quantile = float(-ndtri(TAIL / max(1, space.width * len(CUE_TEXTS))))
    targets, known = _targets(space, codes)
    owners = [(head.name, name) for head, name in space.columns]
    scores: list[CueScore] = []
    for cue in cues:
        if not np.ptp(cue.features[0], axis=0).any():
            continue
        predicted = [ridge_scores(features, targets, known, folds) for features in cue.features]
        for column, (head, label) in enumerate(owners):
            rows = np.flatnonzero(known[:, column])
            positive = targets[rows, column] == 1
            if min(positive.sum(), (~positive).sum()) < LEAST_LABELS:
                continue
            aucs = [auc_of(one[rows, column], positive) for one in predicted]
            clear = [pair for pair in cue.pairs if not cue.legitimate and _gives_away(pair, aucs, quantile)]
            variant, controls = max(clear or cue.pairs, key=lambda pair: aucs[pair[0]].value)
            best = np.argsort(-predicted[variant][rows[positive], column], kind="stable")[:IMAGES]
            control = max((aucs[number].value for number in controls), default=None)
            auc, images = aucs[variant].metric(), rows[positive][best]
            scores.append(CueScore(cue.name, head, label, auc, control, bool(clear), images))
    return sorted(scores, key=lambda one: (not one.named, -one.auc.value))


def _gives_away(pair: tuple[int, tuple[int, ...]], aucs: Sequence[Auc], quantile: float) -> bool:
    """Return whether a variant clearly beats chance by its interval, and its controls by interval and margin."""
    auc = aucs[pair[0]]
    if auc.value - quantile * auc.deviation <= 0.5 or auc.value - Z * auc.deviation < LEAST_AUC:
        return False
    if not pair[1]:
        return True
    control = max((aucs[number] for number in pair[1]), key=lambda one: one.value)
    (value, influence), (other, other_influence) = auc.separation(), control.separation()
    return value - other > max(MARGIN, quantile * float(np.linalg.norm(influence - other_influence)))


# Small models and their measure.


@dataclass(frozen=True, eq=False)
class Auc:
    """An area under the ROC curve, with its first-order change by each image (N,), as DeLong et al. (1988) have it."""

    value: float
    influence: Doubles
    least: float  # the smallest area that so few images can show

    @property
    def deviation(self) -> float:
        # an area of 1 has no spread; of so few images it is known up to `least`
        return max(float(np.linalg.norm(self.influence)), self.least)

    def metric(self) -> Metric:
        low, high = (float(np.clip(self.value + sign * Z * self.deviation, 0, 1)) for sign in (-1, 1))
        return Metric(self.value, len(self.influence), low, high)

    def separation(self) -> tuple[float, Doubles]:
        """Return how many standard deviations two normal scores of this area lie apart, and its influence (N,)."""
        area = float(np.clip(self.value, self.least, 1 - self.least))
        quantile = float(ndtri(area))
        slope = np.sqrt(2) * np.sqrt(2 * np.pi) * np.exp(quantile**2 / 2)
        return np.sqrt(2) * quantile, slope * self.influence


def auc_of(scores: Reals, positive: Bools) -> Auc:
    """Return the area under the ROC curve of scores (N,), of which these are of the class."""
    order = np.argsort(scores, kind="stable")
    ordered, hits = scores[order], positive[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # of runs of equal scores
    run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(ordered))))
    m, n = int(hits.sum()), int((~hits).sum())
    hits_in, misses_in = (
        np.add.reduceat(hits.astype(np.float64), starts),
        np.add.reduceat((~hits).astype(float), starts),
    )
    below = (np.cumsum(misses_in) - misses_in / 2)[run] / n  # the share of the negatives that a positive exceeds
    above = (m - np.cumsum(hits_in) + hits_in / 2)[run] / m
    influence = np.empty(len(scores))
    influence[order] = np.where(hits, below, above)
    value = float(influence[positive].mean())
    influence -= value
    influence[positive] /= m
    influence[~positive] /= n
    return Auc(value, influence, 1 / (4 * min(m, n)))


def _targets(space: LabelSpace, codes: Sequence[Codes]) -> tuple[Floats, Bools]:
    """Return which classes (N, W) each image has, as 0 and 1, and of which that is known."""
    present = np.concatenate([head.present(known) for head, known in zip(space, codes, strict=True)], axis=1)
    decided = np.concatenate([head.decided(known) for head, known in zip(space, codes, strict=True)], axis=1)
    return present.astype(np.float32), decided


def ridge_scores(features: Floats, targets: Floats, known: Bools, folds: Ints) -> Floats:
    """Return scores (N, W) of ridge regressions on features (N, F), each image by those of the other folds (N,).

    The sums over each fold are made once: 10,000 images of 256 features take about 0.2 s.
    """
    scores = np.zeros(targets.shape, np.float32)
    mean, scale = moments(features)
    standard = np.where(scale > 1e-5, (features - mean) / scale, 0).astype(np.float32)
    standard = np.concatenate([standard, np.ones((len(features), 1), np.float32)], axis=1)
    for columns in _columns_known_alike(known):
        mask = known[:, columns[0]]
        parts = [np.flatnonzero(mask & (folds == fold)) for fold in np.unique(folds)]
        products = [standard[rows].T @ standard[rows] for rows in parts]
        sums = [standard[rows].T @ targets[np.ix_(rows, columns)] for rows in parts]
        whole, total = sum(products), sum(sums)
        for rows, product, part in zip(parts, products, sums, strict=True):
            pull = np.full(standard.shape[1], RIDGE * max(1, mask.sum() - len(rows)), np.float32)
            pull[-1] = 1e-3  # the intercept is free
            weights = np.linalg.solve(whole - product + np.diag(pull), total - part)
            scores[np.ix_(rows, columns)] = standard[rows] @ weights
    return scores


def _columns_known_alike(known: Bools) -> list[Ints]:
    """Return the columns (N, W) in groups that are the same."""
    groups: dict[bytes, list[int]] = {}
    for column, mask in enumerate(known.T):
        groups.setdefault(np.packbits(mask).tobytes(), []).append(column)
    return [np.array(columns, np.int64) for columns in groups.values()]


# Cues.


def image_cues(images: Pixels) -> Iterator[Cue]:
    """Yield the cues in the pixels of images (N, s, s, 3), those of `reduced`."""
    cells = [(row, column) for row in range(GRID) for column in range(GRID)]
    corners = [cell for cell in cells if set(cell) <= {0, GRID - 1}]
    pairs = []
    for row, column in corners:
        distant = [k for k, (r, c) in enumerate(cells) if max(abs(r - row), abs(c - column)) > 1]
        pairs.append((cells.index((row, column)), tuple(distant)))
    yield Cue("corners", [_patch(images, *cell) for cell in cells], pairs)
    side = images.shape[1]
    yield Cue("border", [_ring(images, depth) for depth in (0, side // 8, side // 4)], [(0, (1, 2))])
    yield Cue("mean_colour", [_colours(images)], legitimate=True)


def file_cues(facts: FileFacts, images: Pixels) -> Iterator[Cue]:
    """Yield the cues in the files of images, whose pixels (N, s, s, 3) say how many bytes they need."""
    sizes, needed = np.log(np.maximum(facts.sizes, 1)), np.log(_jpeg_sizes(images))
    yield Cue("file_size", [_bins(sizes), _bins(needed)], [(0, (1,))])
    width, height = np.log(facts.widths), np.log(facts.heights)
    yield Cue("image_size", [np.concatenate([_bins(width), _bins(height)], axis=1)])
    yield Cue("aspect", [_bins(width - height)])
    yield Cue("format", [_one_hot(facts.formats)])
    yield Cue("camera", [_one_hot(facts.cameras)])


def position_cues(ids: Sequence[str], space: LabelSpace, codes: Sequence[Codes]) -> Iterator[Cue]:
    """Yield the position in the list of files, where the list is not sorted by class.

    Where it is, as a folder a class always is, the last number in each file name stands for it.
    """
    heads = [known for head, known in zip(space, codes, strict=True) if head.multiclass]
    if not any(_sorted_by_class(known) for known in heads):
        yield Cue("position", [_bins(np.arange(len(ids), dtype=np.float64))])
        return
    numbers = [re.findall(r"\d+", name.rpartition("/")[2]) for name in ids]
    if ids and all(numbers):
        yield Cue("position", [_bins(np.array([float(number[-1]) for number in numbers]))])


def _sorted_by_class(codes: Codes) -> bool:
    known = codes[codes >= 0]
    return len(known) > 1 and int((np.diff(known) != 0).sum()) < 2 * len(np.unique(known))


def _patch(images: Pixels, row: int, column: int) -> Floats:
    """Return colours and edges (N, F) of one patch of the grid."""
    edges = np.linspace(0, images.shape[1], GRID + 1).astype(int)
    patch = images[:, edges[row] : edges[row + 1], edges[column] : edges[column + 1]].astype(np.float32)
    grey = (patch[..., 0] + patch[..., 1] + patch[..., 2]) / 3  # 5 times as fast as a mean over axis 3
    change = np.abs(np.diff(grey, axis=1, append=grey[:, -1:])) + np.abs(np.diff(grey, axis=2, append=grey[:, :, -1:]))
    both = np.concatenate([patch, change[..., None]], axis=3)
    return _pooled(both, PATCH).reshape(len(images), -1)


def _pooled(values: Floats, most: int) -> Floats:
    """Return means (N, h, w, C) over equal blocks of (N, H, W, C), of at most `most` along a side."""
    step = max(1, -(-values.shape[1] // most))
    starts = np.arange(0, values.shape[1], step), np.arange(0, values.shape[2], step)
    sums = np.add.reduceat(np.add.reduceat(values, starts[0], axis=1), starts[1], axis=2)
    return np.asarray(sums / step**2)


def _ring(images: Pixels, depth: int) -> Floats:
    """Return colours and edges (N, F) of the ring of pixels at this depth from the rim."""
    end = images.shape[1] - 1 - depth
    sides = [
        (images[:, depth, depth : end + 1], images[:, depth + 1, depth : end + 1]),
        (images[:, end, depth : end + 1], images[:, end - 1, depth : end + 1]),
        (images[:, depth : end + 1, depth], images[:, depth : end + 1, depth + 1]),
        (images[:, depth : end + 1, end], images[:, depth : end + 1, end - 1]),
    ]
    columns = []
    for outer, inner in ((a.astype(np.float32), b.astype(np.float32)) for a, b in sides):
        change = np.abs(outer - inner).mean(axis=2)
        columns += [outer.mean(axis=1), outer.std(axis=1), change.mean(axis=1)[:, None], change.std(axis=1)[:, None]]
    return np.concatenate(columns, axis=1)


def _colours(images: Pixels) -> Floats:
    """Return mean and spread of each channel and their products (N, 27)."""
    step = max(1, images.shape[1] // 16)  # 16 x 16 pixels say enough of a mean
    flat = images[:, ::step, ::step].reshape(len(images), -1, 3).astype(np.float32) / 255
    first = np.concatenate([flat.mean(axis=1), flat.std(axis=1)], axis=1)
    upper = np.triu_indices(first.shape[1])
    return np.concatenate([first, first[:, upper[0]] * first[:, upper[1]]], axis=1)


def _jpeg_sizes(images: Pixels) -> Doubles:
    """Return the bytes (N,) of images as JPEGs of one quality; about 0.15 ms an image."""
    sizes = np.empty(len(images))
    for row, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
        sizes[row] = buffer.tell()
    return sizes


def _bins(values: Reals) -> Floats:
    """Return in which of equally filled bins numbers (N,) lie, as (N, bins) zeros and ones."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])) if len(values) else np.empty(0)
    bins: Floats = np.eye(len(edges) + 1, dtype=np.float32)[np.searchsorted(edges, values, side="right")]
    return bins


def _one_hot(names: Sequence[str]) -> Floats:
    """Return which of the names that are frequent each is, as (N, names + 1) zeros and ones."""
    unique, code, count = np.unique(np.array(names, dtype=np.str_), return_inverse=True, return_counts=True)
    kept = np.flatnonzero(count >= RARE)
    position = np.full(len(unique), len(kept))
    position[kept] = np.arange(len(kept))
    columns: Floats = np.eye(len(kept) + 1, dtype=np.float32)[position[code]]
    return columns
