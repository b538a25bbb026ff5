"""Queues: which images a person is shown, in which order, and in which groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from assay.arrays import Bools, Floats, Ints, Reals
from assay.labels.space import Codes, Head, LabelSpace

LEAST_WRONG = 0.5  # probability from which on a label is suspect
SEED = 0


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model makes of all images: probabilities (N, W), NaN where it has none.

    `wrong` are probabilities that a label is wrong, an array a head in the shape of its codes, NaN where there is no
    label.
    """

    probabilities: Floats
    wrong: tuple[Floats, ...]

    def most_wrong(self, space: LabelSpace) -> Floats:
        """Return the largest probability of each image (N,) that one of its labels is wrong; -1 where none is known."""
        by_head = [
            np.nan_to_num(head.columns(wrong), nan=-1).max(axis=1, initial=-1)
            for head, wrong in zip(space, self.wrong, strict=True)
        ]
        worst: Floats = np.max(by_head, axis=0)
        return worst


@dataclass(frozen=True, eq=False)
class Group:
    """Images of a queue that belong together, in the order in which they are shown."""

    id: str
    title: str
    rows: Ints


@dataclass(frozen=True, eq=False)
class Queue:
    """Images in the order in which they are shown; those that are settled under `head`, or any, are passed over."""

    id: str
    title: str
    rows: Ints
    groups: Sequence[Group] = field(default=())
    head: str | None = None
    settled_too: bool = False

    def group(self, name: str) -> Ints:
        """Return the rows of a group, of the whole queue without a name. Raises KeyError."""
        return {group.id: group.rows for group in self.groups}[name] if name else self.rows


def suspects(space: LabelSpace, codes: Sequence[Codes], scores: Scores) -> Queue:
    """Return the labels that are more likely wrong than right, grouped by given and suggested class."""
    groups: list[Group] = []
    worst = scores.most_wrong(space)
    for (head, _, known, probabilities), wrong in zip(
        space.each(codes, scores.probabilities), scores.wrong, strict=True
    ):
        rows, cells = np.nonzero(head.columns((np.nan_to_num(wrong) >= LEAST_WRONG) & (known >= 0)))
        given = head.columns(known)[rows, cells]
        best = probabilities[rows].argmax(axis=1) if head.multiclass else 1 - given
        prefix = f"{head.name}: " if len(space) > 1 else ""
        for key in np.unique(np.stack([cells, given, best], axis=1), axis=0).tolist():
            inside = rows[(cells == key[0]) & (given == key[1]) & (best == key[2])]
            title = _change(head, *key)
            ordered = inside[np.argsort(-worst[inside], kind="stable")]
            groups.append(Group(f"{head.name}/{title}", prefix + title, ordered))
    groups.sort(key=lambda group: -len(group.rows))
    everything = np.flatnonzero(worst >= LEAST_WRONG)
    return Queue("suspects", "Labels that look wrong", _descending(everything, worst), groups)


def _change(head: Head, cell: int, given: int, suggested: int) -> str:
    if head.multiclass:
        return f"{head.classes[given]} → {head.classes[suggested]}"
    return f"{'−' if given else '+'} {head.classes[cell]}"


def least_certain(space: LabelSpace, scores: Scores) -> Queue:
    """Return the images by the margin between their two most probable answers, the smallest first."""
    margins = np.min([_margin(head, scores.probabilities[:, columns]) for head, columns in space.each()], axis=0)
    known = np.flatnonzero(np.isfinite(margins))
    return Queue("uncertain", "Least certain", _descending(known, -margins))


def _margin(head: Head, probabilities: Reals) -> Reals:
    if not head.multiclass:
        return np.asarray(np.abs(2 * probabilities - 1).min(axis=1))
    if head.size < 2:
        return np.ones(len(probabilities))
    top = np.partition(probabilities, head.size - 2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def wrong_in_validation(space: LabelSpace, codes: Sequence[Codes], scores: Scores, validation: Bools) -> Queue:
    """Return the validation images with a label that the model contradicts, the surest contradiction first."""
    worst = np.full(len(validation), -1.0)
    for (head, _, known, probabilities), wrong in zip(
        space.each(codes, scores.probabilities), scores.wrong, strict=True
    ):
        missed = head.columns((known >= 0) & (head.decide(np.nan_to_num(probabilities)) != known))
        sure = np.where(missed, np.nan_to_num(head.columns(wrong), nan=-1), -1).max(axis=1, initial=-1)
        worst = np.maximum(worst, sure)
    rows = np.flatnonzero(validation & (worst >= 0))
    return Queue("validation", "Wrong on validation", _descending(rows, worst))


def unlabelled(space: LabelSpace, codes: Sequence[Codes]) -> Queue:
    """Return the images without a known label under some head, in the order of the data."""
    lacking = np.any([~head.known(known) for head, known in zip(space, codes, strict=True)], axis=0)
    return Queue("unlabelled", "Without a label", np.flatnonzero(lacking))


def by_class(space: LabelSpace, codes: Sequence[Codes], scores: Scores | None) -> Queue:
    """Return the images of each class, those most likely wrong first."""
    count = len(codes[0])
    worst = scores.most_wrong(space) if scores else np.zeros(count)
    groups = []
    for head, known in zip(space, codes, strict=True):
        prefix = f"{head.name}: " if len(space) > 1 else ""
        order = np.argsort(-worst, kind="stable")
        for number, name in enumerate(head.classes):
            rows = order[(known == number)[order] if head.multiclass else (known[:, number] == 1)[order]]
            groups.append(Group(f"{head.name}/{name}", prefix + name, rows))
    labelled = np.any([head.known(known) for head, known in zip(space, codes, strict=True)], axis=0)
    return Queue("class", "By class", _descending(np.flatnonzero(labelled), worst), groups)


def in_random_order(count: int, *, seed: int = SEED) -> Queue:
    """Return all images in random order."""
    return Queue("random", "In random order", np.random.default_rng(seed).permutation(count))


def as_in_the_data(count: int) -> Queue:
    """Return all images in the order of the data, settled ones too."""
    return Queue("all", "All images", np.arange(count), settled_too=True)


def settled(decided: Bools) -> Queue:
    """Return the images that a person has settled."""
    return Queue("decided", "Decided", np.flatnonzero(decided), settled_too=True)


def _descending(rows: Ints, values: Reals) -> Ints:
    return rows[np.argsort(-values[rows], kind="stable")]
