"""Predictions held against what is known of the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from assay.figures.metrics import HeadScore, score, to_json
from assay.labels.samples import Samples
from assay.predictions.predict import Predictions

HEADLINES = ("accuracy", "micro_f1", "nll")


def headline(figures: Mapping[str, Any]) -> str:
    """The name of the figure that stands for all of them; empty where none is measured."""
    return next((name for name in HEADLINES if name in figures), "")


def scores_of(predictions: Predictions, samples: Samples, *, trained: Samples | None = None) -> dict[str, Any]:
    """All figures as metrics.json holds them; pictures that could not be read are left out.

    `samples` are the pictures of the predictions, in their order; of the training pictures `trained`, the labels tell
    frequent classes from rare ones.
    """
    return to_json(scored(predictions, samples, trained=trained))


def scored(predictions: Predictions, samples: Samples, *, trained: Samples | None = None) -> dict[str, HeadScore]:
    """The same with what differences of figures are computed from."""
    readable = np.array([name not in predictions.unreadable for name in predictions.ids], dtype=bool)
    codes = [known[readable] for known in samples.codes()]
    thresholds = predictions.thresholds if predictions.thresholds.ndim == 1 else predictions.thresholds[readable]
    counts = None if trained is None else [trained.counts(head) for head in samples.space]
    probabilities = predictions.probabilities[readable]
    return score(samples.space, codes, probabilities, thresholds=thresholds, counts=counts)
