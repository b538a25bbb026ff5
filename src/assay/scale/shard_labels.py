"""Labels judged over shards: by ridge regressions from sums, and a confident joint from counts, of each shard.

The features of a shard are read anew in each of four passes: what is held of an image are a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from assay.arrays import Doubles, Floats, Ints, Reals
from assay.experiments.label_findings import Overlap, swapped_classes
from assay.labels.space import Codes, Head
from assay.metrics.intervals import Metric, wilson
from assay.metrics.tallies import multiclass
from assay.repair.confident_learning import HeadSuspects, ranked
from assay.repair.wrong_probability import ENOUGH, calibrated_wrong
from assay.scale.reductions import (
    RidgeSums,
    added,
    class_probabilities,
    confidence_sums,
    confident_counts,
    confident_thresholds,
    least_confident,
    metric_sums,
    metric_values,
    out_of_fold_scores,
)

Parts = Iterator[tuple[Ints, Floats]]
"""Rows (n,) of images and arrays (n, F) of these, shard by shard in the order of the shards."""


class LabelReport(NamedTuple):
    """Suspect labels of a multi-class head, pairs of classes taken for each other, and how good the judge is."""

    suspects: HeadSuspects
    overlaps: list[Overlap]
    quality: str


@dataclass(frozen=True, eq=False)
class _Scores:
    """What is held of each image: the probability of its label, the predicted class and its probability; (N,) each."""

    given: Floats
    predicted: Ints
    top: Floats
    joint: Ints  # (K, K), calibrated to the labels
    metrics: dict[str, float]


def judge_head(
    head: Head, codes: Codes, weights: Reals, fold: Ints, features: Callable[[], Parts]
) -> LabelReport | None:
    """Judge the labels (N,) of a multi-class head out of fold (N,); None where no two classes can be judged.

    Classes of fewer labels than there are folds, and those of one fold alone, are not judged.
    """
    folds = int(fold.max(initial=0)) + 1
    counts = np.zeros((head.size, folds), np.int64)
    np.add.at(counts, (codes[codes >= 0], fold[codes >= 0]), 1)
    classes = np.flatnonzero((counts.sum(axis=1) >= folds) & ((counts > 0).sum(axis=1) > 1))
    if len(classes) < 2:
        return None
    labels = np.full(head.size + 1, -1)  # the last one is of unknown labels
    labels[classes] = np.arange(len(classes))
    labels = labels[codes]
    part = Head(head.name, tuple(head.classes[one] for one in classes))
    coefficients = _coefficients(part, labels, weights, fold, features())

    def probabilities() -> Parts:
        for rows, values in features():
            yield rows, class_probabilities(out_of_fold_scores(values, fold[rows], coefficients))

    scores = _scores(part, labels, probabilities)
    rows = least_confident(labels, scores.given, scores.predicted, scores.joint)
    wrong = np.full(len(codes), np.nan)
    wrong[rows] = _wrong(labels, rows, probabilities())
    columns = (scores.given[rows], scores.top[rows], wrong[rows])
    table = ranked(head, rows, None, codes[rows], classes[scores.predicted[rows]], columns)
    joint = np.zeros((head.size, head.size), np.int64)
    joint[np.ix_(classes, classes)] = scores.joint
    suspects = HeadSuspects(head, table, scores.given, wrong, joint)
    overlaps = [
        pair._replace(classes=(int(classes[pair.classes[0]]), int(classes[pair.classes[1]])))
        for pair in swapped_classes(part.size, labels, scores.predicted, scores.top)
    ]
    return LabelReport(suspects, overlaps, _quality(scores.metrics, n=int((labels >= 0).sum())))


def _coefficients(head: Head, labels: Ints, weights: Reals, fold: Ints, features: Parts) -> Doubles:
    """Return ridge regressions out of fold on one class or none."""
    count, total = int(fold.max(initial=0)) + 1, None
    for rows, values in features:
        of_shard = np.where(labels[rows] >= 0, weights[rows], 0)
        part = RidgeSums.of(values, head.present(labels[rows]).astype(np.float32), of_shard, fold[rows], count)
        total = part if total is None else total + part
    assert total is not None  # where there are labels, there is a shard
    return total.best_coefficients()


def _scores(head: Head, labels: Ints, probabilities: Callable[[], Parts]) -> _Scores:
    from cleanlab.count import calibrate_confident_joint

    given, top = (np.full(len(labels), np.nan, np.float32) for _ in range(2))
    predicted = np.full(len(labels), -1)
    sums, tallies = np.zeros((2, head.size)), []
    for rows, values in probabilities():
        of_shard = labels[rows]
        sums += confidence_sums(of_shard, values)
        tallies.append(metric_sums(multiclass(head, of_shard, values)))
        predicted[rows], top[rows] = values.argmax(axis=1), values.max(axis=1)
        known = of_shard >= 0
        given[rows[known]] = values[known, of_shard[known]]
    thresholds = confident_thresholds(sums)
    counts = np.zeros((head.size, head.size), np.int64)
    for rows, values in probabilities():
        counts += confident_counts(labels[rows], values, thresholds)
    np.fill_diagonal(counts, np.maximum(np.diag(counts), 1))  # a row of nothing could not be scaled
    joint = np.asarray(calibrate_confident_joint(counts, labels[labels >= 0]), np.int64)
    return _Scores(given, predicted, top, joint, metric_values(added(tallies)))


def _wrong(labels: Ints, suspects: Ints, probabilities: Parts) -> Doubles:
    """Return the probability that each suspect label is wrong, by noise that is estimated on some of the labels."""
    known = np.flatnonzero(labels >= 0)
    some = known[:: max(1, len(known) // ENOUGH)]
    kept = [
        (rows[chosen], values[chosen])
        for rows, values in probabilities
        if (chosen := np.isin(rows, suspects) | np.isin(rows, some)).any()
    ]
    rows = np.concatenate([rows for rows, _ in kept])
    order = np.argsort(rows)
    rows, values = rows[order], np.concatenate([values for _, values in kept])[order]
    of_suspects, of_some = (values[np.searchsorted(rows, wanted)] for wanted in (suspects, some))
    return calibrated_wrong(of_suspects, labels[suspects], (of_some, labels[some]))


def _quality(metrics: dict[str, float], *, n: int) -> str:
    accuracy = metrics["accuracy"]
    interval = Metric(accuracy, n, *wilson(accuracy * n, n))
    return (
        f"ridge regressions on features reach accuracy {interval}, balanced accuracy "
        f"{metrics['balanced_accuracy']:.3f} and macro F1 {metrics['macro_f1']:.3f} out of fold, on {n:,} images"
    )
