"""The steps of a plan that names none, sized to the data."""

from __future__ import annotations

from typing import Any

from assay.labels.samples import Samples

LOOKS = 14_000  # pictures shown in all: where fine-tuning levelled off on sets of 2,000 to 4,000 pictures


def default_steps(samples: Samples, *, size: int = 128) -> list[dict[str, Any]]:
    """A probe, then a fit of everything that starts from it."""
    labelled = max(1, int(samples.part("train").labelled().sum()))
    epochs = min(30, max(3, round(LOOKS / labelled)))
    fit = {
        "size": size,
        "epochs": epochs,
        "lr": 5e-4,
        "optimizer": {"kind": "adamw", "weight_decay": 0.02},
        "schedule": "one_cycle",
        "loss": {"smoothing": 0.1},
        "augment": {"crop": [0.5, 1.0], "flip": "horizontal"},
        "ema": 0.99,
    }
    return [{"probe": {"size": size}}, {"fit": fit}]
