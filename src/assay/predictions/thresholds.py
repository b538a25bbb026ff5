"""Thresholds of a multi-label head that are exactly optimal for a metric on the known labels.

A metric changes only where a threshold passes a probability, so that trying one threshold between each two
neighbours tries them all (Lipton et al. 2014 for F1). Codes are (N, K) with -1 where unknown, probabilities
(N, K) in float32. Of equally good thresholds the one nearest one half is taken. For a tag without a known
positive the optimum would be never to predict it. It keeps one half instead, and the others are optimal given that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from assay.arrays import Doubles, Floats, Ints, Reals
from assay.errors import PlanError
from assay.labels.space import Codes

MetricName = Literal["micro_f1", "macro_f1", "balanced_accuracy", "subset_accuracy", "hamming_loss"]

HALF = 0.5
ABOVE_ALL = np.nextafter(np.float32(1), np.float32(2))  # a probability of 1 is below it
RARE = 20  # positives; thresholds of tags with fewer are unreliable


def best_global(codes: Codes, probabilities: Reals, metric: MetricName) -> float:
    """Return the one threshold for all tags of a head at which a metric is best."""
    if not (codes == 1).any():
        return HALF
    cells = probabilities.astype(np.float32).ravel()
    known = np.flatnonzero(codes.ravel() >= 0)
    order = known[np.argsort(-cells[known])]
    falling = cells[order]
    ends = _ends(falling)
    curve = _curve(codes, probabilities, order, metric)
    return _nearest_half(_cuts(falling[ends]), curve[np.append(0, ends + 1)])


def best_by_class(codes: Codes, probabilities: Reals, metric: MetricName) -> Floats:
    """Return the thresholds (K,), one a tag, at which a metric is best; tags without a positive keep one half.

    Macro F1, balanced accuracy and the Hamming loss are means over tags, so that tags are independent. Micro F1 is one
    fraction over all tags and is maximised by Dinkelbach's iteration (1967). Subset accuracy is neither: it raises
    PlanError.
    """
    if metric == "subset_accuracy":
        raise PlanError(
            "by: class with metric: subset_accuracy: whether an image is right hangs on all its tags at once, "
            "so no tag has a best threshold by itself. Choose by: global, or another metric."
        )
    there = (codes == 1).any(axis=0)
    options = {int(tag): _Options.of(codes[:, tag], probabilities[:, tag]) for tag in np.flatnonzero(there)}
    given_anyway = int(((probabilities >= HALF) & (codes >= 0))[:, ~there].sum())
    over, under = _best_fraction(list(options.values()), given_anyway) if metric == "micro_f1" else (0, 1)
    thresholds = np.full(codes.shape[1], HALF, dtype=np.float32)
    for tag, option in options.items():
        values: npt.NDArray[Any] = {
            "micro_f1": 2 * option.hits * under - over * option.given,
            "macro_f1": 2 * option.hits / (option.given + option.support),
            "balanced_accuracy": option.recalls(),
            "hamming_loss": 2 * option.hits - option.given,
        }[metric]
        thresholds[tag] = _nearest_half(option.cuts, values)
    return thresholds


def rare_tags(codes: Codes) -> Ints:
    """Return the tags whose threshold is chosen on fewer than 20 positives, but on some."""
    positives = (codes == 1).sum(axis=0)
    return np.flatnonzero((positives > 0) & (positives < RARE))


def without_positives(codes: Codes) -> Ints:
    """Return the tags without a known positive, which keep one half."""
    return np.flatnonzero(~(codes == 1).any(axis=0))


@dataclass(frozen=True)
class _Options:
    """Candidate thresholds (G,) of one tag, falling, with the hits and the predictions at each.

    A threshold that predicts more than the one before it and hits no more is left out.
    """

    cuts: Floats
    hits: Ints
    given: Ints
    support: int
    absent: int  # images known to be without the tag

    def recalls(self) -> npt.NDArray[Any]:
        """Return the sum of the recalls of images with the tag and without it, in integers: times both counts."""
        return self.hits * self.absent - (self.given - self.hits) * self.support

    @staticmethod
    def of(codes: Codes, probabilities: Reals) -> _Options:
        known = codes >= 0
        cells = probabilities[known].astype(np.float32)
        order = np.argsort(-cells)
        falling, positive = cells[order], codes[known][order]
        ends = _ends(falling)
        hits = np.append(0, positive.cumsum()[ends])
        useful = np.append(True, np.diff(hits) > 0)
        given, support = np.append(0, ends + 1)[useful], int(hits[-1])
        return _Options(_cuts(falling[ends])[useful], hits[useful], given, support, len(cells) - support)


def _best_fraction(options: list[_Options], given_anyway: int) -> tuple[int, int]:
    """Return the best micro F1 as a fraction, in integers: 2 hits over predictions plus labels.

    Given the value so far, over / under, tags are independent: each maximises 2 hits - (over / under) given. The
    result is a better value, until it is the same one (Dinkelbach 1967).
    """
    support = sum(option.support for option in options)
    over, under = 0, 1
    while True:
        best = [int(np.argmax(2 * option.hits * under - over * option.given)) for option in options]
        hits = sum(int(option.hits[row]) for option, row in zip(options, best, strict=True))
        given = given_anyway + sum(int(option.given[row]) for option, row in zip(options, best, strict=True))
        if 2 * hits * under <= over * (given + support):
            return over, under
        over, under = 2 * hits, given + support


def _curve(codes: Codes, probabilities: Reals, order: Ints, metric: MetricName) -> npt.NDArray[Any]:
    """Return a metric, higher being better, with the first 0, 1, 2 ... cells of `order` (n,) predicted: (n + 1,)."""
    truth = codes.ravel()[order]
    support = int(truth.sum())
    if metric == "micro_f1":
        hits = np.append(0, truth.cumsum())
        return 2 * hits / (np.arange(len(hits)) + support)
    if metric == "hamming_loss":
        return np.append(0, (2 * truth - 1).cumsum())
    if metric == "macro_f1":
        # Rounded, or sums of the same fractions in another order would not be equal.
        return np.append(0, _rises_of_macro_f1(codes, probabilities).ravel()[order].cumsum()).round(9)
    if metric == "balanced_accuracy":
        return np.append(0, _rises_of_balanced_accuracy(codes).ravel()[order].cumsum()).round(9)
    return np.append(0, _rises_of_subset_accuracy(codes, probabilities).ravel()[order].cumsum())


def _rises_of_macro_f1(codes: Codes, probabilities: Reals) -> Doubles:
    """Return what each cell (N, K) adds to macro F1 when tags are predicted from the most probable cell down."""
    rises = np.zeros(codes.shape)
    there = np.flatnonzero((codes == 1).any(axis=0))
    for tag in there:
        known = np.flatnonzero(codes[:, tag] >= 0)
        order = known[np.argsort(-probabilities[known, tag])]
        positive = codes[order, tag]
        f1 = 2 * positive.cumsum() / (np.arange(1, len(order) + 1) + positive.sum())
        rises[order, tag] = np.diff(f1, prepend=0) / len(there)
    return rises


def _rises_of_balanced_accuracy(codes: Codes) -> Doubles:
    """Return what each cell (N, K) adds to the recalls of its tag, of those that are there and are not always there."""
    positives, negatives = (codes == 1).sum(axis=0), (codes == 0).sum(axis=0)
    both = (positives > 0) & (negatives > 0)
    rises = (codes == 1) / np.maximum(positives, 1) - (codes == 0) / np.maximum(negatives, 1)
    return np.asarray(np.where(both, rises, 0.0))


def _rises_of_subset_accuracy(codes: Codes, probabilities: Reals) -> Ints:
    """Return what each cell (N, K) adds to the images all right when tags are predicted from the most probable down.

    An image is right from its least probable true tag down to its most probable false one, if these come
    in that order.
    """
    lowest = np.where(codes == 1, probabilities, np.inf)
    highest = np.where(codes == 0, probabilities, -np.inf)
    right = lowest.min(axis=1) > highest.max(axis=1)
    begins = np.flatnonzero(right & (codes == 1).any(axis=1))
    ends = np.flatnonzero(right & (codes == 0).any(axis=1))
    rises = np.zeros(codes.shape, dtype=np.int64)
    rises[begins, lowest[begins].argmin(axis=1)] = 1
    rises[ends, highest[ends].argmax(axis=1)] = -1
    return rises


def _ends(falling: Reals) -> Ints:
    """Return the last position of each group of equal values."""
    return np.flatnonzero(np.append(falling[1:] != falling[:-1], True))


def _cuts(distinct: Floats) -> Floats:
    """Return thresholds (G + 1,) midway between falling distinct probabilities (G,): above all, between, below all."""
    edges = np.concatenate([[ABOVE_ALL], distinct, [0]]).astype(np.float32)
    upper, lower = edges[:-1], edges[1:]
    middle = ((upper.astype(np.float64) + lower) / 2).astype(np.float32)
    return np.where(middle > lower, middle, upper)  # nothing lies between neighbours in float32


def _nearest_half(cuts: Floats, values: npt.NDArray[Any]) -> float:
    """Return, of the thresholds with the highest value, the one nearest one half."""
    best = cuts[values == values.max()]
    return float(best[np.argmin(np.abs(best - HALF))])
