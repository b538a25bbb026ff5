"""Learning from decisions as they are made: linear heads on cached features, fitted again in the background.

Every label is judged by models of other folds, so that none is judged by a model that learnt from it. A decided label
teaches as the truth.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from assay.arrays import Bools, Doubles, Floats, Ints
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.intervals import Metric
from assay.metrics.metrics import probabilities_of
from assay.metrics.remaining import next_hundred, recalibrated, wrong_left
from assay.training.fold_linear import Components, fit_folds, fold_logits, targets_of

COMPONENTS = 256  # of the features: of 10,000 images x 1,280 features, more fit no better and take longer
PENALTY = 0.1  # of a label: 1 / C over the number of labels


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
    """Linear heads on features (N, F) that are fitted again as labels are decided.

    `fold` (N,) is -1 for images that teach nothing, those of validation and test: the models of all folds judge them.
    """

    def __init__(self, space: LabelSpace, features: Floats, fold: Ints) -> None:
        """Reduce the features to their components: about a second for 10,000 images."""
        self.space, self.fold = space, fold
        self.components = Components.of(features, COMPONENTS)
        self._coefficients: Floats | None = None

    def learn(self, labels: Labels) -> Learnt:
        """Return what these labels teach; each call begins where the last ended. For one thread at a time."""
        targets, weights = targets_of(self.space, labels.now)
        taught = (weights > 0).any(axis=1)
        penalty = PENALTY * max(1, int((taught & (self.fold >= 0)).sum()))
        self._coefficients = fit_folds(
            self.space, self.components, targets, weights, self.fold, penalty=penalty, start=self._coefficients
        )
        judge = np.where(taught, self.fold, -1)
        probabilities = probabilities_of(self.space, fold_logits(self.components, self._coefficients, judge))
        return self._learnt(labels, probabilities)

    def predict(self, components: Floats) -> Floats:
        """Return probabilities (n, W) of images by their components (n, D): the mean model, after `learn`."""
        assert self._coefficients is not None
        slopes, levels = np.split(self._coefficients.mean(axis=1), [-1])
        return probabilities_of(self.space, components @ slopes + levels)

    def _learnt(self, labels: Labels, probabilities: Floats) -> Learnt:
        wrong, suggested = [], []
        for head, columns, given in self.space.each(labels.given):
            of_given, other = _given_and_other(head, given, probabilities[:, columns].astype(np.float64))
            wrong.append(1 - of_given)
            suggested.append(other)
        parts = [
            (one[np.isfinite(one) & ~decided], one[looked], (given != now)[looked])
            for one, decided, given, now in zip(wrong, labels.decided, labels.given, labels.now, strict=True)
            for looked in [decided & np.isfinite(one) & (now >= 0)]
        ]
        undecided, decided, outcome = (np.concatenate([part[k] for part in parts]) for k in range(3))
        any_given = len(undecided) + len(decided) > 0
        return Learnt(
            probabilities,
            tuple(recalibrated(one, decided, outcome) for one in wrong),
            tuple(suggested),
            wrong_left(undecided, decided, outcome) if any_given else None,
            next_hundred(undecided, decided, outcome) if any_given else None,
        )


def _given_and_other(head: Head, given: Codes, probabilities: Doubles) -> tuple[Doubles, Codes]:
    """Return the probability of each given value, NaN where unknown, and the most probable other value."""
    known = given >= 0
    if head.multiclass:
        rows = np.flatnonzero(known)
        of_given = np.full(len(given), np.nan)
        of_given[rows] = probabilities[rows, given[rows]]
        others = probabilities.copy()
        others[rows, given[rows]] = -1.0
        return of_given, others.argmax(axis=1)
    present = np.where(given == 1, probabilities, 1 - probabilities)
    return np.where(known, present, np.nan), np.where(known, 1 - given, (probabilities >= 0.5).astype(np.int64))


class Background:
    """A thread that learns again whenever it is woken, from the labels as they are then.

    `snapshot` returns a version and the labels; `publish` takes that version and what was learnt. Both are called in
    the thread. Several wakes while it learns are one. `failure` says why it no longer learns.
    """

    def __init__(
        self, learner: Learner, snapshot: Callable[[], tuple[int, Labels]], publish: Callable[[int, Learnt], None]
    ) -> None:
        """Start the thread; it waits until `wake`."""
        self._learner, self._snapshot, self._publish = learner, snapshot, publish
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
            version, labels = self._snapshot()
            try:
                learnt = self._learner.learn(labels)
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}"
                raise
            self._publish(version, learnt)
