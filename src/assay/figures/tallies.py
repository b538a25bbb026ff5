"""What a head's figures are made of: sums over pictures, of which any weighting can be read off.

Every figure of a head can be computed from sums over pictures (hits, predictions and labels by class, loss,
gaps between confidence and truth), or for the average precision from sums over ranked pictures. The sums are
sparse matrices, so that a figure and its 1,000 bootstrap resamples are the same few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from assay.figures.frequency import Group
from assay.figures.intervals import Floats
from assay.labels.space import Codes, Head

BINS = 15  # of the calibration error
TOP = 5


def f1(hits: Floats, predicted: Floats, support: Floats) -> Floats:
    """F1 by class, 0 where a class is neither predicted nor there; all arrays (K, ...)."""
    return ratio(2 * hits, predicted + support, otherwise=0.0)


def macro_f1(hits: Floats, predicted: Floats, support: Floats) -> Floats:
    """Mean F1 over the classes that occur in the truth; (K, ...) to (...), NaN where none does.

    Unlike scikit-learn's default, a class that is only ever predicted, never true, adds no zero of its own:
    it costs the classes whose pictures it took. The classes are those of the balanced accuracy, and the
    figure does not jump when one stray prediction appears. scikit-learn's `labels=np.unique(truth)` agrees.
    """
    return mean_where(f1(hits, predicted, support), support > 0)


def micro_f1(hits: Floats, predicted: Floats, support: Floats) -> Floats:
    """F1 over all cells together; (K, ...) to (...). Under an exclusive head it equals the accuracy."""
    return ratio(2 * hits.sum(axis=0), predicted.sum(axis=0) + support.sum(axis=0), otherwise=0.0)


def balanced_accuracy(hits: Floats, support: Floats) -> Floats:
    """Mean recall over the classes that occur in the truth; (K, ...) to (...)."""
    return mean_where(ratio(hits, support, otherwise=0.0), support > 0)


def balanced_accuracy_of_tags(hits: Floats, predicted: Floats, support: Floats, known: Floats) -> Floats:
    """Mean over tags of the recall of pictures with the tag and of those without; (K, ...) to (...).

    Tags that are never or always there are left out.
    """
    absent = known - support
    recalls = ratio(hits, support, otherwise=0.0) + ratio(absent - (predicted - hits), absent, otherwise=0.0)
    return mean_where(recalls / 2, (support > 0) & (absent > 0))


def confusion(codes: Codes, predicted: Codes, *, size: int) -> npt.NDArray[np.int64]:
    """Pictures by true class (rows) and predicted class (columns), (K, K); unknown labels left out."""
    known = codes >= 0
    return np.bincount(codes[known] * size + predicted[known], minlength=size * size).reshape(size, size)


@dataclass(frozen=True)
class Ranking:
    """One tag's pictures by falling score, cut after each group of equal scores that holds a positive.

    order: the known pictures up to the last positive, of `pictures` in all; positive: which of them are.
    cuts: (G,) positions in `order`; only they are needed: precision counts where recall grows, nowhere else.
    """

    order: npt.NDArray[np.int64]
    positive: npt.NDArray[np.bool_]
    cuts: npt.NDArray[np.int64]
    pictures: int

    @cached_property
    def value(self) -> float:
        """Average precision of every picture once: precision times growth in recall, not interpolated."""
        hits = np.cumsum(self.positive)[self.cuts]
        return float((np.diff(hits, prepend=0) * hits / (self.cuts + 1)).sum() / hits[-1])

    @cached_property
    def _segments(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Sparse (G, N): which pictures, and which positives, lie between one cut and the next."""
        segment = np.searchsorted(self.cuts, np.arange(len(self.order)))
        shape, found = (len(self.cuts), self.pictures), self.positive
        everything = _sparse([(segment, self.order, 1.0)], shape)
        return everything, _sparse([(segment[found], self.order[found], 1.0)], shape)

    def average_precision(self, weights: Floats) -> Floats:
        """The same of weights (N, B), to (B,); NaN in a resample without a positive."""
        everything, positive = self._segments
        found = positive @ weights
        hits = found.cumsum(axis=0)
        precision = ratio(hits, (everything @ weights).cumsum(axis=0), otherwise=0.0)
        return ratio((found * precision).sum(axis=0), hits[-1])


@dataclass(frozen=True)
class Tally:
    """What each picture adds to each sum: `cells` is sparse (sums, N), the first 3 K sums counts by class.

    n: pictures with a known label; rankings: one for each tag of an independent head that has a positive.
    """

    head: Head
    n: int
    cells: sparse.csr_array
    rankings: dict[int, Ranking] = field(default_factory=dict)

    @cached_property
    def counts(self) -> tuple[Floats, Floats, Floats]:
        """Hits, predictions and labels by class, each (K,)."""
        hits, predicted, support = self.cells.sum(axis=1)[: 3 * self.head.size].reshape(3, -1)
        return hits, predicted, support

    def values(self) -> dict[str, float]:
        """The figures that are defined, on all pictures once; empty without a known label."""
        if not self.n:
            return {}
        precisions = [np.array([ranking.value]) for ranking in self.rankings.values()]
        figures = self._read(self.cells.sum(axis=1, dtype=np.float64)[:, None], precisions)
        return {name: float(value[0]) for name, value in figures.items() if np.isfinite(value[0])}

    def figures(self, weights: Floats) -> dict[str, Floats]:
        """Every figure (B,) of weights (N, B), NaN where undefined."""
        precisions = [ranking.average_precision(weights) for ranking in self.rankings.values()]
        return self._read(self.cells @ weights, precisions)

    def of_classes(self, group: Group, weights: Floats) -> dict[str, Floats]:
        """Mean recall and F1 (B,) of some classes, and the share of their pictures that were named right, or found.

        Of weights (N, B); NaN where none of the classes occurs.
        """
        places = np.array(group.classes)
        size = self.head.size
        sums = self.cells[np.concatenate([places, size + places, 2 * size + places])] @ weights
        hits, predicted, support = sums.reshape(3, len(places), -1)
        return {
            "recall": balanced_accuracy(hits, support),
            "f1": macro_f1(hits, predicted, support),
            "accuracy": ratio(hits.sum(axis=0), support.sum(axis=0)),
        }

    def _read(self, sums: Floats, precisions: list[Floats]) -> dict[str, Floats]:
        hits, predicted, support = sums[: 3 * self.head.size].reshape(3, self.head.size, -1)
        f1s = {
            "macro_f1": macro_f1(hits, predicted, support),
            "micro_f1": micro_f1(hits, predicted, support),
        }
        if self.head.kind == "exclusive":
            top, loss, *gaps = sums[3 * self.head.size :]
            n = support.sum(axis=0)
            return {
                "accuracy": ratio(hits.sum(axis=0), n),
                "balanced_accuracy": balanced_accuracy(hits, support),
                **f1s,
                **({"top_5": ratio(top, n)} if self.head.size > TOP else {}),  # of fewer classes it is always 1
                "nll": ratio(loss, n),
                "calibration_error": ratio(np.abs(gaps).sum(axis=0), n),
            }
        wrong, cells, loss, right, n = sums[3 * self.head.size : 3 * self.head.size + 5]
        known = sums[3 * self.head.size + 5 :]
        stacked = np.array(precisions).reshape(len(precisions), sums.shape[1])
        return {
            "mean_average_precision": mean_where(np.nan_to_num(stacked), np.isfinite(stacked)),
            "balanced_accuracy": balanced_accuracy_of_tags(hits, predicted, support, known),
            **f1s,
            "subset_accuracy": ratio(right, n),
            "hamming_loss": ratio(wrong, cells),
            "nll": ratio(loss, cells),
        }


def exclusive(head: Head, codes: Codes, probabilities: Floats) -> Tally:
    """Sums: hits, predicted, support (K each), top-5, loss, and the gap of each bin of confidence.

    The calibration error is that of Guo et al. 2017: 15 bins of equal width, open below and closed above.
    Among equal probabilities the earlier class comes first, as in the prediction itself.
    """
    size, pictures = head.size, np.flatnonzero(codes >= 0)
    truth, rows = codes[pictures], probabilities[pictures]
    predicted = rows.argmax(axis=1)
    confidence, own = rows.max(axis=1).astype(np.float64), rows[np.arange(len(rows)), truth]
    level = (rows == own[:, None]) & (np.arange(size) < truth[:, None])
    ahead = ((rows > own[:, None]) | level).sum(axis=1)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    hit = predicted == truth
    parts = [
        (truth[hit], pictures[hit], 1.0),
        (size + predicted, pictures, 1.0),
        (2 * size + truth, pictures, 1.0),
        (3 * size, pictures[ahead < TOP], 1.0),
        (3 * size + 1, pictures, -np.log(_clipped(own))),
        (3 * size + 2 + bins, pictures, hit - confidence),
    ]
    return Tally(head, len(pictures), _sparse(parts, (3 * size + 2 + BINS, len(codes))))


def independent(head: Head, codes: Codes, probabilities: Floats, cuts: Floats) -> Tally:
    """Sums: hits, predicted, support (K each), wrong cells, known cells, loss, pictures all right, pictures, known (K).

    A tag is given from its threshold up; `cuts` is (N, K). Loss and Hamming loss are means over known cells; a
    picture is all right where every known cell is.
    """
    size, known = head.size, codes >= 0
    truth, given = codes == 1, (probabilities >= cuts.astype(probabilities.dtype)) & known
    loss = -np.log(_clipped(np.where(truth, probabilities, 1 - probabilities.astype(np.float64))))
    wrong = ((truth != given) & known).sum(axis=1)
    pictures = np.flatnonzero(known.any(axis=1))
    parts: list[tuple[Any, Any, Any]] = [
        (first * size + tags, rows, 1.0)
        for first, (rows, tags) in enumerate(map(np.nonzero, (truth & given, given, truth)))
    ]
    parts += [
        (3 * size, pictures, wrong[pictures]),
        (3 * size + 1, pictures, known.sum(axis=1)[pictures]),
        (3 * size + 2, pictures, np.where(known, loss, 0.0).sum(axis=1)[pictures]),
        (3 * size + 3, pictures[wrong[pictures] == 0], 1.0),
        (3 * size + 4, pictures, 1.0),
    ]
    rows, tags = np.nonzero(known)
    parts.append((3 * size + 5 + tags, rows, 1.0))
    rankings = {int(tag): ranking(codes[:, tag], probabilities[:, tag]) for tag in np.flatnonzero(truth.any(axis=0))}
    return Tally(head, len(pictures), _sparse(parts, (4 * size + 5, len(codes))), rankings)


def ranking(codes: Codes, scores: Floats) -> Ranking:
    """Rank one tag's known pictures; `codes` (N,) must hold a positive, `scores` is (N,)."""
    known = np.flatnonzero(codes >= 0)
    order = known[np.argsort(-scores[known])]  # the order of equal scores does not matter
    falling, positive = scores[order], codes[order] == 1
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # of each group of equal scores
    cuts = ends[np.diff(np.cumsum(positive)[ends], prepend=0) > 0]
    reached = slice(0, cuts[-1] + 1)
    return Ranking(order[reached], positive[reached], cuts, len(codes))


def _sparse(parts: Sequence[tuple[Any, Any, Any]], shape: tuple[int, int]) -> sparse.csr_array:
    """One matrix of (sum, picture, value) parts, each broadcast to its pictures; equal cells add up."""
    spread = [np.broadcast_arrays(sums, pictures, values) for sums, pictures, values in parts]
    sums, pictures, values = (np.concatenate([part[axis] for part in spread]) for axis in range(3))
    return sparse.csr_array((values.astype(np.float32), (sums, pictures)), shape=shape)


def ratio(over: Floats, under: Floats, *, otherwise: float = np.nan) -> Floats:
    """`over / under`, and `otherwise` where nothing is below the line."""
    result = np.full(np.broadcast_shapes(over.shape, under.shape), otherwise, dtype=np.float64)
    return np.divide(over, under, out=result, where=under > 0)


def mean_where(values: Floats, where: npt.NDArray[np.bool_]) -> Floats:
    """Mean over the first axis of the values that count; NaN where none does."""
    return ratio((values * where).sum(axis=0), where.sum(axis=0))


def _clipped(probabilities: Floats) -> Floats:
    """Kept away from 0 and 1 by what float32 resolves, so that no loss is infinite (scikit-learn's rule)."""
    smallest = float(np.finfo(np.float32).eps)
    return np.clip(probabilities.astype(np.float64), smallest, 1 - smallest)
