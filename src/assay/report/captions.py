"""Labels and predictions of images as text, for pages and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from assay.arrays import Reals
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.messages import SPLITS, plain
from assay.report.gallery import Gallery, Thumbnails


def label_text(head: Head, codes: Codes, row: int) -> str:
    """Return the label of an image under a head; nothing where it is unknown."""
    return plain(head.labels_text(codes[row], none="no tag"))


def prediction_text(head: Head, probabilities: Reals, thresholds: Reals, row: int) -> str:
    """Return the predicted classes of an image with their probabilities, from (N, K) arrays of a head."""
    decided = head.decide(probabilities[row : row + 1], thresholds[row : row + 1])[0]
    classes = head.classes_of(decided)
    return ", ".join(f"{plain(head.classes[one])} {100 * probabilities[row, one]:.0f} %" for one in classes) or "no tag"


def labels_text(space: LabelSpace, codes: Sequence[Codes], row: int) -> str:
    """Return the labels of an image under all heads."""
    return _joined([(head, label_text(head, known, row)) for head, _, known in space.each(codes)])


def predictions_text(space: LabelSpace, probabilities: Reals, thresholds: Reals, row: int) -> str:
    """Return the predictions for an image under all heads, from probabilities (N, W) and thresholds (W,) or (N, W)."""
    cuts = np.broadcast_to(thresholds, probabilities.shape)
    return _joined([(head, prediction_text(head, probabilities[:, at], cuts[:, at], row)) for head, at in space.each()])


def captions(
    gallery: Gallery, thumbnails: Thumbnails, samples: Samples, predictions: Mapping[str, str]
) -> dict[str, list[Any]]:
    """Return what the script of a page shows of each image: its tile, name, part, label and prediction, by id."""
    rows = {id_: row for row, id_ in enumerate(samples.ids)}
    order = [rows[id_] for id_ in gallery.numbers]
    splits, codes = samples.table["split"].to_list(), samples.codes()
    return {
        "tile": [list(tile) if tile else None for tile in thumbnails.tiles],
        "name": [plain(id_) for id_ in gallery.numbers],
        "part": [SPLITS.get(splits[row] or "", "") for row in order],
        "label": [labels_text(samples.space, codes, row) for row in order],
        "prediction": [predictions.get(id_, "") for id_ in gallery.numbers],
    }


def _joined(texts: Iterable[tuple[Head, str]]) -> str:
    by_head = list(texts)
    if len(by_head) == 1:
        return by_head[0][1]
    return " · ".join(f"{plain(head.name)}: {text}" for head, text in by_head if text)
