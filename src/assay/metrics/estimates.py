"""How much each image moves a metric, and with that how sure it is: estimates of fractions, rankings and losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from scipy import sparse

from assay.arrays import Reals
from assay.labels.space import Codes
from assay.metrics.intervals import Estimate

ADDED = 4  # images that each fraction is smoothed with, as Agresti & Coull 1998 add to a share
LOSSES = 60  # images that the spread of losses expected by the model counts as

Rows: TypeAlias = sparse.csr_array
"""What each image adds to each of some sums: sparse (sums, N)."""

Spread = Callable[[Reals], Reals]
"""The variance of one image's part in a fraction, by the fraction."""


def mean_of(metric: str, n: int, *parts: tuple[Rows, Rows]) -> Estimate:
    """The mean of shares, given as pairs of sums over and under the line; `n` images have a known label."""
    return _mean(metric, n, parts, lambda share: share * (1 - share))


def mean_of_f1(metric: str, n: int, hits: Rows, given: Rows) -> Estimate:
    """The mean F1 of classes, from hits and from predictions plus labels, both by class.

    The squared influences on a class with F1 f sum to f (1 - f) (2 - f) / given, where mistakes are each of another
    image. Recall and precision of each class are read off these images too: the variance is raised by twice the number
    of classes over that of images, which is next to nothing where each has many.
    """
    found = _mean(metric, n, [(2 * hits, given)], lambda share: share * (1 - share) * (2 - share))
    return replace(found, floor=found.floor + found.variance * 2 * hits.shape[0] / n)


def _mean(metric: str, n: int, parts: Sequence[tuple[Rows, Rows]], spread: Spread) -> Estimate:
    """The mean of fractions over all rows of all parts; a fraction of nothing is 0, and may be anything.

    Classes that are all right, or never, have no influences. So each fraction is smoothed with four images that are as
    right as all of its part are together, and the spread that this adds is the floor of the variance. Of a plain share
    the variance is then that of the smoothed share, and the interval is Wilson's at `n`.
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
    """The mean loss over cells; `expected` is the variance of the summed loss by the model's own probabilities.

    Of few images, none may have been answered wrongly, and their losses tell nothing of what a wrong answer costs: the
    variance that the model expects counts as 60 images where it is larger.
    """
    count = float(cells.sum())
    value = float(losses.sum()) / count
    influence = (losses - value * cells).toarray()[0] / count * np.sqrt(n / max(n - 1, 1))
    missed = max(0.0, expected / count**2 - float(influence @ influence))
    return Estimate("nll", value, n, influence, floor=missed * LOSSES / (LOSSES + n))


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of one tag: its value, its positives, and how much each image moves it (N,)."""

    value: float
    positives: int
    influence: Reals


def average_precision(codes: Codes, scores: Reals) -> AveragePrecision:
    """Precision times growth in recall, not interpolated, over images by falling score; those of one score together.

    `codes` (N,) must hold a positive; unknown ones are left out. `scores` is (N,).
    """
    known = np.flatnonzero(codes >= 0)
    order = known[np.argsort(-scores[known])]  # the order of equal scores does not matter
    falling, positive = scores[order], codes[order] == 1
    changes = falling[1:] != falling[:-1]
    group = np.append(0, np.cumsum(changes))  # of each image, those of one score
    ends = np.flatnonzero(np.append(changes, True))
    hits, ranks = np.cumsum(positive)[ends], (ends + 1).astype(np.float64)
    found, precision, count = np.diff(hits, prepend=0), hits / ranks, int(positive.sum())
    value = float((found * precision).sum() / count)
    # An image raises the hits and the ranks of its own group and of all below it.
    raised, lowered = (np.cumsum(terms[::-1])[::-1][group] for terms in (found / ranks, found * hits / ranks**2))
    influence = np.zeros(len(codes))
    influence[order] = (positive * (precision[group] - value + raised) - lowered) / count
    return AveragePrecision(value, count, influence)


def mean_average_precision(n: int, found: Sequence[AveragePrecision]) -> Estimate:
    """The mean over tags, smoothed as a mean of shares of the positives of each.

    Of few positives the influences miss most of the variance, as each of them is all that is known of its own
    precision: that of a share of as many is larger, and counts as four positives.
    """
    tags, positives = len(found), np.array([one.positives for one in found])
    share = np.array([one.value for one in found])
    together = ((share * positives).sum() + 1) / (positives.sum() + 2)
    added = (share * positives + ADDED * together) / (positives + ADDED)
    shown = np.array([one.influence @ one.influence for one in found])
    missed = np.maximum(0.0, added * (1 - added) / positives - shown) * ADDED / (positives + ADDED)
    return Estimate(
        "mean_average_precision",
        float(share.mean()),
        n,
        np.mean([one.influence for one in found], axis=0),
        floor=float(missed.sum()) / tags**2,
        smoothed=float(added.mean()),
        step=float((1 / positives).sum()) / tags**2 / n,
    )
