"""Accuracy on validation labels some of which are wrong, corrected by the estimated noise of the training labels.

The mean of the inverse noise matrix at the predicted and the given class is an unbiased estimate of the accuracy by
right labels, where which labels are wrong depends on the true class alone (Natarajan et al. 2013, lemma 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from assay.arrays import Bools, Ints, Reals
from assay.files import StepName
from assay.labels.edits import persons_cells
from assay.labels.ledger import Ledger
from assay.messages import metric_text, plain
from assay.metrics.intervals import Limits, Metric, Z
from assay.run.contents import LabelledPredictions
from assay.run.records import DoneRecord, Number, RunMetrics, newest_search

LEAST_RATE = 0.1  # of wrong labels: of fewer, a judge takes as many hard images for wrong labels as there are
MOST = 10.0  # the largest entry of the inverse: noise that is beyond it tells classes hardly apart
LESS = "less often than those of training"


def corrected_accuracy(predicted: Ints, given: Ints, counts: Reals, sure: Bools) -> Metric | None:
    """Return the accuracy of predicted classes (n,) by right labels, from given ones (n,), above 1 where noise is less.

    counts: (K, K), how many other labels were given as the row and are truly of the column, as far as is estimated.
    Labels that are `sure` (n,) are right. The interval is over the images, and over those that were counted (delta
    method). None where P(given | true) cannot be inverted, as where a class was not judged.
    """
    totals = counts.sum(axis=0)
    if (totals == 0).any() or len(given) < 2:
        return None
    noise = counts / totals
    if np.linalg.matrix_rank(noise) < len(noise):
        return None
    inverse = np.linalg.inv(noise)
    if np.abs(inverse).max() > MOST:
        return None
    values = np.where(sure, predicted == given, inverse[predicted, given])
    shares = np.zeros(noise.shape)
    np.add.at(shares, (predicted[~sure], given[~sure]), 1 / len(given))
    slopes = inverse.T @ shares @ inverse.T  # of the value by the noise, with the sign turned
    of_noise = ((noise * slopes**2).sum(axis=0) - (noise * slopes).sum(axis=0) ** 2) / totals
    value = float(values.mean())
    half = Z * float(np.sqrt(values.var(ddof=1) / len(values) + of_noise.sum()))
    return Metric(value, len(given), value - half, value + half)


def corrected(
    steps: Mapping[StepName, DoneRecord], now: LabelledPredictions | None, ledger: Ledger
) -> tuple[dict[str, Number], dict[str, str]]:
    """Return the corrected accuracy of each multi-class head whose noise the newest search estimates, or why it is not.

    Noise of the training labels says nothing of validation labels that are wrong more often, or less often. Where
    training labels are hardly wrong, validation labels that are wrong much more often are named all the same.
    """
    by_head: dict[str, Number] = {}
    withheld: dict[str, str] = {}
    search = newest_search(steps)
    if now is None or search is None:
        return by_head, withheld
    details = steps[search].details
    persons = persons_cells(ledger.effective())
    for head in now.samples.space:
        estimate = details.get("heads", {}).get(head.name)
        if not head.multiclass or estimate is None or not estimate.get("beats_chance"):
            continue
        held = details.get("validation", {}).get(head.name, {}).get("agreement")
        if not _is_noisy(estimate):
            if held is not None and change_of_share(estimate["agreement"], held)[1] < -LEAST_RATE:
                withheld[head.name] = why_withheld(estimate["agreement"], held) or ""
            continue
        codes, probabilities, _ = now.of(head)
        known = np.flatnonzero(codes >= 0)
        sure = np.array([(id_, head.name, None) in persons for id_ in now.samples.ids_of(known)], np.bool_)
        predicted = head.decide(probabilities)[known]
        counts = estimate.get("likely_counts")  # the confident joint takes hard images for wrong labels
        metric = None if counts is None else corrected_accuracy(predicted, codes[known], np.array(counts), sure)
        if metric is None or metric.low is None or metric.high is None:
            continue
        why = why_withheld(estimate["agreement"], held, least=metric.low)
        if why is not None:
            withheld[head.name] = why
            continue
        value, low, high = (float(np.clip(one, 0, 1)) for one in (metric.value, metric.low, metric.high))
        by_head[head.name] = Metric(value, metric.n, low, high).to_json()
    return by_head, withheld


def _is_noisy(estimate: Mapping[str, Any]) -> bool:
    """Return whether there is evidence that training labels are wrong, and enough of them."""
    gain = estimate.get("gain")  # of the judge's second round: where labels are right there is none
    return (gain is None or (gain["low"] or 0) > 0) and (estimate["noise_rate"] or 0) >= LEAST_RATE


def why_withheld(train: Number | None, held: Number | None, *, least: float = 0.0) -> str | None:
    """Return why validation labels are not as wrong as training labels; None where a difference is within chance.

    By the shares of both that the judge agrees with, and by the `least` accuracy, corrected, which may be above 1.
    """
    if train is None or held is None:
        return "the judge of the training labels did not judge validation labels"
    low, high = change_of_share(train, held)
    if not low <= 0 <= high:
        texts = [Metric(float(one["value"] or 0), 0, one["low"], one["high"]).percent() for one in (held, train)]
        looks = "more often than those of training, or their images are harder" if high < 0 else LESS
        why = f"the judge agrees with {texts[0]} of the validation labels and {texts[1]} of the training labels"
        return f"{why}, so that validation labels look wrong {looks}"
    if least > 1:
        return f"more than all answers would then be right, so that validation labels look wrong {LESS}"
    return None


def change_of_share(before: Number, after: Number) -> Limits:
    """Return the 95 % interval of a difference of two shares of other images (Newcombe 1998, method 10)."""
    value, low, high, other, other_low, other_high = (
        float(one[key] or 0) for one in (after, before) for key in ("value", "low", "high")
    )
    down, up = np.hypot(value - low, other_high - other), np.hypot(high - value, other - other_low)
    return float(value - other - down), float(value - other + up)


def corrected_lines(record: RunMetrics) -> Iterator[str]:
    """Yield the corrected accuracy of each head beside the plain one, or why there is none."""
    several = len(record.corrected) + len(record.not_corrected) > 1

    def begun(name: str) -> str:
        return f"{plain(name)}: validation accuracy" if several else "Validation accuracy"

    for name, metric in record.corrected.items():
        plain_metric = ((record.scores or {}).get("heads", {}).get(name, {}).get("metrics", {})).get("accuracy")
        if plain_metric is not None:
            yield (
                f"{begun(name)} {plain_metric['value']:.3f} by the labels given; {metric_text(metric)}, "
                f"n = {metric['n']:,}, if they are wrong as the training labels are estimated to be."
            )
    for name, why in record.not_corrected.items():
        yield f"{begun(name)} is not corrected for wrong labels: {why}."
