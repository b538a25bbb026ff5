"""Answers held against labels, image by image: misses, cells of the confusion matrix, the wrongest, the unsure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.arrays import Bools, Ints
from assay.labels.space import Codes, Head
from assay.messages import plain
from assay.run.contents import LabelledPredictions

OUTCOMES = ("found", "missed", "given wrongly", "rightly absent")


@dataclass(frozen=True)
class Miss:
    """The images of a class that were not found, the surest mistakes first, and what they were taken for."""

    ids: list[str]
    taken_for: dict[str, int]
    wrongly: int  # images of others that were taken for it


@dataclass(frozen=True)
class JudgedImage:
    """One answer to look at: an image, what is known, what was said, and how likely the known label was."""

    id: str
    known: str
    said: str
    probability: float  # of what was said
    own: float  # of what is known


def errors(judged: LabelledPredictions, head: Head, position: int) -> Miss:
    """What went wrong with one class of a head."""
    codes, probabilities, cuts = judged.of(head)
    ids = judged.samples.ids
    if head.kind == "multiclass":
        answers = probabilities.argmax(axis=1)
        wrong = np.flatnonzero((codes == position) & (answers != position))
        wrongly = int(((answers == position) & (codes >= 0) & (codes != position)).sum())
        taken = Counter(answers[wrong].tolist())
    else:
        given = probabilities[:, position] >= cuts[:, position]
        wrong = np.flatnonzero((codes[:, position] == 1) & ~given)
        wrongly, taken = int((given & (codes[:, position] == 0)).sum()), Counter()
    order = wrong[np.argsort(probabilities[wrong, position], kind="stable")]
    named = {head.classes[other]: count for other, count in taken.most_common()}
    return Miss([ids[row] for row in order], named, wrongly)


def cells(judged: LabelledPredictions, head: Head) -> dict[tuple[int, int], Ints]:
    """The rows of the images in each cell that holds any.

    Of a multi-class head (true class, answer); of a multi-label one (class, outcome), as `OUTCOMES` counts them.
    """
    codes, probabilities, cuts = judged.of(head)
    if head.kind == "multiclass":
        known = np.flatnonzero(codes >= 0)
        return _grouped(known, codes[known], probabilities[known].argmax(axis=1))
    rows, tags = np.nonzero(codes >= 0)
    there, given = codes[rows, tags] == 1, (probabilities >= cuts)[rows, tags]
    return _grouped(rows, tags, np.where(there, np.where(given, 0, 1), np.where(given, 2, 3)))


def worst_errors(judged: LabelledPredictions, head: Head, most: int) -> list[JudgedImage]:
    """The wrong answers to whose images the model gave its label the least probability, an image once."""
    codes, probabilities, cuts = judged.of(head)
    if head.kind == "multiclass":
        answers = probabilities.argmax(axis=1)
        rows = np.flatnonzero((codes >= 0) & (answers != codes))
        own = probabilities[rows, codes[rows]]
        return [
            _multiclass(judged, head, row, codes, probabilities)
            for row in rows[np.argsort(own, kind="stable")][:most].tolist()
        ]
    wrong = ((probabilities >= cuts) != (codes == 1)) & (codes >= 0)
    own_cells = np.where(wrong, np.where(codes == 1, probabilities, 1 - probabilities), np.inf)
    return _multilabel(judged, head, own_cells, most)


def least_certain(judged: LabelledPredictions, head: Head, most: int) -> list[JudgedImage]:
    """The answers nearest to another one: the two most probable classes, or a tag nearest its threshold."""
    codes, probabilities, cuts = judged.of(head)
    if head.kind == "multiclass":
        top = np.partition(probabilities, -2, axis=1)[:, -2:]
        margin = np.where(codes >= 0, top[:, 1] - top[:, 0], np.inf)
        rows = np.argsort(margin, kind="stable")[: min(most, int((codes >= 0).sum()))]
        return [_multiclass(judged, head, row, codes, probabilities) for row in rows.tolist()]
    return _multilabel(judged, head, np.where(codes >= 0, np.abs(probabilities - cuts), np.inf), most)


def most_confident(judged: LabelledPredictions, head: Head) -> str | None:
    """The image of which the model is surest among those it answers rightly; of tags, by the surest that is there."""
    codes, probabilities, _ = judged.of(head)
    there = head.known(codes) if head.kind == "multiclass" else (codes == 1).any(axis=1)
    right = there & ~wrong_by_image(judged)
    if not right.any():
        return None
    own = probabilities if head.kind == "multiclass" else np.where(codes == 1, probabilities, 0)
    return judged.samples.ids[int(np.where(right, own.max(axis=1), -1).argmax())]


def wrong_by_image(judged: LabelledPredictions) -> Bools:
    """Which images (N,) have a wrong answer under any head."""
    wrong = np.zeros(len(judged.samples), np.bool_)
    for head in judged.samples.space:
        codes, probabilities, cuts = judged.of(head)
        if head.kind == "multiclass":
            wrong |= (codes >= 0) & (probabilities.argmax(axis=1) != codes)
        else:
            wrong |= (((probabilities >= cuts) != (codes == 1)) & (codes >= 0)).any(axis=1)
    return wrong


def label_text(head: Head, codes: Codes, row: int) -> str:
    """What is known of an image under a head, in words; nothing where it is unknown."""
    if head.kind == "multiclass":
        return plain(head.classes[codes[row]]) if codes[row] >= 0 else ""
    if not (codes[row] >= 0).any():
        return ""
    return ", ".join(plain(head.classes[tag]) for tag in np.flatnonzero(codes[row] == 1)) or "no tag"


def prediction_text(head: Head, probabilities: Any, cuts: Any, row: int) -> str:
    """What a model answers for an image under a head, in words."""
    if head.kind == "multiclass":
        best = int(probabilities[row].argmax())
        return f"{plain(head.classes[best])} {100 * probabilities[row, best]:.0f} %"
    given = np.flatnonzero(probabilities[row] >= cuts[row])
    return ", ".join(f"{plain(head.classes[tag])} {100 * probabilities[row, tag]:.0f} %" for tag in given) or "no tag"


def _multiclass(judged: LabelledPredictions, head: Head, row: int, codes: Codes, probabilities: Any) -> JudgedImage:
    best = int(probabilities[row].argmax())
    known, own = (
        (plain(head.classes[codes[row]]), float(probabilities[row, codes[row]])) if codes[row] >= 0 else ("", 0.0)
    )
    return JudgedImage(judged.samples.ids[row], known, plain(head.classes[best]), float(probabilities[row, best]), own)


def _multilabel(judged: LabelledPredictions, head: Head, score: Any, most: int) -> list[JudgedImage]:
    """The cells of lowest score, of each image one."""
    codes, probabilities, cuts = judged.of(head)
    tags = score.argmin(axis=1)
    lowest = score[np.arange(len(score)), tags]
    rows = np.argsort(lowest, kind="stable")
    found = []
    for row in rows[np.isfinite(lowest[rows])][:most].tolist():
        tag, probability = int(tags[row]), float(probabilities[row, tags[row]])
        there, given = codes[row, tag] == 1, probability >= cuts[row, tag]
        name = plain(head.classes[tag])
        found.append(
            JudgedImage(
                judged.samples.ids[row],
                name if there else f"no {name}",
                name if given else f"no {name}",
                probability if given else 1 - probability,
                probability if there else 1 - probability,
            )
        )
    return found


def _grouped(rows: Ints, first: Ints, second: Ints) -> dict[tuple[int, int], Ints]:
    if not len(rows):
        return {}
    order = np.lexsort((rows, second, first))
    pairs = np.stack((first, second), axis=1)[order]
    starts = np.flatnonzero(np.append(True, (np.diff(pairs, axis=0) != 0).any(axis=1)))
    groups = np.split(rows[order], starts[1:])
    return {(int(pairs[start, 0]), int(pairs[start, 1])): group for start, group in zip(starts, groups, strict=True)}
