"""What a review learns in the background: features of the images, then heads on them after every few decisions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from assay.apps.review import queues
from assay.apps.review.learner import Background, Labels, Learner, Learnt
from assay.apps.review.queues import Queue, Scores
from assay.apps.review.session import Estimates, ReviewSession
from assay.arrays import Floats, Ints, Reals
from assay.errors import AssayError
from assay.experiments.audit_inputs import AuditData, AuditInputs
from assay.labels.samples import Samples
from assay.labels.split import folds
from assay.metrics.intervals import Metric
from assay.metrics.metrics import PlanMetric, headline, overall, score
from assay.predictions.acquisition import central, diverse, margin
from assay.progress import GivenUpError, NoProgress
from assay.repair.nearest import nearest

MOST_IMAGES = 100_000  # of which features are computed: more take hours without a GPU
SIZE = 192  # pixels: 3 % more of the wrong labels are among the first 30 % than at 128 (cifar10n), at twice the time
FOLDS = 5
NEIGHBOURS = 10
FIRST = 25  # images, or twice the classes, that are chosen to be labelled next: after that, it is known better
RELIABLE = 0.4  # accuracy out of fold from which the model's doubts say what to label next
HELD_OUT = ("val", "test")


class Learning:
    """A thread that computes features, and one that learns from decisions; neither keeps a request waiting."""

    def __init__(self, session: ReviewSession, data: AuditData, folder: Path, *, device: str) -> None:
        self.session, self.data, self.folder, self.device = session, data, folder, device
        self._background: Background | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._begin, name="features", daemon=True)

    def start(self) -> None:
        if len(self.session.samples) > MOST_IMAGES:
            self.session.working = f"features are computed of {MOST_IMAGES:,} images at most: nothing is suggested"
            return
        self._thread.start()

    def close(self) -> None:
        """Stop learning, and wait for it: a process that ends while a thread computes is aborted by its libraries."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._background is not None:
            self._background.close()

    def _go_on(self) -> None:
        """Raise GivenUpError once the review has ended."""
        if self._ended.is_set():
            raise GivenUpError

    def _begin(self) -> None:
        session = self.session
        try:
            inputs = AuditInputs.of(
                self.data, self.folder, device=self.device, progress=_Working(session, self._go_on), size=SIZE
            )
            rows = np.fromiter((session.decisions.rows[name] for name in inputs.samples.ids), np.int64)
            features = inputs.features
            self._go_on()
            session.working = "looking for copies and for images unlike all others"
            session.features = _spread(features, rows, len(session.samples))
            session.further = (*self._further(inputs, rows, features), *session.further)
            session.working = None
            learner = Learner(session.samples.space, features, learning_folds(inputs.samples, seed=inputs.seed))
            publisher = _Publisher(session, learner, rows, self.data.loaded.plan.metric)
            background = Background(learner, lambda: self._labels(rows), publisher, failed=self._failed)
        except GivenUpError:
            return
        except AssayError as error:
            session.working = f"nothing is suggested: {error}"
            session.changed()
            return
        except Exception:
            session.working = "nothing is suggested: the terminal has the reason"
            session.changed()
            raise
        self._background = background
        session.on_decision = background.wake
        background.wake()

    def _failed(self, reason: str) -> None:
        self.session.learning, self.session.working = False, f"nothing more is learnt: {reason}"
        self.session.changed()

    def _further(self, inputs: AuditInputs, rows: Ints, features: Floats) -> list[Queue]:
        """Return the queues that follow from the images alone."""
        session = self.session
        count, codes = len(session.samples), session.decisions.given
        _, cosines = nearest(features - features.mean(axis=0), NEIGHBOURS)
        distances = _spread(1 - cosines.mean(axis=1), rows, count) if cosines.shape[1] else np.zeros(0)
        copies = queues.differing_copies(session.samples.space, codes, rows[inputs.copies.pairs])
        return [copies, *([queues.outliers(distances)] if len(distances) else [])]

    def _labels(self, rows: Ints) -> tuple[int, Labels]:
        session, decisions = self.session, self.session.decisions
        with decisions.lock:
            session.learning = True
            now, settled = (tuple(one[rows] for one in decisions.codes), tuple(one[rows] for one in decisions.settled))
            return session.version, Labels(tuple(one[rows] for one in decisions.given), now, settled)


class _Publisher:
    """Hands what was learnt of the readable images `rows` to the session."""

    def __init__(self, session: ReviewSession, learner: Learner, rows: Ints, metric: PlanMetric | None) -> None:
        self.session, self.learner, self.rows, self.metric = session, learner, rows, metric
        self.validation = session.samples.table["split"].is_in(["val"]).to_numpy()[rows]

    def __call__(self, version: int, learnt: Learnt) -> None:
        session, count = self.session, len(self.session.samples)
        with session.decisions.lock:
            codes = [one[self.rows] for one in session.decisions.codes]
        scores = Scores(
            _spread(learnt.probabilities, self.rows, count),
            tuple(_spread(one, self.rows, count) for one in learnt.wrong),
            tuple(_placed(one, self.rows, count) for one in learnt.suggested),
        )
        estimates = Estimates(learnt.left, learnt.next_hundred, self._validated(codes, learnt.probabilities))
        session.learning = session.decided_at > version
        session.publish(scores, estimates, self._next(codes, learnt.probabilities))

    def _validated(self, codes: list[Ints], probabilities: Floats) -> tuple[str, Metric] | None:
        """Return the headline metric on validation by the labels of now; None where none is known."""
        space = self.session.samples.space
        known = self.validation & np.any([head.known(one) for head, one in zip(space, codes, strict=True)], axis=0)
        if not known.any():
            return None
        metrics = overall(score(space, [one[known] for one in codes], probabilities[known]))
        name = headline(metrics, self.metric)
        return (name, metrics[name]) if name else None

    def _next(self, codes: list[Ints], probabilities: Floats) -> list[Queue]:
        """Return the images without a label that are best labelled next, where there are any."""
        head = self.session.samples.space.heads[0]
        labelled = head.known(codes[0])
        pool = self.learner.pool(head, labelled)
        if not len(pool.rows):
            return []
        teaches = labelled & (self.learner.fold >= 0)
        begun = len(np.unique(codes[0][teaches], axis=0)) > 1
        if begun and head.multiclass:
            answers = probabilities[teaches, self.session.samples.space.columns_of(head.name)].argmax(axis=1)
            begun = float((answers == codes[0][teaches]).mean()) >= RELIABLE
        count = max(FIRST, 2 * head.size)
        chosen = (diverse if begun else central)(pool, count, seed=int(labelled.sum()))
        rest = margin(pool, len(pool.rows))
        rows = self.rows[np.concatenate([chosen, rest[~np.isin(rest, chosen)]])]
        return [Queue("next", "Best labelled next", rows)]


def learning_folds(samples: Samples, *, seed: int) -> Ints:
    """Return the fold of each image (N,) that teaches; -1 of those of validation and test."""
    teaches = ~samples.table["split"].is_in(HELD_OUT).fill_null(False).to_numpy()
    labelled = np.flatnonzero(teaches & samples.labelled())
    # Labels to come are in no stratum yet: their folds are drawn, of copies together.
    _, content = np.unique([name or "" for name in samples.hashes], return_inverse=True)
    fold = np.random.default_rng(seed).integers(0, FOLDS, len(samples))[content]
    if len(labelled):
        fold[labelled] = folds(samples.take(labelled), FOLDS, seed=seed)
    return np.where(teaches, fold, -1)


def _spread(values: Reals, rows: Ints, count: int) -> Floats:
    """Return values of some rows as those of all, NaN for the others."""
    if len(rows) == count and np.array_equal(rows, np.arange(count)):
        return np.asarray(values, np.float32)
    whole = np.full((count, *values.shape[1:]), np.nan, np.float32)
    whole[rows] = values
    return whole


def _placed(codes: Ints, rows: Ints, count: int) -> Ints:
    whole = np.full((count, *codes.shape[1:]), -1, np.int64)
    whole[rows] = codes
    return whole


class _Working(NoProgress):
    """Says in the session what is under way, and how far it is; `go_on` is called beforehand, and may raise."""

    def __init__(self, session: ReviewSession, go_on: Callable[[], None]) -> None:
        self.session, self._go_on, self._what, self._total, self._done = session, go_on, "", 0, 0

    def begin(self, what: str, total: int) -> None:
        self._go_on()
        self._what, self._total, self._done = what, total, 0
        self.session.working = what

    def advance(self, count: int, metrics: object = None) -> None:
        self._go_on()
        self._done += count
        self.session.working = f"{self._what}: {self._done:,} of {self._total:,}"

    def line(self, text: str) -> None:
        self.session.working = text.strip()

    def end(self) -> None:
        self.session.working = None
