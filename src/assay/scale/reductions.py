"""Reductions over shards: sums of each, added in the order of the shards, equal what all images together give.

Arrays in, arrays out. Every sum is in double precision, so that the order of shards, and nothing else, decides its last
bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy  # its modules are imported when they are first used

from assay.arrays import Doubles, Floats, Ints, Reals
from assay.labels.space import Codes
from assay.metrics.tallies import Tally, macro_f1, micro_f1, ratio

ROUNDING = 1e-6  # of probabilities, as in cleanlab
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of ridge regressions, a share of the variance of the features


def fold_of_groups(groups: Sequence[str], count: int, *, seed: int) -> Ints:
    """Return the fold (N,) of each image by a hash of its group: the same in any shard, and whatever others there are.

    Folds are of about equal size where there are many groups; they are not stratified.
    """
    numbers = {
        group: int.from_bytes(
            hashlib.blake2b(f"{seed} {group}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        )
        for group in dict.fromkeys(groups)
    }
    return np.array([numbers[group] % count for group in groups], np.int64)


# Ridge regressions out of fold.


@dataclass(frozen=True, eq=False)
class RidgeSums:
    """What ridge regressions need of images, by fold: products (folds, F + 1, F + 1) and (folds, F + 1, K).

    The last of the features is 1. Those of several shards are added.
    """

    square: Doubles
    cross: Doubles

    @classmethod
    def of(cls, features: Floats, targets: Reals, weights: Reals, fold: Ints, count: int) -> Self:
        """Return the sums for features (N, F), targets (N, K) and weights (N,), 0 where the label is unknown."""
        rows = _with_one(features)
        square = np.zeros((count, rows.shape[1], rows.shape[1]))
        cross = np.zeros((count, rows.shape[1], targets.shape[1]))
        for number in range(count):
            inside = np.flatnonzero((fold == number) & (weights > 0))
            weighted = rows[inside] * weights[inside, None]
            square[number] = weighted.T @ rows[inside]
            cross[number] = weighted.T @ targets[inside].astype(np.float64)
        return cls(square, cross)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.square + other.square, self.cross + other.cross)

    def coefficients(self, penalty: float) -> Doubles:
        """Return coefficients (folds, F + 1, K): those of a fold by all others, whose sums are the total less its own.

        Ridge regression (Hoerl & Kennard 1970): the squared error, and `penalty` times the weight of the images times
        the squared coefficients of standardised features. The variances come from the same sums.
        """
        total, targets = self.square.sum(axis=0), self.cross.sum(axis=0)
        solved = np.zeros_like(self.cross)
        for number in range(len(solved)):
            square = total - self.square[number]
            weight = square[-1, -1]
            if weight <= 0:
                continue  # no image in the other folds
            variances = np.diag(square) / weight - (square[-1] / weight) ** 2
            pull = penalty * weight * np.maximum(variances, 0)
            pull[:-1] += 1e-9 * weight * max(float(variances[:-1].mean()), 1e-12)  # of features that are constant
            pull[-1] = 0
            system = square + np.diag(pull)
            solved[number] = scipy.linalg.solve(system, targets - self.cross[number], assume_a="sym")
        return solved

    def squared_error(self, coefficients: Doubles) -> float:
        """Return the summed squared error of coefficients out of fold, but for what does not depend on them."""
        fitted = np.einsum("kfw,kfg,kgw->", coefficients, self.square, coefficients, optimize=True)
        return float(fitted - 2 * (coefficients * self.cross).sum())

    def best_coefficients(self, penalties: Sequence[float] = PENALTIES) -> Doubles:
        """Return the coefficients of the penalty with the least squared error out of fold: no image is read again."""
        return min(map(self.coefficients, penalties), key=self.squared_error)


def out_of_fold_scores(features: Floats, fold: Ints, coefficients: Doubles) -> Doubles:
    """Return the scores (N, K) of images, each by the coefficients of its fold."""
    rows = _with_one(features)
    scores = np.empty((len(rows), coefficients.shape[2]))
    for number in range(len(coefficients)):
        inside = np.flatnonzero(fold == number)
        scores[inside] = rows[inside] @ coefficients[number]
    return scores


def class_probabilities(scores: Doubles) -> Floats:
    """Return probabilities (N, K) of regressions on one class or none: cut off at 0, and scaled to sum to 1."""
    positive = np.clip(scores, 1e-6, None)
    return np.asarray(positive / positive.sum(axis=1, keepdims=True), np.float32)


def _with_one(features: Floats) -> Doubles:
    return np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], axis=1)


# Confident joint: two passes over the shards, one for the thresholds and one for the counts.


def confidence_sums(codes: Codes, probabilities: Reals) -> Doubles:
    """Return (2, K): the summed probability of the given class, and the labels, by given class; -1 is unknown."""
    known = np.flatnonzero(codes >= 0)
    given, size = codes[known], probabilities.shape[1]
    confident = np.bincount(given, probabilities[known, given].astype(np.float64), minlength=size)
    return np.stack([confident, np.bincount(given, minlength=size)])


def confident_thresholds(sums: Doubles) -> Doubles:
    """Return from which probability (K,) on a class is confident (Northcutt et al. 2021, eq. 2); of no label 1."""
    return np.asarray(ratio(sums[0], sums[1], otherwise=1.0), np.float64)


def confident_counts(codes: Codes, probabilities: Reals, thresholds: Doubles) -> Ints:
    """Return labels by given class (rows) and confident class (columns), (K, K) (Northcutt et al. 2021, eq. 1).

    As in cleanlab, an image with several confident classes counts for its most probable one.
    """
    size = probabilities.shape[1]
    known = codes >= 0
    given, rows = codes[known], probabilities[known]
    confident = rows >= thresholds - ROUNDING
    among = confident.sum(axis=1)
    guess = np.where(among > 1, rows.argmax(axis=1), confident.argmax(axis=1))
    some = among > 0
    return np.bincount(given[some] * size + guess[some], minlength=size * size).reshape(size, size)


def least_confident(codes: Codes, confidence: Reals, predicted: Ints, joint: Ints) -> Ints:
    """Return the rows of suspect labels: of each class as many as the joint estimates to be wrong, the least confident.

    Pruning by class (Northcutt et al. 2021, section 3.2). `confidence` (N,) is the probability of the given label, and
    `joint` (K, K) is calibrated to the labels. A label that is predicted as it is given is none, as in cleanlab.
    """
    wrong = np.bincount(codes[codes >= 0], minlength=len(joint)) - np.diag(joint)
    suspects = []
    for given in np.flatnonzero(wrong > 0):
        rows = np.flatnonzero(codes == given)
        suspects.append(rows[np.argsort(confidence[rows], kind="stable")[: wrong[given]]])
    rows = np.sort(np.concatenate(suspects)) if suspects else np.zeros(0, np.int64)
    return np.asarray(rows[predicted[rows] != codes[rows]])


# Metrics of a multi-class head.


def metric_sums(tally: Tally) -> dict[str, Doubles]:
    """Return the sums over the images of a shard that metrics are fractions of, by name."""
    return {name: np.asarray(rows.sum(axis=1), np.float64) for name, rows in tally.sums.items()}


def added(parts: Sequence[Mapping[str, Doubles]]) -> dict[str, Doubles]:
    """Return the sums of all shards, added in their order."""
    total = dict(parts[0])
    for part in parts[1:]:
        total = {name: total[name] + part[name] for name in total}
    return total


def metric_values(sums: Mapping[str, Doubles]) -> dict[str, float]:
    """Return the metrics of a multi-class head that sums over images give, as `Tally.values` has them."""
    hits, predicted, support, known = (sums[name] for name in ("hits", "predicted", "support", "known"))
    n, there = float(known.sum()), support > 0
    return {
        "accuracy": float(hits.sum() / n),
        "balanced_accuracy": float((hits[there] / support[there]).mean()),
        "macro_f1": float(macro_f1(hits, predicted, support)),
        "micro_f1": float(micro_f1(hits, predicted, support)),
        "nll": float(sums["loss"].sum() / n),
    }
