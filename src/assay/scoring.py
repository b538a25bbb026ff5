"""Figures of a finished run: its model beside the baselines, and the test split, opened once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from assay.evidence.baselines import SIDE
from assay.evidence.baselines import baselines as baseline_answers
from assay.figures.metrics import score, to_json
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.subset import labelled
from assay.models.classifier import ModelSettings, build_classifier
from assay.output.artifact import Artifact
from assay.pixels.cache import Cache
from assay.predictions.inference import Inference, move
from assay.predictions.predict import Predictions
from assay.predictions.scores import scores_of
from assay.progress import Watch
from assay.training.hardware import Hardware

Logits = npt.NDArray[np.float32]


def baselines(samples: Samples, cache: Cache, model: ModelSettings, *, hardware: Hardware, seed: int) -> dict[str, Any]:
    """Validation figures of what knows nothing or little: name -> scores."""
    train, validation = (labelled(samples.part(part)) for part in ("train", "val"))
    if len(validation) == 0:
        return {}
    found = baseline_answers(
        samples.space,
        train.codes(),
        train=_thumbnails(cache, train.ids),
        val=_thumbnails(cache, validation.ids),
        untrained=_untrained(samples.space, cache, validation.ids, model, hardware, seed),
        seed=seed,
    )
    codes = validation.codes()
    return {name: to_json(score(samples.space, codes, answers)) for name, answers in found.items()}


def answers_for(artifact: Artifact, samples: Samples, watch: Watch) -> Predictions:
    """What a model says of pictures that need not be in a cache."""
    watch.begin("predicting", len(samples))

    def told() -> Iterator[Predictions]:
        for chunk in artifact.stream(zip(samples.ids, samples.paths, strict=True)):
            watch.advance(len(chunk))
            yield chunk

    found = Predictions.joined(list(told()))
    watch.end()
    return found


def test_scores(folder: Path, samples: Samples, *, device: str, watch: Watch) -> dict[str, Any] | None:
    """Figures on the labelled test pictures, of the final model alone; None where there are none."""
    test = labelled(samples.part("test"))
    if len(test) == 0:
        return None
    return scores_of(answers_for(Artifact.load(folder, device=device), test, watch), test)


def _thumbnails(cache: Cache, ids: list[str]) -> npt.NDArray[np.uint8]:
    """Small pictures (N, h, w, 3), a batch at a time."""
    out = np.empty((len(ids), SIDE, SIDE, 3), dtype=np.uint8)
    for first in range(0, len(ids), 256):
        rows = cache.rows_of(ids[first : first + 256])
        small = torch.nn.functional.adaptive_avg_pool2d(cache.gather(rows).float(), SIDE)
        out[first : first + len(rows)] = small.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    return out


def _untrained(
    space: LabelSpace, cache: Cache, ids: list[str], model: ModelSettings, hardware: Hardware, seed: int
) -> Logits:
    size = min(cache.side, 128)
    classifier = build_classifier(model.without_weights(), space, seed=seed, base=Path(), size=size)
    move(classifier, hardware)
    return Inference(classifier, cache, size, hardware).logits(ids)
