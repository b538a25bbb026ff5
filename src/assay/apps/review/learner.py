"""Learning from decisions as they are made: linear heads on cached features, fitted again in the background.

Every label is judged by models of other folds and by neighbours in other folds, so that none is judged by a model that
learnt from it. A decided label teaches as the truth; of any other, what its true value probably is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from assay.arrays import Bools, Doubles, Floats, Ints
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.intervals import Metric
from assay.metrics.metrics import probabilities_of
from assay.metrics.remaining import wrong_left
from assay.predictions.acquisition import Pool
from assay.repair.nearest import nearest
from assay.repair.wrong_probability import (
    estimated_noise,
    noise_matrix,
    prior_wrong,
    true_posterior,
    wrong_by_decisions,
)
from assay.training.fold_linear import Components, fit_folds, fold_logits

COMPONENTS = (
    128  # of the features: of 10,000 images x 1,280 features, 512 rank labels no better and take four times as long
)
PENALTY, LEAST_PENALTY = 0.1, 20.0  # 1 / C: of a label, and in all
NEIGHBOURS = 25  # of which a fifth or so are in the image's fold, and do not count
T = TypeVar("T", Doubles, Ints)

ROUNDS = 3  # of fit and posterior where nothing was learnt before
NEXT = 100  # decisions that lie ahead


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels under review, one array a head in the shape of its codes.

    given: as they were before anybody looked; now: with the decisions; decided: which cells a person decided.
    """

    given: tuple[Codes, ...]
    now: tuple[Codes, ...]
    decided: tuple[Bools, ...]


@dataclass(frozen=True, eq=False)
class Learnt:
    """What is known after some decisions; `wrong` and `suggested` are one array a head in the shape of its codes.

    probabilities: (N, W), out of fold.
    wrong: the probability that the label as it was given is wrong, by models that did not learn from it, NaN where none
    was given. It is kept for decided labels.
    suggested: the most probable value other than the given one, or of all where none was given.
    left: how many labels that nobody decided are wrong; next_hundred: how many of them the next 100 decisions find;
    None where no label was given.
    """

    probabilities: Floats
    wrong: tuple[Doubles, ...]
    suggested: tuple[Codes, ...]
    left: Metric | None
    next_hundred: float | None


class Learner:
    """Linear heads and neighbours on features (N, F) that learn again as labels are decided.

    `fold` (N,) is -1 for images that teach nothing, those of validation and test: the models of all folds judge them.
    """

    def __init__(self, space: LabelSpace, features: Floats, fold: Ints) -> None:
        """Reduce the features to components and look up neighbours: some seconds for 10,000 images."""
        self.space, self.fold = space, fold
        self.components = Components.of(features, COMPONENTS)
        self.vectors = self.components.vectors[:, :-1] * np.sqrt(self.components.variances)  # their distances count
        self._near, cosines = nearest(self.vectors, NEIGHBOURS)
        other = (fold[self._near] >= 0) & (fold[self._near] != fold[:, None])
        self._weights = np.where(other, np.maximum((1 + cosines) / 2, 0), 0).astype(np.float32)
        self._coefficients: Floats | None = None
        self._posterior: list[Doubles] = []  # P(true | image, given) (N, values) of each cell of each head
        self._noise: list[Doubles] = []

    def learn(self, labels: Labels) -> Learnt:
        """Return what these labels teach; each call begins where the last ended. For one thread at a time."""
        known = np.any([head.known(codes) for head, codes in zip(self.space, labels.now, strict=True)], axis=0)
        for _ in range(ROUNDS if self._coefficients is None else 1):
            targets, weights = self._targets(labels)
            penalty = max(LEAST_PENALTY, PENALTY * int((known & (self.fold >= 0)).sum()))
            self._coefficients = fit_folds(
                self.space, self.components, targets, weights, self.fold, penalty=penalty, start=self._coefficients
            )
            logits = fold_logits(self.components, self._coefficients, np.where(known, self.fold, -1))
            linear = probabilities_of(self.space, logits)
            local, support = self._local(targets, weights)
            mixed = ((linear + support * local) / (1 + support)).astype(np.float32)
            self._judge(labels, mixed)
        return self._learnt(labels, linear, local, mixed)

    def pool(self, head: Head, labelled: Bools) -> Pool:
        """Return the images as the functions take them that choose what to label next under a head; `labelled` (N,)."""
        if self._coefficients is None:
            raise ValueError("nothing was learnt so far")
        mean, values = self._coefficients.mean(axis=1), self.vectors / np.sqrt(self.components.variances)
        probabilities = probabilities_of(self.space, values @ mean[:-1] + mean[-1])[:, self.space.columns_of(head.name)]
        if not head.multiclass:  # the tag that is least certain
            doubtful = np.abs(probabilities - 0.5).argmin(axis=1)[:, None]
            present = np.take_along_axis(probabilities, doubtful, axis=1)
            probabilities = np.concatenate([1 - present, present], axis=1)
        return Pool(self.vectors, labelled | (self.fold < 0), probabilities)

    def _cells(self, labels: tuple[Codes, ...]) -> Iterator[tuple[Head, slice, Ints]]:
        """Yield each cell of each head: the head, its columns in (N, W), and values (N,)."""
        for head, columns, codes in self.space.each(labels):
            for cell, values in enumerate(head.columns(codes).T):
                yield (
                    head,
                    columns if head.multiclass else slice(columns.start + cell, columns.start + cell + 1),
                    values,
                )

    def _targets(self, labels: Labels) -> tuple[Floats, Floats]:
        """Return soft targets and weights (N, W): what was decided, and else what the given label probably means."""
        targets, weights = np.zeros((2, len(self.fold), self.space.width), np.float32)
        decided = (cells for _, _, cells in self._cells(tuple(one.astype(np.int64) for one in labels.decided)))
        for number, ((head, columns, now), sure) in enumerate(zip(self._cells(labels.now), decided, strict=True)):
            known = np.flatnonzero((now >= 0) & (self.fold >= 0))
            values = np.eye(head.values)[now[known]]
            if self._posterior:
                guessed = sure[known] == 0
                values[guessed] = self._posterior[number][known[guessed]]
            targets[known, columns] = values if head.multiclass else values[:, 1:]
            weights[known, columns] = 1.0
        return targets, weights

    def _local(self, targets: Floats, weights: Floats) -> tuple[Floats, Floats]:
        """Return probabilities (N, W) by neighbours in other folds, and which share of them is labelled (N, W).

        The mean of all labels counts as one neighbour more (m-estimate, Cestnik 1990).
        """
        total, support = np.zeros((2, *targets.shape), np.float32)
        prior = (targets * weights).sum(axis=0) / np.maximum(weights.sum(axis=0), 1)
        for rank, near in enumerate(self._near.T):  # one neighbour at a time: (N, W), not (N, neighbours, W)
            cells = self._weights[:, rank, None] * weights[near]
            total += cells * targets[near]
            support += cells
        counted = np.maximum(self._weights.sum(axis=1, keepdims=True), 1e-6)
        return ((total + prior) / (support + 1)).astype(np.float32), (support / counted).astype(np.float32)

    def _judge(self, labels: Labels, mixed: Floats) -> None:
        """Estimate the noise of each cell, and what the given labels probably mean (expectation-maximisation)."""
        now = [values for _, _, values in self._cells(labels.now)]
        first, posteriors = not self._noise, []
        for number, (head, columns, given) in enumerate(self._cells(labels.given)):
            probabilities, known = _values(head, mixed[:, columns]), given >= 0
            teaches = known & (self.fold >= 0)
            if first:
                self._noise.append(estimated_noise(probabilities[teaches], given[teaches]))
            posterior = np.full(probabilities.shape, 1 / head.values)
            posterior[known] = true_posterior(probabilities[known], given[known], self._noise[number])
            sure = posterior.copy()
            changed = known & (now[number] >= 0) & (now[number] != given)
            sure[changed] = np.eye(head.values)[now[number][changed]]
            self._noise[number] = noise_matrix(sure[teaches], given[teaches])
            posteriors.append(posterior)
        self._posterior = posteriors

    def _learnt(self, labels: Labels, linear: Floats, local: Floats, mixed: Floats) -> Learnt:
        before, wrong, suggested, decided, outcome = [], [], [], [], []
        settled = [cells == 1 for _, _, cells in self._cells(tuple(one.astype(np.int64) for one in labels.decided))]
        now = [values for _, _, values in self._cells(labels.now)]
        for number, (head, columns, given) in enumerate(self._cells(labels.given)):
            views = [_values(head, part[:, columns]) for part in (linear, local, mixed)]
            known, posterior = np.flatnonzero(given >= 0), self._posterior[number]
            others = views[2].copy()
            others[known, given[known]] = -1
            looked = settled[number][known] & (now[number][known] >= 0)
            changed = (now[number] != given)[known[looked]]
            prior = prior_wrong(posterior[known], views[2][known], given[known])
            corrected = np.full(len(given), np.nan)
            corrected[known] = wrong_by_decisions(
                prior, [view[known] for view in (posterior, *views)], given[known], looked, changed
            )
            before.append(prior[~settled[number][known]])
            decided.append(prior[looked])
            outcome.append(changed)
            wrong.append(corrected)
            suggested.append(others.argmax(axis=1))
        ahead = np.concatenate([one[~done & np.isfinite(one)] for one, done in zip(wrong, settled, strict=True)])
        return Learnt(
            mixed,
            tuple(self._by_head(wrong)),
            tuple(self._by_head(suggested)),
            wrong_left(np.concatenate(before), np.concatenate(decided), np.concatenate(outcome))
            if len(ahead) or any(len(one) for one in outcome)
            else None,
            float(np.sort(ahead)[::-1][:NEXT].sum()) if len(ahead) else None,
        )

    def _by_head(self, cells: list[T]) -> Iterator[T]:
        """Yield arrays of each cell (N,) as those of each head, in the shape of its codes."""
        first = 0
        for head in self.space:
            yield head.from_columns(np.stack(cells[first : first + head.cells], axis=1))
            first += head.cells


def _values(head: Head, probabilities: Floats) -> Doubles:
    """Return the probability of each value of a cell (N, values), from its columns (N, K) or (N, 1)."""
    present = probabilities.astype(np.float64)
    return present if head.multiclass else np.concatenate([1 - present, present], axis=1)


class Background:
    """A thread that learns again whenever it is woken, from the labels as they are then.

    `snapshot` returns a version and the labels; `publish` takes that version and what was learnt. Both are called in
    the thread. Several wakes while it learns are one. `failure` says why it no longer learns.
    """

    def __init__(
        self,
        learner: Learner,
        snapshot: Callable[[], tuple[int, Labels]],
        publish: Callable[[int, Learnt], None],
        *,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start the thread; it waits until `wake`."""
        self._learner, self._snapshot, self._publish, self._failed = learner, snapshot, publish, failed
        self._woken, self._closed = threading.Event(), threading.Event()
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Learn again soon."""
        self._woken.set()

    def close(self) -> None:
        """End the thread after what it is doing."""
        self._closed.set()
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while self._woken.wait() and not self._closed.is_set():
            self._woken.clear()
            try:
                version, labels = self._snapshot()
                self._publish(version, self._learner.learn(labels))
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}"
                self._failed(self.failure)
                raise
