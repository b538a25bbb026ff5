"""Queues: which images a person is shown, in which order, and in which groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from assay.arrays import Bools, Floats, Ints, Reals
from assay.labels.space import Codes, Head, LabelSpace, conflicting
from assay.repair.duplicates import clusters

SEED = 0
OPENING = 6  # looks that opening a group costs
PAGE = 48  # images that are looked at together


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model makes of all images: probabilities (N, W), NaN where it has none.

    `wrong` are probabilities that a label is wrong, `suggested` the most probable other value: an array a head in the
    shape of its codes. `wrong` is NaN where there is no label.
    """

    probabilities: Floats
    wrong: Sequence[Reals]
    suggested: Sequence[Codes]

    def most_wrong(self, space: LabelSpace) -> Reals:
        """Return the largest probability of each image (N,) that one of its labels is wrong; -1 where none is known."""
        by_head = [
            np.nan_to_num(head.columns(wrong), nan=-1).max(axis=1, initial=-1)
            for head, wrong in zip(space, self.wrong, strict=True)
        ]
        return np.asarray(np.max(by_head, axis=0))


@dataclass(frozen=True, eq=False)
class Group:
    """Images of a queue that belong together, in the order in which they are shown.

    Those are passed over that are settled: under the head of that number, or in one cell of it; without a head, under
    all heads.
    """

    id: str
    title: str
    rows: Ints
    head: int | None = None
    cell: int | None = None

    def left(self, settled: Sequence[Bools]) -> Ints:
        """Return the rows that are not settled; `settled` is an array a head in the shape of its codes."""
        if self.head is None:
            done = np.logical_and.reduce([_any_cell(cells) for cells in settled])
        elif self.cell is None or settled[self.head].ndim == 1:
            done = _any_cell(settled[self.head])
        else:
            done = settled[self.head][:, self.cell]
        return np.asarray(self.rows[~done[self.rows]])


def _any_cell(cells: Bools) -> Bools:
    return np.asarray(cells if cells.ndim == 1 else cells.any(axis=1))


@dataclass(frozen=True, eq=False)
class Queue:
    """Images in the order in which they are shown; with `whole`, settled ones too.

    A queue `of_groups` holds what is left in any of its groups.
    """

    id: str
    title: str
    rows: Ints
    groups: Sequence[Group] = field(default=())
    whole: bool = False
    of_groups: bool = False

    def left(self, settled: Sequence[Bools], group: str = "") -> Ints:
        """Return the rows of a group, or of all, that are left to look at. Raises KeyError for an unknown group."""
        if group:
            return {one.id: one for one in self.groups}[group].left(settled)
        if self.whole:
            return self.rows
        if not self.of_groups:
            return Group(self.id, self.title, self.rows).left(settled)
        inside = np.zeros(len(settled[0]), dtype=np.bool_)
        for one in self.groups:
            inside[one.left(settled)] = True
        return self.rows[inside[self.rows]]


def suspects(space: LabelSpace, given: Sequence[Codes], scores: Scores) -> Queue:
    """Return the labels that another class contradicts, grouped by given and suggested class.

    First is the group whose first page is expected to find most wrong labels a look. `given` are the labels that
    `scores` are of: a settled one stays, so that a group does not change under the hand of whoever works on it.
    """
    groups: list[tuple[float, Group]] = []
    for number, (head, known) in enumerate(zip(space, given, strict=True)):
        givens, others = head.columns(known), head.columns(scores.suggested[number])
        probabilities = head.columns(np.asarray(scores.wrong[number], np.float32))
        contradicted = _contradicted(head, givens, scores.probabilities[:, space.slices[number]])
        prefix = f"{head.name}: " if len(space) > 1 else ""
        for cell in range(head.cells):
            wrong = probabilities[:, cell]
            for one in suspect_groups(givens[:, cell], others[:, cell], wrong, contradicted[:, cell]):
                title = _change(head, cell, one.given, one.suggested)
                expected = finds_a_look(wrong[one.rows[:PAGE]])
                groups.append((expected, Group(f"{head.name}/{title}", prefix + title, one.rows, number, cell)))
    groups.sort(key=lambda pair: -pair[0])
    rows = np.unique(np.concatenate([group.rows for _, group in groups])) if groups else np.zeros(0, np.int64)
    rows = _descending(rows, scores.most_wrong(space))
    return Queue("suspects", "Labels that look wrong", rows, [group for _, group in groups], of_groups=True)


def _contradicted(head: Head, given: Ints, probabilities: Reals) -> Bools:
    """Return which given values (N, cells) are not the most probable ones."""
    known = np.isfinite(probabilities).all(axis=1) if head.size else np.zeros(len(given), np.bool_)
    predicted = np.full(given.shape, -1, np.int64)
    predicted[known] = head.columns(head.decide(probabilities[known]))
    return np.asarray((given >= 0) & (predicted >= 0) & (predicted != given))


def _change(head: Head, cell: int, given: int, suggested: int) -> str:
    if head.multiclass:
        return f"{head.classes[given]} → {head.classes[suggested]}"
    return f"{'−' if given else '+'} {head.classes[cell]}"


def doubtful(space: LabelSpace, scores: Scores) -> Queue:
    """Return all labelled images, those first whose labels are most likely wrong."""
    worst = scores.most_wrong(space)
    return Queue("doubtful", "All labels, the most doubtful first", _descending(np.flatnonzero(worst >= 0), worst))


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
        missed = _contradicted(head, head.columns(known), probabilities)
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
    for position, (head, known) in enumerate(zip(space, codes, strict=True)):
        prefix = f"{head.name}: " if len(space) > 1 else ""
        order = np.argsort(-worst, kind="stable")
        for number, name in enumerate(head.classes):
            rows = order[(known == number)[order] if head.multiclass else (known[:, number] == 1)[order]]
            groups.append(Group(f"{head.name}/{name}", prefix + name, rows, position))
    labelled = np.any([head.known(known) for head, known in zip(space, codes, strict=True)], axis=0)
    return Queue("class", "By class", _descending(np.flatnonzero(labelled), worst), groups)


def in_random_order(count: int, *, seed: int = SEED) -> Queue:
    """Return all images in random order."""
    return Queue("random", "In random order", np.random.default_rng(seed).permutation(count))


def as_in_the_data(count: int) -> Queue:
    """Return all images in the order of the data, settled ones too."""
    return Queue("all", "All images", np.arange(count), whole=True)


def outliers(distances: Reals) -> Queue:
    """Return the images by their distance to the nearest others (N,), NaN where it is not known, the farthest first."""
    known = np.flatnonzero(np.isfinite(distances))
    return Queue("outliers", "Unlike all others", _descending(known, distances))


def differing_copies(space: LabelSpace, codes: Sequence[Codes], pairs: Ints) -> Queue:
    """Return the copies of one image, by pairs (P, 2) of rows, that bear different labels; a group a cluster."""
    cluster = clusters(pairs, len(codes[0]))
    torn = np.any([conflicting(cluster, known) for known in codes], axis=0) if len(pairs) else np.zeros(0, np.bool_)
    groups = []
    for number in np.flatnonzero(torn).tolist():
        rows = np.flatnonzero(cluster == number)
        labels = [text for head, known in zip(space, codes, strict=True) for text in _texts(head, known[rows])]
        groups.append(Group(f"copies/{number}", f"{len(rows)} copies: {' / '.join(dict.fromkeys(labels))}", rows))
    rows = np.concatenate([group.rows for group in groups]) if groups else np.zeros(0, np.int64)
    return Queue("duplicates", "Copies with different labels", rows, groups)


def _texts(head: Head, codes: Codes) -> list[str]:
    return [text for code in codes if (text := head.labels_text(code))]


def settled(decided: Bools) -> Queue:
    """Return the images that a person has settled."""
    return Queue("decided", "Decided", np.flatnonzero(decided), whole=True)


def _descending(rows: Ints, values: Reals) -> Ints:
    return rows[np.argsort(-values[rows], kind="stable")]


# Suspect labels by given and suggested value.


@dataclass(frozen=True, eq=False)
class SuspectGroup:
    """Labels of one given and one suggested value: rows, the most suspicious first."""

    given: int
    suggested: int
    rows: Ints


def suspect_groups(given: Ints, suggested: Ints, wrong: Reals, undecided: Bools) -> list[SuspectGroup]:
    """Return the undecided labels by given and suggested value, the group first whose first page finds most a look.

    given, suggested: (n,) values of cells; wrong: (n,) the probability that the given one is wrong, NaN where it is not
    known. A page of one group is accepted with few keys; a page of mixed suggestions is not.
    """
    rows = np.flatnonzero(undecided & np.isfinite(wrong) & (given >= 0))
    rows = rows[np.argsort(-wrong[rows], kind="stable")]
    pairs = np.stack([given[rows], suggested[rows]], axis=1)
    names, index = np.unique(pairs, axis=0, return_inverse=True)
    members = [rows[index.ravel() == number] for number in range(len(names))]
    groups = [SuspectGroup(int(pair[0]), int(pair[1]), of_pair) for pair, of_pair in zip(names, members, strict=True)]
    return sorted(groups, key=lambda group: -finds_a_look(wrong[group.rows[:PAGE]]))


def finds_a_look(wrong: Reals) -> float:
    """Return the wrong labels that a look at a page of a group is expected to find, by its probabilities (n,)."""
    return float(wrong.sum()) / (len(wrong) + OPENING)
