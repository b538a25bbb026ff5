"""Metrics of every head from labels and probabilities; unknown labels are left out.

A metric that the known labels do not define is left out, never zero and never NaN. Whether it is defined depends on
the labels alone, so that no metric comes and goes from epoch to epoch.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import polars as pl

from assay.arrays import Bools, Floats, Ints, Reals
from assay.errors import PlanError, TrainingError
from assay.labels.space import Codes, LabelSpace
from assay.metrics import intervals
from assay.metrics.intervals import Estimate, Metric, mean, wilson_each, with_interval
from assay.metrics.tallies import Group, Tally, confusion, groups, multiclass, multilabel, ratio, row_blocks

Thresholds = float | Reals
"""A number, (W,) or (N, W); the columns of multi-class heads are not read."""

HIGHER_IS_BETTER: dict[str, bool] = {
    "accuracy": True,
    "balanced_accuracy": True,
    "macro_f1": True,
    "micro_f1": True,
    "top_5": True,
    "mean_average_precision": True,
    "subset_accuracy": True,
    "hamming_loss": False,
    "nll": False,
    "calibration_error": False,
    "loss": False,
}

PlanMetric = Literal["accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "mean_average_precision", "nll"]
"""The metrics that a plan may be for."""

WHOLE_CONFUSION = 100  # classes: a matrix of 1,000 is 10 MB of text

HEADLINE_METRICS = ("accuracy", "micro_f1", "macro_f1")
"""The first of these that all heads share stands for a run whose plan names none."""


def headline(metrics: Container[str], wanted: str | None = None) -> str | None:
    """Return the name of the headline metric among `metrics`: the one wanted, else the first of `HEADLINE_METRICS`.

    None where it holds none of these.
    """
    return next((name for name in (wanted, *HEADLINE_METRICS) if name is not None and name in metrics), None)


def higher_is_better(name: str) -> bool:
    """Return whether a metric improves upwards. `name` may be of one head (`HEAD/accuracy`). Raises PlanError."""
    metric = name.rpartition("/")[2]
    if metric not in HIGHER_IS_BETTER:
        raise PlanError(f"{name!r} is no metric that can be monitored. Known are: {', '.join(HIGHER_IS_BETTER)}.")
    return HIGHER_IS_BETTER[metric]


@dataclass(frozen=True, eq=False)
class HeadScore:
    """The metrics of one head.

    metrics: empty where no label is known (n = 0).
    per_class: class, precision, recall, f1, support, and under a multi-label head average_precision (null
        without a positive). Null where it is 0 / 0: the precision of a class that is never predicted, the recall of one
        without an image, F1 where both hold. Macro averages are over the classes that occur, and of these a class that
        is never predicted counts with F1 0, as with scikit-learn's zero_division=0. Each has its interval beside it
        (`recall_low`, `recall_high`), null where there is nothing to measure it on.
    confusion: (K, K) images by true class (rows) and predicted class; None under a multi-label head.
    by_frequency: groups of classes by their training images, each with its metrics; empty where the counts are not
        known. recall and f1 are means over the classes that occur, accuracy is the recall over all their images (under
        a multi-label head: their tags) together. n is the number of these images or tags.
    estimates: the terms of intervals, means over heads and differences, over the same images for all heads.
    """

    n: int
    metrics: dict[str, Metric]
    per_class: pl.DataFrame
    confusion: Ints | None
    by_frequency: tuple[tuple[Group, dict[str, Metric]], ...] = ()
    estimates: dict[str, Estimate] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, object]:
        return {
            "n": self.n,
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
            "per_class": self.per_class.to_dicts(),
            "confusion": None if self.confusion is None else confusion_json(self.confusion),
            "by_frequency": [
                {
                    **group.to_json(self.per_class["class"].to_list()),
                    "metrics": {name: metric.to_json() for name, metric in metrics.items()},
                }
                for group, metrics in self.by_frequency
            ],
        }


def confusion_json(matrix: Ints) -> list[list[int]] | dict[str, list[int]]:
    """Return a confusion matrix (K, K) as rows, or of more than 100 classes its cells that hold images."""
    if len(matrix) <= WHOLE_CONFUSION:
        rows: list[list[int]] = matrix.tolist()
        return rows
    true, predicted = np.nonzero(matrix)
    cells = {"true": true, "predicted": predicted, "images": matrix[true, predicted]}
    return {name: values.tolist() for name, values in cells.items()}


def read_confusion(written: Sequence[Sequence[int]] | Mapping[str, Sequence[int]], size: int) -> Ints:
    """Return the confusion matrix (K, K) that `confusion_json` wrote."""
    if not isinstance(written, Mapping):
        return np.array(written)
    matrix = np.zeros((size, size), np.int64)
    matrix[written["true"], written["predicted"]] = written["images"]
    return matrix


def to_json(scores: Mapping[str, HeadScore]) -> dict[str, object]:
    """Return a score as in metrics.json: the metrics over all heads, then those of each head."""
    return {
        "metrics": {name: metric.to_json() for name, metric in overall(scores).items()},
        "heads": {name: score.to_json() for name, score in scores.items()},
    }


def score(
    space: LabelSpace,
    codes: Sequence[Codes],
    probabilities: Reals,
    *,
    thresholds: Thresholds = 0.5,
    counts: Sequence[Ints] | None = None,
) -> dict[str, HeadScore]:
    """Return every metric of every head with its 95 % interval over images; `probabilities` is (N, width).

    `counts` (K,) a head are the training images of each class; with them, groups of classes by frequency are measured
    too. Raises TrainingError where a probability is not finite.
    """
    tallies = _tallies(space, codes, probabilities, thresholds)
    by_head = [()] * len(tallies) if counts is None else [groups(by_class) for by_class in counts]
    scores = {}
    for tally, by_frequency, (head, _, known, outputs) in zip(
        tallies, by_head, space.each(codes, probabilities), strict=True
    ):
        matrix = confusion(known, head.decide(outputs), size=head.size) if head.multiclass else None
        metrics = {name: with_interval(estimate) for name, estimate in tally.estimates.items()}
        parts = tuple((group, _of_group(tally, group)) for group in by_frequency)
        scores[head.name] = HeadScore(tally.n, metrics, _per_class(tally), matrix, parts, tally.estimates)
    return scores


def overall(scores: Mapping[str, HeadScore]) -> dict[str, Metric]:
    """Return the mean over heads of the metrics they share, heads without a known label left out.

    The interval is that of the mean, as one image moves all heads at once. `n` is the smallest of the heads.
    """
    return {name: with_interval(estimate) for name, estimate in estimates(scores).items()}


def estimates(scores: Mapping[str, HeadScore]) -> dict[str, Estimate]:
    """Return the mean over heads of the metrics they share, with the terms of intervals and differences."""
    measured = [score.estimates for score in scores.values() if score.n]
    if len(measured) == 1:
        return dict(measured[0])
    return {name: mean([by_name[name] for by_name in measured]) for name in _shared(measured)}


def stream(
    space: LabelSpace, codes: Sequence[Codes], probabilities: Reals, *, thresholds: Thresholds = 0.5
) -> Iterator[tuple[str, float]]:
    """Yield every metric without its interval, fast enough for the end of each epoch.

    A plain name (`accuracy`) is the mean over heads of a metric they share; with several heads, `HEAD/accuracy`
    follows for each.
    Raises TrainingError where a probability is not finite.
    """
    tallies = _tallies(space, codes, probabilities, thresholds)
    single = [(tally.head.name, tally.values()) for tally in tallies]
    measured = [metrics for _, metrics in single if metrics]
    for name in _shared(measured):
        yield name, float(np.mean([metrics[name] for metrics in measured]))
    if len(space) > 1:
        for head, metrics in single:
            yield from ((f"{head}/{name}", value) for name, value in metrics.items())


def probabilities_of(space: LabelSpace, logits: Reals) -> Floats:
    """Return softmax over the columns of each multi-class head, sigmoid over those of the others; both (N, width)."""
    result = np.empty(logits.shape, dtype=np.float32)
    for rows in row_blocks(logits):
        for head, columns in space.each():
            exact = logits[rows, columns].astype(np.float64)
            if head.multiclass:
                exact -= exact.max(axis=1, keepdims=True)
                np.exp(exact, out=exact)
                result[rows, columns] = exact / exact.sum(axis=1, keepdims=True)
            else:
                result[rows, columns] = 0.5 * (1 + np.tanh(0.5 * exact))  # the sigmoid, without overflow
    return result


def _tallies(space: LabelSpace, codes: Sequence[Codes], probabilities: Reals, thresholds: Thresholds) -> list[Tally]:
    if probabilities.shape[1:] != (space.width,) or any(len(known) != len(probabilities) for known in codes):
        raise ValueError(f"probabilities {probabilities.shape} do not fit {len(codes)} heads of width {space.width}")
    blocks = (probabilities[rows] for rows in row_blocks(probabilities))
    broken = sum(int((~np.isfinite(some).all(axis=1)).sum()) for some in blocks)
    if broken:
        raise TrainingError(
            f"The model's probabilities for {broken} of {len(probabilities)} images are not finite numbers and "
            "cannot be scored. Train again with a lower learning rate, or in full precision."
        )
    cuts = np.broadcast_to(np.asarray(thresholds), probabilities.shape)
    return [
        multiclass(head, known, outputs) if head.multiclass else multilabel(head, known, outputs, cuts[:, columns])
        for head, columns, known, outputs in space.each(codes, probabilities)
    ]


def _of_group(tally: Tally, group: Group) -> dict[str, Metric]:
    """Return the metrics of some classes, n being their images or tags; none where none of them occurs."""
    n = int(tally.counts.support[list(group.classes)].sum())
    return {name: replace(with_interval(estimate), n=n) for name, estimate in tally.of_group(group).items()}


def _per_class(tally: Tally) -> pl.DataFrame:
    hits, predicted, support = tally.counts
    columns: dict[str, object] = {
        "class": list(tally.head.classes),
        "precision": pl.Series(ratio(hits, predicted)).fill_nan(None),
        "recall": pl.Series(ratio(hits, support)).fill_nan(None),
        "f1": pl.Series(ratio(2 * hits, predicted + support)).fill_nan(None),
    }
    if not tally.head.multiclass:
        by_tag = {tag: one.value for tag, one in tally.precisions.items()}
        precisions = [by_tag.get(tag) for tag in range(tally.head.size)]
        columns["average_precision"] = pl.Series(precisions, dtype=pl.Float64)
    limits = _limits_by_class(tally)
    return pl.DataFrame({**columns, "support": np.rint(support).astype(np.int64), **limits})


def _limits_by_class(tally: Tally) -> dict[str, pl.Series]:
    """Return the columns of the intervals of `per_class`."""
    hits, predicted, support = tally.counts
    limits = {"precision": wilson_each(hits, predicted), "recall": wilson_each(hits, support)}
    measured = tally.of_each_class()
    for name in ("f1",) if tally.head.multiclass else ("f1", "average_precision"):
        of_classes = (measured.get(number, {}).get(name) for number in range(tally.head.size))
        by_class = [None if one is None else with_interval(one) for one in of_classes]
        limits[name] = (
            [one.low if one else None for one in by_class],
            [one.high if one else None for one in by_class],
        )
    return {
        f"{name}_{side}": pl.Series(values, dtype=pl.Float64)
        for name, pair in limits.items()
        for side, values in zip(("low", "high"), pair, strict=True)
    }


def _shared(metrics: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the names that all have, in the order of the first."""
    return [name for name in metrics[0] if all(name in other for other in metrics)] if metrics else []


# Paired differences of two models on the same images.


EXACT_BELOW = 25  # discordant images; from here on the chi-squared distribution is accurate enough


def estimate(scores: Mapping[str, HeadScore], metric: str) -> Estimate:
    """Return a metric of a score: the mean over the heads that have it, or that of one head, `HEAD/accuracy`.

    Raises PlanError for a metric that does not exist, or that these labels do not define.
    """
    higher_is_better(metric)  # raises PlanError where there is no such metric
    head, _, name = metric.rpartition("/")
    measured = estimates({key: score for key, score in scores.items() if head in ("", key)})
    if name not in measured:
        known = ", ".join(measured) or "none"
        raise PlanError(f"{metric}: these validation labels define no such metric. They define: {known}.")
    return measured[name]


def difference(one: Sequence[Estimate], other: Sequence[Estimate]) -> Metric:
    """Return `other` minus `one`, paired by seed and image, with its interval as `intervals.over_seeds`.

    Raises ValueError where they cannot be of the same images.
    """
    if [(run.n, run.influence.shape) for run in one] != [(run.n, run.influence.shape) for run in other]:
        raise ValueError("models can be compared on the same images and the same seeds only")
    return intervals.difference(list(zip(one, other, strict=True)))


def gain(before: Sequence[Estimate], after: Sequence[Estimate]) -> Metric:
    """Return how much better `after` is, paired by seed: above 0 is better, also for a loss."""
    change = difference(before, after)
    if higher_is_better(before[0].metric):
        return change
    low, high = (None if limit is None else -limit for limit in (change.high, change.low))
    return replace(change, value=-change.value, low=low, high=high)


def paired(metric: str) -> bool:
    """Return whether differences of a metric have an interval; those of the calibration error have none."""
    return metric.rpartition("/")[2] != "calibration_error"


def gains(before: Mapping[str, HeadScore], after: Mapping[str, HeadScore]) -> dict[str, Metric]:
    """Return how much better each metric over all heads is after than before: above 0 is better, also for a loss.

    Metrics that are not `paired` are left out.
    """
    was, now = estimates(before), estimates(after)
    return {name: gain([was[name]], [now[name]]) for name in now if name in was and paired(name)}


def verdict(change: Metric, metric: str) -> str:
    """Return what the interval of a change supports: better, worse, or not told apart."""
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return "not told apart"
    return "better" if (change.value > 0) == higher_is_better(metric) else "worse"


@dataclass(frozen=True)
class McNemar:
    """Images on which only one of two models is right, and the p-value if neither is better."""

    only_first: int
    only_second: int
    p: float
    exact: bool

    def to_json(self) -> dict[str, float | int | bool]:
        counts = {"only first right": self.only_first, "only second right": self.only_second}
        return {**counts, "p": self.p, "exact": self.exact}


def mcnemar(first: Bools, second: Bools) -> McNemar:
    """Return McNemar's test (McNemar 1947, Psychometrika 12) of the images (N,) that two models predict correctly.

    Only discordant images count, on which one alone is right. For fewer than 25 of them the p-value is exact, of a
    two-sided binomial test; for more it is that of chi-squared with one degree of freedom and the
    correction for continuity (Edwards 1948, Psychometrika 13), as Dietterich (1998, section 3.1) uses it.
    """
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = one + other
    if discordant < EXACT_BELOW:
        tail = sum(math.comb(discordant, hits) for hits in range(min(one, other) + 1)) / 2**discordant
        return McNemar(one, other, min(1.0, 2 * tail), exact=True)
    statistic = max(0, abs(one - other) - 1) ** 2 / discordant
    return McNemar(one, other, math.erfc(math.sqrt(statistic / 2)), exact=False)
