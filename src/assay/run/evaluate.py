"""Metrics of a finished run: baselines, and the final model on the test split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from assay.arrays import Floats
from assay.files import RunFolder
from assay.images.cache import Cache
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.subset import labelled
from assay.metrics.metrics import score, to_json
from assay.models.classifier import ModelSettings, build_classifier
from assay.predictions.baselines import (
    ALL_PIXELS,
    MAX_PIXEL_IMAGES,
    NO_TAG,
    SIDE,
    ZEROS,
    fit_pixels,
    leak_check,
    random_rows,
    shrink,
    without_a_tag,
)
from assay.predictions.baselines import baseline_predictions as baseline_answers
from assay.predictions.inference import Inference, move
from assay.predictions.predict import Predictions, scores_json
from assay.predictions.predictor import Predictor
from assay.predictions.tta import AnyTTA
from assay.progress import Progress
from assay.run.records import Scores
from assay.training.devices import Hardware

QUICK_IMAGES = 1_000  # of training, for baselines that may take seconds only


def baselines(
    samples: Samples,
    cache: Cache,
    model: ModelSettings,
    *,
    size: int,
    hardware: Hardware,
    seed: int,
    quick: bool = False,
) -> Mapping[str, Scores]:
    """Return the validation scores of trivial and linear models by name; `size` is the input size of the final model.

    That of `no tag` also counts the images without a tag, as `without_a_tag` gives it; that of `zero images` has the
    `leak_check`. `quick` leaves out the models on all pixels and without training, and learns from fewer images.
    """
    train, validation = (labelled(samples.part(part)) for part in ("train", "val"))
    if len(validation) == 0:
        return {}
    if quick:
        train = train.take(random_rows(np.arange(len(train)), QUICK_IMAGES, seed))
    space, codes = samples.space, {"train": train.codes(), "val": validation.codes()}
    answers = baseline_answers(
        space,
        codes["train"],
        train=_thumbnails(cache, train.ids),
        val=_thumbnails(cache, validation.ids),
        all_pixels=None
        if quick
        else _linear_on_all_pixels(train, validation.ids, cache, side=min(size, ALL_PIXELS), seed=seed),
        untrained=None
        if quick
        else _untrained(space, cache, validation.ids, model, size=size, hardware=hardware, seed=seed),
        seed=seed,
    )
    scores = {
        name: to_json(score(space, codes["val"], answer.probabilities, thresholds=answer.thresholds))
        for name, answer in answers.items()
    }
    scores[ZEROS]["leak check"] = leak_check(answers)
    if NO_TAG in scores:
        scores[NO_TAG]["without a tag"] = without_a_tag(space, codes)
    return scores


def predict_samples(
    artifact: Predictor, samples: Samples, progress: Progress, *, tta: AnyTTA | None = None
) -> Predictions:
    """Return the predictions of a model for images that need not be in a cache."""
    progress.begin("predicting", len(samples))

    def chunks() -> Iterator[Predictions]:
        for chunk in artifact.stream(zip(samples.ids, samples.paths, strict=True), tta=tta):
            progress.advance(len(chunk))
            yield chunk

    predictions = Predictions.joined(list(chunks()))
    progress.end()
    return predictions


def test_scores(run: RunFolder, samples: Samples, *, device: str, progress: Progress) -> Scores | None:
    """Return metrics of a run's model on the labelled test images, and write its predictions; None without any."""
    test = labelled(samples.part("test"))
    if len(test) == 0:
        return None
    predictions = predict_samples(Predictor.load(run.model.path, device=device), test, progress)
    predictions.write(run.test_predictions)
    return scores_json(predictions, test, trained=samples.part("train"))


def _thumbnails(cache: Cache, ids: list[str]) -> Floats:
    """Return small images as rows (N, F)."""
    return np.concatenate(list(_rows_of_pixels(cache, ids, SIDE)))


def _linear_on_all_pixels(train: Samples, ids: list[str], cache: Cache, *, side: int, seed: int) -> Floats:
    """Return logits (M, W) of images by a linear layer on all their pixels, trained on at most 4,000 images."""
    drawn = train.take(random_rows(np.arange(len(train)), MAX_PIXEL_IMAGES, seed))
    pixels = [np.rint(rows * 255).astype(np.uint8) for rows in _rows_of_pixels(cache, drawn.ids, side)]
    model = fit_pixels(train.space, drawn.codes(), np.concatenate(pixels), seed=seed)
    return np.concatenate([model.logits(rows) for rows in _rows_of_pixels(cache, ids, side)])


def _rows_of_pixels(cache: Cache, ids: list[str], side: int) -> Iterator[Floats]:
    """Yield images as rows (B, F) of area means, decoded a batch at a time."""
    rows = cache.rows_of(ids)
    for first in range(0, len(rows), 256):
        yield shrink(cache.gather(rows[first : first + 256]).permute(0, 2, 3, 1).numpy(), side=side)


def _untrained(
    space: LabelSpace, cache: Cache, ids: list[str], model: ModelSettings, *, size: int, hardware: Hardware, seed: int
) -> Floats:
    classifier = build_classifier(model.without_weights(), space, seed=seed, base=Path(), size=size)
    move(classifier, hardware)
    return Inference(classifier, cache, size, hardware).logits(ids)
