"""Accuracy on validation labels some of which are wrong, corrected by the estimated noise of the training labels.

The mean of the inverse noise matrix at the predicted and the given class is an unbiased estimate of the accuracy by
right labels, where which labels are wrong depends on the true class alone (Natarajan et al. 2013, lemma 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from assay.arrays import Bools, Ints, Reals
from assay.files import StepName
from assay.labels.edits import persons_cells
from assay.labels.ledger import Ledger
from assay.messages import metric_text
from assay.metrics.intervals import Metric, half_width
from assay.run.contents import LabelledPredictions
from assay.run.records import DoneRecord, Number, RunMetrics, newest_search

LEAST_RATE = 0.1  # of wrong labels: of fewer, a judge takes as many hard images for wrong labels as there are
MOST = 10.0  # the largest entry of the inverse: noise that is beyond it tells classes hardly apart


def corrected_accuracy(predicted: Ints, given: Ints, noise: Reals, sure: Bools) -> Metric | None:
    """Return the accuracy of predicted classes (n,) by right labels, from given ones (n,) and P(given | true) (K, K).

    Labels that are `sure` (n,) are right. The interval is over images; the noise matrix counts as known. None where it
    cannot be inverted, as where a class was not judged; and where more than all would be right, beyond chance: then
    these labels are wrong less often than it says.
    """
    if np.linalg.matrix_rank(noise) < len(noise) or len(given) < 2:
        return None
    inverse = np.linalg.inv(noise)
    if np.abs(inverse).max() > MOST:
        return None
    values = np.where(sure, predicted == given, inverse[predicted, given])
    half = half_width(values)
    if values.mean() - half > 1:
        return None
    value, low, high = (float(np.clip(values.mean() + shift, 0, 1)) for shift in (0, -half, half))
    return Metric(value, len(given), low, high)


def corrected(
    steps: Mapping[StepName, DoneRecord], now: LabelledPredictions | None, ledger: Ledger
) -> dict[str, Number]:
    """Return the corrected accuracy of each multi-class head whose noise the newest search estimates."""
    search = newest_search(steps)
    if now is None or search is None:
        return {}
    persons = persons_cells(ledger.effective())
    by_head: dict[str, Number] = {}
    for head in now.samples.space:
        estimate = steps[search].details.get("heads", {}).get(head.name)
        if not head.multiclass or estimate is None or not estimate.get("beats_chance"):
            continue
        gain = estimate.get("gain")  # of the judge's second round: where labels are right there is none
        if gain is not None and (gain["low"] or 0) <= 0:
            continue
        codes, probabilities, _ = now.of(head)
        known = np.flatnonzero(codes >= 0)
        sure = np.array([(id_, head.name, None) in persons for id_ in now.samples.ids_of(known)], np.bool_)
        metric = corrected_accuracy(
            head.decide(probabilities)[known], codes[known], np.array(estimate["noise_matrix"]), sure
        )
        if metric is not None and (estimate["noise_rate"] or 0) >= LEAST_RATE:
            by_head[head.name] = metric.to_json()
    return by_head


def corrected_lines(record: RunMetrics) -> Iterator[str]:
    """Yield the corrected accuracy of each head beside the plain one."""
    for name, metric in record.corrected.items():
        plain = ((record.scores or {}).get("heads", {}).get(name, {}).get("metrics", {})).get("accuracy")
        if plain is None:
            continue
        of_head = f"{name}: " if len(record.corrected) > 1 else ""
        yield (
            f"{of_head}validation accuracy {plain['value']:.3f} by the labels given; {metric_text(metric)}, "
            f"n = {metric['n']:,}, if they are wrong as the training "
            "labels are estimated to be."
        )
