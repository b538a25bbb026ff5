"""The baselines of a run: trivial and linear models, and the untrained network, scored on its validation images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from assay.arrays import Floats
from assay.images.cache import Cache
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.subset import labelled
from assay.metrics.metrics import score, to_json
from assay.models.classifier import ModelSettings, build_classifier
from assay.predictions.baselines import (
    ALL_PIXELS,
    LINEAR_ALL,
    MAJORITY,
    MAX_IMAGES,
    MAX_PIXEL_IMAGES,
    NO_TAG,
    SIDE,
    UNTRAINED,
    ZEROS,
    baseline_predictions,
    fit_pixels,
    leak_check,
    random_rows,
    shrink,
    without_a_tag,
)
from assay.predictions.inference import Inference, move
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
    `leak_check`; none has a confusion matrix. `quick` leaves out the models on all pixels and without training, and
    learns from fewer images.
    """
    train, validation = (labelled(samples.part(part)) for part in ("train", "val"))
    if len(validation) == 0:
        return {}
    if quick:
        train = train.take(random_rows(np.arange(len(train)), QUICK_IMAGES, seed))
    space, codes = samples.space, {"train": train.codes(), "val": validation.codes()}
    drawn = random_rows(np.arange(len(train)), MAX_IMAGES, seed)
    sample = train.take(random_rows(np.arange(len(train)), MAX_PIXEL_IMAGES, seed))
    ids, side, train_ids = validation.ids, min(size, ALL_PIXELS), train.ids_of(drawn)
    del train  # of a million images 200 MB
    others: dict[str, Callable[[], Floats]] = {
        LINEAR_ALL: lambda: _linear_on_all_pixels(sample, ids, cache, side=side, seed=seed),
        UNTRAINED: lambda: _untrained(space, cache, ids, model, size=size, hardware=hardware, seed=seed),
    }
    answers = baseline_predictions(
        space,
        codes["train"],
        train=_thumbnails(cache, train_ids),
        val=_thumbnails(cache, ids),
        drawn=drawn,
        others={} if quick else others,
    )
    scores, compared = {}, {}
    for name, answer in answers:
        by_head = score(space, codes["val"], answer.probabilities, thresholds=answer.thresholds)
        # Without confusion matrices: one of 1,000 classes is 10 MB of text.
        scores[name] = to_json({head: replace(one, confusion=None) for head, one in by_head.items()})
        if name in (MAJORITY, ZEROS):
            compared[name] = answer
        del answer  # before the next one is computed: of 50,000 images and 1,000 classes 200 MB
    scores[ZEROS]["leak check"] = leak_check(compared)
    if NO_TAG in scores:
        scores[NO_TAG]["without a tag"] = without_a_tag(space, codes)
    return scores


def _thumbnails(cache: Cache, ids: list[str]) -> Floats:
    """Return small images as rows (N, F)."""
    return np.concatenate(list(_rows_of_pixels(cache, ids, SIDE)))


def _linear_on_all_pixels(train: Samples, ids: list[str], cache: Cache, *, side: int, seed: int) -> Floats:
    """Return logits (M, W) of images by a linear layer on all their pixels, trained on those of `train`."""
    pixels = [np.rint(rows * 255).astype(np.uint8) for rows in _rows_of_pixels(cache, train.ids, side)]
    model = fit_pixels(train.space, train.codes(), np.concatenate(pixels), seed=seed)
    return np.concatenate([model.logits(rows) for rows in _rows_of_pixels(cache, ids, side)])


def _rows_of_pixels(cache: Cache, ids: list[str], side: int) -> Iterator[Floats]:
    """Yield images as rows (B, F) of area means, decoded a batch at a time."""
    rows = cache.rows_of(ids)
    batches = [rows[first : first + 256] for first in range(0, len(rows), 256)]
    cache.expect(batches)
    for batch in batches:
        yield shrink(cache.gather(batch).permute(0, 2, 3, 1).numpy(), side=side)


def _untrained(
    space: LabelSpace, cache: Cache, ids: list[str], model: ModelSettings, *, size: int, hardware: Hardware, seed: int
) -> Floats:
    classifier = build_classifier(model.without_weights(), space, seed=seed, base=Path(), size=size)
    move(classifier, hardware)
    return Inference(classifier, cache, size, hardware).logits(ids)
