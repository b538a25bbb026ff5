"""From labels and probabilities to metrics, for every head, unknown labels left out.

A metric that the known labels do not define is left out, never zero and never NaN: whether it is
defined depends on the labels alone, so a metric does not come and go from epoch to epoch.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from assay.arrays import Floats, Ints, Reals
from assay.errors import PlanError, TrainingError
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.frequency import Group, groups
from assay.metrics.intervals import Estimate, Metric, mean, metric
from assay.metrics.tallies import Tally, confusion, f1, multiclass, multilabel, ratio

Thresholds = float | Reals
"""One for every tag, (W,) one a column of the space, or (N, W); the columns of multi-class heads are not read."""

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

HEADLINE_METRICS = ("accuracy", "micro_f1", "macro_f1")
"""The first of these that all heads share stands for a run; higher is better for each."""


def headline(metrics: Container[str]) -> str | None:
    """Return the name of the headline metric among `metrics`, None where it holds none of `HEADLINE_METRICS`."""
    return next((name for name in HEADLINE_METRICS if name in metrics), None)


def higher_is_better(name: str) -> bool:
    """Which way a metric improves; `name` may be plain or of one head (`HEAD/accuracy`). Raises PlanError."""
    metric = name.rpartition("/")[2]
    if metric not in HIGHER_IS_BETTER:
        raise PlanError(f"{name!r} is no metric that can be monitored. Known are: {', '.join(HIGHER_IS_BETTER)}.")
    return HIGHER_IS_BETTER[metric]


@dataclass(frozen=True, eq=False)
class HeadScore:
    """What was measured under one head.

    metrics: empty where no label is known (n = 0).
    per_class: class, precision, recall, f1, support, and under a multi-label head average_precision (null
        without a positive). 0 where nothing was predicted or is there, as scikit-learn's zero_division=0.
    confusion: (K, K) images by true class (rows) and predicted class; None under a multi-label head.
    by_frequency: groups of classes by their training images, each with its metrics; empty where the counts are not
        known: recall and f1 are means over the classes that occur, accuracy is the share of their images named
        right (under a multi-label head: of their tags found). n is the number of these images or tags.
    estimates: what intervals, means over heads and differences are computed from, over the same images for all heads.
    """

    n: int
    metrics: dict[str, Metric]
    per_class: pl.DataFrame
    confusion: Ints | None
    by_frequency: tuple[tuple[Group, dict[str, Metric]], ...] = ()
    estimates: dict[str, Estimate] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
            "per_class": self.per_class.to_dicts(),
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "by_frequency": [
                {
                    **group.to_json(self.per_class["class"].to_list()),
                    "metrics": {name: metric.to_json() for name, metric in metrics.items()},
                }
                for group, metrics in self.by_frequency
            ],
        }


def to_json(scores: Mapping[str, HeadScore]) -> dict[str, Any]:
    """A score as metrics.json holds it: the metrics over all heads, then all that is known of each."""
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
    """Every metric of every head with its 95 % interval over images; `probabilities` is (N, width).

    `counts` (K,) a head are the training images of each class: with them, frequent and rare classes are told of
    apart. Raises TrainingError where a probability is not finite.
    """
    tallies = _tallies(space, codes, probabilities, thresholds)
    parts = [()] * len(tallies) if counts is None else [groups(own) for own in counts]
    return {
        tally.head.name: _head_score(tally, _confusion(tally.head, known, probabilities[:, columns]), own)
        for tally, known, columns, own in zip(tallies, codes, space.slices, parts, strict=True)
    }


def overall(scores: Mapping[str, HeadScore]) -> dict[str, Metric]:
    """The mean over heads of the metrics they share, heads without a known label left out.

    The interval is that of the mean: one image moves all heads at once. `n` is the smallest of the heads.
    """
    return {name: metric(estimate) for name, estimate in estimates(scores).items()}


def estimates(scores: Mapping[str, HeadScore]) -> dict[str, Estimate]:
    """The same with what intervals and differences are computed from."""
    measured = [score.estimates for score in scores.values() if score.n]
    if len(measured) == 1:
        return dict(measured[0])
    return {name: mean([own[name] for own in measured]) for name in _shared(measured)}


def stream(
    space: LabelSpace, codes: Sequence[Codes], probabilities: Reals, *, thresholds: Thresholds = 0.5
) -> Iterator[tuple[str, float]]:
    """Every metric without its interval, fast enough for the end of each epoch.

    A plain name (`accuracy`) is the mean over heads of a metric they share, and with one head that head's
    own; with several, `HEAD/accuracy` follows for each.
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


def metrics_of(head: Head, codes: Codes, probabilities: Reals, *, thresholds: Thresholds = 0.5) -> dict[str, float]:
    """The metrics of one head; `probabilities` is (N, K), `thresholds` one number, (K,) or (N, K)."""
    return dict(stream(LabelSpace((head,)), [codes], probabilities, thresholds=thresholds))


def probabilities_of(space: LabelSpace, logits: Reals) -> Floats:
    """Softmax over each multi-class head's columns, sigmoid over those of the others; both (N, width)."""
    result = np.empty(logits.shape, dtype=np.float32)
    for head, columns in zip(space, space.slices, strict=True):
        own = logits[:, columns].astype(np.float64)
        if head.kind == "multiclass":
            powers = np.exp(own - own.max(axis=1, keepdims=True))
            result[:, columns] = powers / powers.sum(axis=1, keepdims=True)
        else:
            result[:, columns] = 0.5 * (1 + np.tanh(0.5 * own))  # the sigmoid, without overflow
    return result


def _tallies(space: LabelSpace, codes: Sequence[Codes], probabilities: Reals, thresholds: Thresholds) -> list[Tally]:
    if probabilities.shape[1:] != (space.width,) or any(len(known) != len(probabilities) for known in codes):
        raise ValueError(f"probabilities {probabilities.shape} do not fit {len(codes)} heads of width {space.width}")
    broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if broken:
        raise TrainingError(
            f"The model's answers for {broken} of {len(probabilities)} images are not finite numbers and "
            "cannot be scored. Train again with a lower learning rate, or in full precision."
        )
    cuts = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), probabilities.shape)
    return [
        multiclass(head, known, probabilities[:, columns])
        if head.kind == "multiclass"
        else multilabel(head, known, probabilities[:, columns], cuts[:, columns])
        for head, known, columns in zip(space, codes, space.slices, strict=True)
    ]


def _head_score(tally: Tally, matrix: Ints | None, apart: Sequence[Group]) -> HeadScore:
    metrics = {name: metric(estimate) for name, estimate in tally.estimates.items()}
    by_frequency = tuple((group, _of_group(tally, group)) for group in apart)
    return HeadScore(tally.n, metrics, _per_class(tally), matrix, by_frequency, tally.estimates)


def _of_group(tally: Tally, group: Group) -> dict[str, Metric]:
    """The metrics of some classes, n being their images or tags; none where none of them occurs."""
    n = int(tally.counts[2][list(group.classes)].sum())
    return {name: replace(metric(estimate), n=n) for name, estimate in tally.of_group(group).items()}


def _confusion(head: Head, codes: Codes, probabilities: Reals) -> Ints | None:
    return confusion(codes, probabilities.argmax(axis=1), size=head.size) if head.kind == "multiclass" else None


def _per_class(tally: Tally) -> pl.DataFrame:
    hits, predicted, support = tally.counts
    columns: dict[str, Any] = {
        "class": list(tally.head.classes),
        "precision": ratio(hits, predicted, otherwise=0.0),
        "recall": ratio(hits, support, otherwise=0.0),
        "f1": f1(hits, predicted, support),
    }
    if tally.head.kind == "multilabel":
        found = {tag: one.value for tag, one in tally.precisions.items()}
        precisions = [found.get(tag) for tag in range(tally.head.size)]
        columns["average_precision"] = pl.Series(precisions, dtype=pl.Float64)
    return pl.DataFrame({**columns, "support": np.rint(support).astype(np.int64)})


def _shared(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names that all have, in the order of the first."""
    return [name for name in metrics[0] if all(name in other for other in metrics)] if metrics else []
