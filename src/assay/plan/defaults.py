"""The steps of a plan that names none, sized to the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assay.arrays import Doubles
from assay.images.cache import Cache
from assay.labels.samples import Samples
from assay.metrics.metrics import PlanMetric
from assay.predictions.thresholds import RARE

DEFAULT_SIZE = 128
MIN_OPTIMIZER_STEPS = 26_000  # images shown in all: where fine-tuning levelled off on sets of a few thousand images
EPOCHS = (3, 8)
ROUNDS = 2
MIN_UNLABELLED = 0.1  # per labelled image: fewer do not repay another training
LR = 5e-4  # at 1e-3, few images or wrong labels can destroy pretrained features
MIN_IMAGES = 100  # to measure whether images have an up and a down
SIGNIFICANT = 4.0  # standard errors: reached by chance once in 16,000


def default_steps(
    samples: Samples, *, flip: str, pretrained: bool = False, metric: PlanMetric | None = None
) -> list[Mapping[str, Any]]:
    """Return a probe, a fit of everything that starts from it, a list of suspect labels, and what else suits the data.

    That is pseudo-labels for unlabelled images, kept if validation improves, and thresholds for heads with enough tags
    to choose them by. Labels are smoothed under multi-class heads only: smoothing raises the probabilities of rare
    tags. A backbone `pretrained` on some of these labels cannot detect which of them are wrong: no list then. Where the
    `metric` is of probabilities (nll), temperatures are chosen at the end.
    """
    known = samples.part("train").labelled()
    labelled, unlabelled = max(1, int(known.sum())), int((~known).sum())
    fit = {
        "size": DEFAULT_SIZE,
        "epochs": _epochs(labelled),
        "lr": LR,
        "optimizer": {"kind": "adamw", "weight_decay": 0.02},
        "schedule": "one_cycle",
        "loss": {"smoothing": 0.1 if all(head.multiclass for head in samples.space) else 0.0},
        "augment": {"crop": [0.5, 1.0], "flip": flip},
        "ema": 0.99,
    }
    tags = [head for head in samples.space if not head.multiclass]
    tuned = [head.name for head in tags if samples.part("val").counts(head).sum() >= RARE]
    again = {**fit, "start": "pretrained", "epochs": _epochs(labelled + unlabelled)}
    rounds = {
        "times": ROUNDS,
        "only_if_better": True,
        "steps": [{"pseudo_label": {"keep": "confidence"}}, {"fit": again}],
    }
    return [
        {"probe": {"size": DEFAULT_SIZE}},
        {"fit": fit},
        *([] if pretrained else [{"clean_labels": {"size": DEFAULT_SIZE, "action": "flag"}}]),
        *([{"repeat": rounds}] if unlabelled >= MIN_UNLABELLED * labelled else []),
        *([{"calibrate": {}}] if metric == "nll" and _validates(samples) else []),
        *([{"tune_thresholds": {"heads": tuned}}] if tuned else []),
    ]


def _validates(samples: Samples) -> bool:
    """Return whether validation has labels of every head."""
    validation = samples.part("val")
    return all(head.known(codes).any() for head, _, codes in samples.space.each(validation.codes()))


def _epochs(images: int) -> int:
    return min(max(round(MIN_OPTIMIZER_STEPS / images), EPOCHS[0]), EPOCHS[1])


def choose_flips(cache: Cache, ids: Sequence[str]) -> tuple[str, str]:
    """Return the flips that leave images such as these plausible, and the reason.

    Images taken from above have no up and down: over many of them the upper and the lower half are equally
    bright. Where the halves differ by more than chance, a flip along that axis would make images that do not occur.
    """
    if len(ids) < MIN_IMAGES:
        return "none", f"fewer than {MIN_IMAGES} training images: too few to tell whether they may be flipped"
    upper, left = _halves(cache, ids)
    down, across = _deviation(upper), _deviation(left)
    reason = f"left and right halves differ by {across:.1f} standard errors, upper and lower ones by {down:.1f}"
    horizontal, vertical = across < SIGNIFICANT, down < SIGNIFICANT
    names = {(True, True): "both", (True, False): "horizontal", (False, True): "vertical", (False, False): "none"}
    return names[horizontal, vertical], reason


def _halves(cache: Cache, ids: Sequence[str]) -> tuple[Doubles, Doubles]:
    """Return how much brighter the upper and the left half are, by image and colour: (N, 3) each."""
    upper, left = [], []
    middle = cache.side // 2
    for first in range(0, min(len(ids), 2000), 100):
        images = cache.gather(cache.rows_of(ids[first : first + 100])).double()
        upper.append(images[:, :, :middle].mean((2, 3)) - images[:, :, -middle:].mean((2, 3)))
        left.append(images[..., :middle].mean((2, 3)) - images[..., -middle:].mean((2, 3)))
    return np.concatenate([part.numpy() for part in upper]), np.concatenate([part.numpy() for part in left])


def _deviation(differences: Doubles) -> float:
    """Return the largest |mean| over colours, in standard errors."""
    errors = differences.std(axis=0, ddof=1) / np.sqrt(len(differences))
    return float(np.max(np.abs(differences.mean(axis=0)) / np.maximum(errors, 1e-9)))
