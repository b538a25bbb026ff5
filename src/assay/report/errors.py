"""Predictions against labels, image by image: misses, cells of the confusion matrix, worst errors, least certain."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from assay.arrays import Bools, Ints, Reals
from assay.labels.space import Head
from assay.messages import plain
from assay.metrics.tallies import row_blocks
from assay.run.contents import LabelledPredictions

OUTCOMES = ("found", "missed", "given wrongly", "rightly absent")


@dataclass(frozen=True)
class Miss:
    """The images of a class that were predicted otherwise, the surest mistakes first, and what they were taken for."""

    ids: list[str]
    taken_for: dict[str, int]
    wrongly: list[str]  # images of others that were taken for it, the surest first


@dataclass(frozen=True)
class PredictedImage:
    """One prediction beside its label, as text, and the probability of each; `score` is what it is sorted by."""

    id: str
    label: str
    prediction: str
    probability: float
    label_probability: float
    score: float


def misses(labelled: LabelledPredictions, head: Head, position: int) -> Miss:
    """Return what went wrong with one class of a head."""
    codes, probabilities, thresholds = labelled.of(head)
    decided = head.decide(probabilities, thresholds)
    known = head.decided(codes)[:, position]
    present, predicted = (one == position if head.multiclass else one[:, position] == 1 for one in (codes, decided))
    wrong = np.flatnonzero(present & ~predicted)
    others = np.flatnonzero(predicted & known & ~present)
    taken = Counter(decided[wrong].tolist()) if head.multiclass else Counter[int]()
    order = wrong[np.argsort(probabilities[wrong, position], kind="stable")]
    return Miss(
        labelled.samples.ids_of(order),
        {head.classes[other]: count for other, count in taken.most_common()},
        labelled.samples.ids_of(others[np.argsort(-probabilities[others, position], kind="stable")]),
    )


def cells(labelled: LabelledPredictions, head: Head) -> dict[tuple[int, int], Ints]:
    """Return the rows of the images in each cell that holds any.

    Of a multi-class head (true class, predicted one); of a multi-label one (class, outcome), as `OUTCOMES` counts them.
    """
    codes, probabilities, thresholds = labelled.of(head)
    decided = head.decide(probabilities, thresholds)
    if head.multiclass:
        known = np.flatnonzero(codes >= 0)
        return _grouped(known, codes[known], decided[known])
    rows, tags = np.nonzero(codes >= 0)
    present, given = codes[rows, tags] == 1, decided[rows, tags] == 1
    return _grouped(rows, tags, np.where(present, np.where(given, 0, 1), np.where(given, 2, 3)))


def worst_errors(labelled: LabelledPredictions, head: Head, most: int) -> list[PredictedImage]:
    """Return the errors in which the model gave the label the least probability, an image once."""
    codes, probabilities, thresholds = labelled.of(head)
    wrong = (head.decide(probabilities, thresholds) != codes) & (codes >= 0)
    if head.multiclass:
        probability = np.take_along_axis(probabilities, np.maximum(codes, 0)[:, None], axis=1)[:, 0]
    else:
        probability = np.where(codes == 1, probabilities, 1 - probabilities)
    return _lowest(labelled, head, np.where(wrong, probability, np.inf), most)


def least_certain(labelled: LabelledPredictions, head: Head, most: int) -> list[PredictedImage]:
    """Return the predictions nearest to another one: the two most probable classes, or a tag nearest its threshold."""
    codes, probabilities, thresholds = labelled.of(head)
    if head.multiclass:
        margin = np.empty(len(probabilities), probabilities.dtype)
        for rows in row_blocks(probabilities):
            top = np.partition(probabilities[rows], -2, axis=1)[:, -2:]
            margin[rows] = top[:, 1] - top[:, 0]
    else:
        margin = np.abs(probabilities - thresholds)
    return _lowest(labelled, head, np.where(codes >= 0, margin, np.inf), most)


def most_confident(labelled: LabelledPredictions, head: Head) -> str | None:
    """Return the image with the surest prediction among those without an error; of tags, by the surest it has."""
    codes, probabilities, _ = labelled.of(head)
    present = codes >= 0 if head.multiclass else codes == 1
    right = head.any_cell(present) & ~wrong_by_image(labelled)
    if not right.any():
        return None
    sure = probabilities if head.multiclass else np.where(present, probabilities, 0)
    return labelled.samples.ids[int(np.where(right, sure.max(axis=1), -1).argmax())]


def wrong_by_image(labelled: LabelledPredictions) -> Bools:
    """Return which images (N,) have an error under any head."""
    wrong = np.zeros(len(labelled.samples), np.bool_)
    for head in labelled.samples.space:
        codes, probabilities, thresholds = labelled.of(head)
        wrong |= head.any_cell((head.decide(probabilities, thresholds) != codes) & (codes >= 0))
    return wrong


def _lowest(labelled: LabelledPredictions, head: Head, score: Reals, most: int) -> list[PredictedImage]:
    """Return the cells of lowest finite score (N,) or (N, K), of each image one."""
    codes, probabilities, thresholds = labelled.of(head)
    decided = head.decide(probabilities, thresholds)
    columns = head.columns(score)
    tags = columns.argmin(axis=1)
    lowest = columns[np.arange(len(columns)), tags]
    rows = np.argsort(lowest, kind="stable")
    images = []
    for row in rows[np.isfinite(lowest[rows])][:most].tolist():
        cell = row if head.multiclass else (row, tags[row])
        label, label_probability = _value(head, int(codes[cell]), int(tags[row]), probabilities[row])
        prediction, probability = _value(head, int(decided[cell]), int(tags[row]), probabilities[row])
        score_of = float(lowest[row])
        id_ = labelled.samples.ids[row]
        images.append(PredictedImage(id_, label, prediction, probability, label_probability, score_of))
    return images


def _value(head: Head, code: int, tag: int, probabilities: Reals) -> tuple[str, float]:
    """Return a value of a cell as text, and its probability by those of the image's classes (K,)."""
    if head.multiclass:
        return plain(head.classes[code]), float(probabilities[code])
    name, probability = plain(head.classes[tag]), float(probabilities[tag])
    return (name, probability) if code == 1 else (f"no {name}", 1 - probability)


def _grouped(rows: Ints, first: Ints, second: Ints) -> dict[tuple[int, int], Ints]:
    if not len(rows):
        return {}
    order = np.lexsort((rows, second, first))
    pairs = np.stack((first, second), axis=1)[order]
    starts = np.flatnonzero(np.append(True, (np.diff(pairs, axis=0) != 0).any(axis=1)))
    groups = np.split(rows[order], starts[1:])
    return {(int(pairs[start, 0]), int(pairs[start, 1])): group for start, group in zip(starts, groups, strict=True)}
