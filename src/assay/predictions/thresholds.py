"""Where a tag begins: thresholds of a multi-label head that are best for a metric, found exactly where a tag is known.

A metric changes only where a threshold passes a probability, so that trying one threshold between each two
neighbours tries them all (Lipton et al. 2014 for F1). Codes are (N, K) with -1 where unknown, probabilities
(N, K) in float32. Among thresholds that are equally good the one nearest one half is taken. A tag without a known
positive has no recall to weigh against its false alarms: the best would be never to give it. It keeps one half
instead, and the others are the best beside that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from assay.arrays import Doubles, Floats, Ints, Reals
from assay.errors import PlanError
from assay.labels.space import Codes

MetricName = Literal["micro_f1", "macro_f1", "subset_accuracy", "hamming_loss"]

HALF = 0.5
ABOVE_ALL = np.nextafter(np.float32(1), np.float32(2))  # a probability of 1 is below it
FEW = 20


def best_global(codes: Codes, probabilities: Reals, metric: MetricName) -> float:
    """The one threshold for all tags of a head at which a metric is best."""
    if not (codes == 1).any():
        return HALF
    answers = probabilities.astype(np.float32).ravel()
    known = np.flatnonzero(codes.ravel() >= 0)
    order = known[np.argsort(-answers[known])]
    falling = answers[order]
    ends = _ends(falling)
    curve = _curve(codes, probabilities, order, metric)
    return _nearest_half(_cuts(falling[ends]), curve[np.append(0, ends + 1)])


def best_by_class(codes: Codes, probabilities: Reals, metric: MetricName) -> Floats:
    """The thresholds (K,), one a tag, at which a metric is best, given that tags never there keep one half.

    Macro F1 and the Hamming loss are means over tags, so each tag's own best will do. Micro F1 is one
    fraction over all tags and is best by Dinkelbach's iteration (1967). Subset accuracy is neither: it
    raises PlanError.
    """
    if metric == "subset_accuracy":
        raise PlanError(
            "by: class with metric: subset_accuracy: whether an image is right hangs on all its tags at once, "
            "so no tag has a best threshold of its own. Choose by: global, or another metric."
        )
    there = (codes == 1).any(axis=0)
    options = {int(tag): _Options.of(codes[:, tag], probabilities[:, tag]) for tag in np.flatnonzero(there)}
    given_anyway = int(((probabilities >= HALF) & (codes >= 0))[:, ~there].sum())
    over, under = _best_fraction(list(options.values()), given_anyway) if metric == "micro_f1" else (0, 1)
    thresholds = np.full(codes.shape[1], HALF, dtype=np.float32)
    for tag, own in options.items():
        values: npt.NDArray[Any] = {
            "micro_f1": 2 * own.hits * under - over * own.given,
            "macro_f1": 2 * own.hits / (own.given + own.support),
            "hamming_loss": 2 * own.hits - own.given,
        }[metric]
        thresholds[tag] = _nearest_half(own.cuts, values)
    return thresholds


def few_positives(codes: Codes) -> Ints:
    """The tags whose own threshold rests on fewer than 20 positives; one without any has none of its own."""
    positives = (codes == 1).sum(axis=0)
    return np.flatnonzero((positives > 0) & (positives < FEW))


def without_positives(codes: Codes) -> Ints:
    """The tags that are nowhere known to be there, and keep one half."""
    return np.flatnonzero(~(codes == 1).any(axis=0))


@dataclass(frozen=True)
class _Options:
    """The thresholds (G,) worth trying for one tag, falling, with the hits and the tags given at each.

    Of no use is a threshold that gives more tags than the one before it and hits no more.
    """

    cuts: Floats
    hits: Ints
    given: Ints
    support: int

    @staticmethod
    def of(codes: Codes, probabilities: Reals) -> _Options:
        known = codes >= 0
        answers = probabilities[known].astype(np.float32)
        order = np.argsort(-answers)
        falling, positive = answers[order], codes[known][order]
        ends = _ends(falling)
        hits = np.append(0, positive.cumsum()[ends])
        useful = np.append(True, np.diff(hits) > 0)
        return _Options(_cuts(falling[ends])[useful], hits[useful], np.append(0, ends + 1)[useful], int(hits[-1]))


def _best_fraction(options: list[_Options], given_anyway: int) -> tuple[int, int]:
    """The best micro F1 as a fraction, in whole numbers: 2 hits over tags given and tags there.

    With the value so far, over / under, the tags part: each maximises 2 hits - (over / under) given. What
    they reach is a better value, until it is the same one (Dinkelbach 1967).
    """
    support = sum(own.support for own in options)
    over, under = 0, 1
    while True:
        best = [int(np.argmax(2 * own.hits * under - over * own.given)) for own in options]
        hits = sum(int(own.hits[row]) for own, row in zip(options, best, strict=True))
        given = given_anyway + sum(int(own.given[row]) for own, row in zip(options, best, strict=True))
        if 2 * hits * under <= over * (given + support):
            return over, under
        over, under = 2 * hits, given + support


def _curve(codes: Codes, probabilities: Reals, order: Ints, metric: MetricName) -> npt.NDArray[Any]:
    """A metric, higher being better, with the first 0, 1, 2 ... cells of `order` (n,) given: (n + 1,)."""
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
    return np.append(0, _rises_of_subset_accuracy(codes, probabilities).ravel()[order].cumsum())


def _rises_of_macro_f1(codes: Codes, probabilities: Reals) -> Doubles:
    """What each cell (N, K) adds to macro F1 when tags are given from the most probable cell down."""
    rises = np.zeros(codes.shape)
    there = np.flatnonzero((codes == 1).any(axis=0))
    for tag in there:
        known = np.flatnonzero(codes[:, tag] >= 0)
        order = known[np.argsort(-probabilities[known, tag])]
        positive = codes[order, tag]
        f1 = 2 * positive.cumsum() / (np.arange(1, len(order) + 1) + positive.sum())
        rises[order, tag] = np.diff(f1, prepend=0) / len(there)
    return rises


def _rises_of_subset_accuracy(codes: Codes, probabilities: Reals) -> Ints:
    """What each cell (N, K) adds to the images all right when tags are given from the most probable cell down.

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
    """The last position of each group of equal values."""
    return np.flatnonzero(np.append(falling[1:] != falling[:-1], True))


def _cuts(distinct: Floats) -> Floats:
    """Thresholds (G + 1,) midway between falling distinct probabilities (G,): above all, between, below all."""
    edges = np.concatenate([[ABOVE_ALL], distinct, [0]]).astype(np.float32)
    upper, lower = edges[:-1], edges[1:]
    middle = ((upper.astype(np.float64) + lower) / 2).astype(np.float32)
    return np.where(middle > lower, middle, upper)  # nothing lies between neighbours in float32


def _nearest_half(cuts: Floats, values: npt.NDArray[Any]) -> float:
    """Of the thresholds with the highest value, the one nearest one half."""
    best = cuts[values == values.max()]
    return float(best[np.argmin(np.abs(best - HALF))])
