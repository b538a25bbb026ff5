"""Estimates of fractions, losses, rankings and calibration errors: a value, and the influence of each image on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from scipy import sparse

from assay.arrays import Bools, Ints, Reals
from assay.labels.space import Codes
from assay.metrics.intervals import Estimate, Limits, Z

ADDED = 4  # images that each fraction is smoothed with, as Agresti & Coull 1998 add to a share
LOSSES = 60  # images that the variance of losses expected by the model counts as
BINS = 15  # of confidence, at most

Rows: TypeAlias = sparse.csr_array
"""The summands of each image, one row a sum: sparse (sums, N)."""

Spread = Callable[[Reals], Reals]
"""Fraction -> variance of one image's summand."""


def mean_of(metric: str, n: int, *parts: tuple[Rows, Rows]) -> Estimate:
    """Return the mean of shares, given as pairs of numerators and denominators; `n` images have a known label."""
    return _mean(metric, n, parts, lambda share: share * (1 - share))


def mean_of_f1(metric: str, n: int, hits: Rows, given: Rows) -> Estimate:
    """Return the mean F1 of classes, from hits and from predictions plus labels, both by class.

    The squared influences on a class with F1 f sum to f (1 - f) (2 - f) / given, where mistakes are each of another
    image. Recall and precision of each class are estimated from these images too: the variance is raised by twice the
    number of classes over that of images, which is negligible where each class has many.
    """
    estimate = _mean(metric, n, [(2 * hits, given)], lambda share: share * (1 - share) * (2 - share))
    return replace(estimate, floor=estimate.floor + estimate.variance * 2 * hits.shape[0] / n)


def f1_of_each(n: int, hits: Reals, given: Reals) -> list[Estimate]:
    """Return F1 of each class by itself, from hits (C,) and from predictions plus labels (C,), both above 0 in sum.

    As `mean_of_f1` of that class alone: an image that is right moves an F1 of f by 2 (1 - f) / given, a mistake by
    f / given. These squares are summed in the floor: no influence of each image is kept.
    """
    value = 2 * hits / given
    smoothed = (2 * hits + ADDED * (2 * hits + 1) / (given + 2)) / (given + ADDED)
    squares = (hits * (2 - 2 * value) ** 2 + (given - 2 * hits) * value**2) / given**2
    before, after = (share * (1 - share) * (2 - share) for share in (value, smoothed))
    variance = (squares + np.maximum(0.0, (after - before) / given)) * (1 + 2 / n)
    columns = (one.tolist() for one in (value, variance, smoothed, 1 / given / n))
    return [
        Estimate("f1", share, n, np.empty(0), floor=floor, smoothed=middle, step=step)
        for share, floor, middle, step in zip(*columns, strict=True)
    ]


def _mean(metric: str, n: int, parts: Sequence[tuple[Rows, Rows]], spread: Spread) -> Estimate:
    """Return the mean of fractions over all rows of all parts; with an empty denominator 0, of infinite variance.

    Classes that are always or never right have no influences. So each fraction is smoothed with four images that are
    right as often as all of its part, and the variance that this adds is the floor. For a plain share the variance is
    then that of the smoothed share, and the interval is Wilson's at `n`.
    """
    influence = np.zeros(parts[0][0].shape[1])
    value = smoothed = missed = step = 0.0
    for over, under in parts:
        above, below = over.sum(axis=1), under.sum(axis=1)
        if not below.all():
            return Estimate(metric, 0.0, n, influence, floor=np.inf, step=np.inf)
        share = above / below
        together = (above.sum() + 1) / (below.sum() + 2)
        added = (above + ADDED * together) / (below + ADDED)
        influence += over.T @ (1 / below) - under.T @ (share / below)
        missed += float(((spread(added) - spread(share)) / below).sum())
        value, smoothed, step = value + share.sum(), smoothed + added.sum(), step + (1 / below).sum()
    rows = sum(over.shape[0] for over, _ in parts)
    return Estimate(
        metric,
        float(value / rows),
        n,
        influence / rows,
        floor=max(0.0, missed) / rows**2,
        smoothed=float(smoothed / rows),
        step=float(step) / rows**2 / n,
    )


def mean_loss(n: int, losses: Rows, cells: Rows, *, expected: float) -> Estimate:
    """Return the mean loss over cells; `expected` is the variance of the summed loss by the model's own probabilities.

    Few images may hold no wrong prediction, and their losses then do not show what one costs: the variance that the
    model expects counts as 60 images where it is larger.
    """
    count = float(cells.sum())
    value = float(losses.sum()) / count
    influence = (losses - value * cells).toarray()[0] / count * np.sqrt(n / max(n - 1, 1))
    missed = max(0.0, expected / count**2 - float(influence @ influence))
    return Estimate("nll", value, n, influence, floor=missed * LOSSES / (LOSSES + n))


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of one tag: its value, its positives, and the influence of each image (N,)."""

    value: float
    positives: int
    influence: Reals


def average_precision(codes: Codes, scores: Reals) -> AveragePrecision:
    """Return the sum of precision times growth in recall, not interpolated, over the distinct scores (falling).

    `codes` (N,) must hold a positive; unknown ones are left out. `scores` is (N,).
    """
    known = np.flatnonzero(codes >= 0)
    order = known[np.argsort(-scores[known])]  # the order of equal scores does not matter
    falling, positive = scores[order], codes[order] == 1
    changes = falling[1:] != falling[:-1]
    group = np.append(0, np.cumsum(changes))  # of each image, those of one score
    ends = np.flatnonzero(np.append(changes, True))
    hits, ranks = np.cumsum(positive)[ends], (ends + 1).astype(np.float64)
    new, precision, count = np.diff(hits, prepend=0), hits / ranks, int(positive.sum())
    value = float((new * precision).sum() / count)
    # An image raises the hits and the ranks of its own group and of all below it.
    raised, lowered = (np.cumsum(terms[::-1])[::-1][group] for terms in (new / ranks, new * hits / ranks**2))
    influence = np.zeros(len(codes))
    influence[order] = (positive * (precision[group] - value + raised) - lowered) / count
    return AveragePrecision(value, count, influence)


def mean_average_precision(n: int, by_tag: Sequence[AveragePrecision]) -> Estimate:
    """Return the mean over tags, smoothed as a mean of shares of the positives of each.

    Of few positives the influences miss most of the variance, as the precision at each of them is known from it
    alone: that of a share of as many is larger, and counts as four positives.
    """
    tags, positives = len(by_tag), np.array([one.positives for one in by_tag])
    share = np.array([one.value for one in by_tag])
    together = ((share * positives).sum() + 1) / (positives.sum() + 2)
    added = (share * positives + ADDED * together) / (positives + ADDED)
    variance = np.array([one.influence @ one.influence for one in by_tag])
    missed = np.maximum(0.0, added * (1 - added) / positives - variance) * ADDED / (positives + ADDED)
    return Estimate(
        "mean_average_precision",
        float(share.mean()),
        n,
        np.mean([one.influence for one in by_tag], axis=0),
        floor=float(missed.sum()) / tags**2,
        smoothed=float(added.mean()),
        step=float((1 / positives).sum()) / tags**2 / n,
    )


def calibration_error(confidence: Reals, right: Bools) -> tuple[float, Limits]:
    """Return the calibration error of confidences (N,) of predictions right or not (N,), and its 95 % interval; N > 0.

    It is the root of the mean squared difference between confidence and accuracy, over bins of equally many images
    (Kumar, Liang & Ma 2019, "Verified Uncertainty Calibration"). The plain estimate adds the noise of each bin to its
    difference and is never 0, not even for a perfect model; here that noise is left out, so that the squared error is
    unbiased: in each bin the products of the gaps of different images have the squared gap of the bin as their mean.

    For an error e, this mean of products has the variance A + C e²: A from the noise of the bins, C from the spread of
    predictions around the gap. The interval holds all e whose square is within 1.96 of its standard deviations; 0 is
    among them wherever the model may be calibrated (after Sun et al. 2024, whose two cases of calibrated and
    uncalibrated models the two terms are). For one image it is 0, from 0 to 1.
    """
    n = len(confidence)
    if n < 2:
        return 0.0, (0.0, 1.0)
    bins = _bins(confidence)
    count = np.bincount(bins).astype(np.float64)
    gap: Reals = right - confidence.astype(np.float64)
    products = np.bincount(bins, gap) ** 2 - np.bincount(bins, gap**2)  # over all pairs of one bin
    squared = float((products / (count - 1)).sum() / n)
    noise, slope = _variance(confidence, right, bins, count)
    middle = squared + Z**2 * slope / 2
    half = Z * float(np.sqrt(max(0.0, noise + slope * squared + Z**2 * slope**2 / 4)))
    value = float(np.sqrt(max(0.0, squared)))
    low, high = (float(np.sqrt(max(0.0, limit))) for limit in (middle - half, middle + half))
    return value, (min(low, value), min(1.0, max(high, value)))


def _bins(confidence: Reals) -> Ints:
    """Return the bin (N,) of each image: about N^0.4 bins of equal size, at least 2; equal confidences share one."""
    n = len(confidence)
    count = min(BINS, max(1, min(round(n**0.4), n // 2)))
    ordered = np.sort(confidence)
    first = np.searchsorted(ordered, ordered)  # of the images of the same confidence
    begins = np.unique(first[np.linspace(0, n, count, endpoint=False).astype(np.int64)])
    kept = [0]
    for begin in begins.tolist():
        if begin - kept[-1] >= 2 and n - begin >= 2:
            kept.append(begin)
    return np.searchsorted(ordered[kept], confidence, side="right") - 1


def _variance(confidence: Reals, right: Bools, bins: Ints, count: Reals) -> tuple[float, float]:
    """Return A and C: the variance of the squared error where it is 0, and how much it grows with it.

    The variance in a bin is that of its accuracy, smoothed with four images that are right as often as the confidence
    states; with few mistakes this is close to 0, so that for A it is at least that of the stated confidence. That is
    lowered by as much as it exceeds the accuracy on all images, to which four are added of which two are wrong: else
    a model that is always certain would seem to be measured without noise.
    """
    n, total = len(confidence), float(confidence.sum())
    over = max(0.0, total / n - (float(right.sum()) + ADDED / 2) / (n + ADDED))
    stated = np.maximum(0.0, np.bincount(bins, confidence) / count - over)
    share = (np.bincount(bins, right) + ADDED * stated) / (count + ADDED)
    spread = share * (1 - share)
    noise = 2 / n**2 * float((np.maximum(spread, stated * (1 - stated)) ** 2 * count / (count - 1)).sum())
    # weighted as the gaps are: bins of much spread are those that can be far off
    slope = 4 / n * float((count * spread**2).sum() / max(float((count * spread).sum()), np.finfo(np.float64).tiny))
    return noise, slope
