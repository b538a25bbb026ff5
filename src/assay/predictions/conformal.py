"""Prediction sets: the classes of an image that are as probable as classes that validation images have.

Conformal risk control (Angelopoulos et al. 2024): the risk of an image is the share of its classes that the set misses,
and the threshold is the largest at which the mean risk of n validation images and one more, whose risk is taken for 1,
is at most 1 - coverage. For a multi-class head this is split conformal prediction with the score 1 - p (Sadinle et al.
2019): on average over draws of validation, a set holds the class of a new image with at least that probability. For
tags, at least that share of an image's tags is in its set, on average over the images with a tag. By class, both are
one quantile a class, of the images that have it (Vovk 2012).
"""

from __future__ import annotations

import math
from itertools import product
from typing import TypedDict

import numpy as np

from assay.arrays import Bools, Floats, Reals
from assay.labels.space import Codes, Head
from assay.metrics.selective import set_coverage
from assay.models.uncertainty import Cells
from assay.predictions.cross_fitting import folds_of

COVERAGES = (0.8, 0.9, 0.95)  # that are measured
FOLDS = 5
EVERY = np.float32(0)  # a threshold that all classes reach
ROUNDING = 1e-6  # of sums of weights such as a third


def present_cells(head: Head, codes: Codes, probabilities: Reals) -> Cells:
    """Return the classes that images are known to have, with the probabilities (N, K) that they are given."""
    rows, classes = head.present_at(codes)
    count = np.bincount(rows, minlength=len(codes))
    values = probabilities[rows, classes].astype(np.float32)
    order = np.argsort(values, kind="stable")
    weights = (1 / count[rows[order]]).astype(np.float32)
    return Cells(values[order], classes[order].astype(np.int64), weights, int((count > 0).sum()))


def threshold(cells: Cells, coverage: float) -> np.float32:
    """Return the probability from which a class is in the set; 0 where too few images are known for this coverage."""
    return _largest(cells.probabilities, cells.weights, cells.images, coverage)


def class_thresholds(cells: Cells, coverage: float, size: int) -> Floats:
    """Return the threshold of each class by itself (K,), from the images that have it."""
    cuts = np.full(size, EVERY)
    for number in range(size):
        values = cells.probabilities[cells.classes == number]
        cuts[number] = _largest(values, np.ones(len(values), np.float32), len(values), coverage)
    return cuts


def set_thresholds(cells: Cells, coverage: float, size: int, *, by_class: bool) -> Floats:
    """Return the probability (K,) from which each class is in the set of an image."""
    if by_class:
        return class_thresholds(cells, coverage, size)
    return np.full(size, threshold(cells, coverage))


class SetScore(TypedDict):
    """Coverage and mean size of the sets of a head, as JSON has it."""

    head: str
    coverage: float
    by_class: bool
    covered: dict[str, float | int | None]
    size: float


def set_scores(head: Head, codes: Codes, probabilities: Reals, cells: Cells | None = None) -> list[SetScore]:
    """Return how often sets hold the classes of labelled images, and their size, at several coverages.

    The sets are those of `cells`; without them of the images themselves, each of a threshold from the other folds.
    """
    scores: list[SetScore] = []
    parts = [(slice(None), cells)] if cells is not None else _folds(head, codes, probabilities)
    sets = np.empty(probabilities.shape, np.bool_)
    for coverage, by_class in product(COVERAGES, (False, True)):
        for inside, others in parts:
            cuts = set_thresholds(others, coverage, head.size, by_class=by_class)
            sets[inside] = probabilities[inside] >= cuts
        covered = set_coverage(head, codes, sets)
        if covered is not None:
            size = float(sets[head.known(codes)].sum(axis=1).mean())
            scores.append(SetScore(
                head=head.name, coverage=coverage, by_class=by_class, covered=covered.to_json(), size=size
            ))  # fmt: skip
    return scores


def _folds(head: Head, codes: Codes, probabilities: Reals) -> list[tuple[Bools | slice, Cells]]:
    """Return of each fold its images (N,), and the cells of the images outside."""
    fold = folds_of(len(codes), FOLDS, seed=0)
    masks = [fold == number for number in np.unique(fold)]
    return [(inside, present_cells(head, np.where(head.spread(inside), -1, codes), probabilities)) for inside in masks]


def least_images(coverage: float) -> int:
    """Return how many images with a class a threshold needs; of fewer, every class is in every set."""
    return math.ceil(1 / (1 - coverage) - 1 - ROUNDING)


def _largest(values: Floats, weights: Floats, images: int, coverage: float) -> np.float32:
    """Return the largest of rising values below which cells of at most the allowed weight lie."""
    allowed = (1 - coverage) * (images + 1) - 1 + ROUNDING
    if allowed < 0:
        return EVERY
    first = np.searchsorted(values, values, side="left")  # of equal values: the weight below all of them
    below = np.append(0.0, np.cumsum(weights, dtype=np.float64))[first]
    return np.float32(values[np.flatnonzero(below <= allowed)[-1]])
