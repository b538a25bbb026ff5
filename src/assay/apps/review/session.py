"""A review: images, the decisions on them, what a model makes of them, and what every window sees of that."""

from __future__ import annotations

import json
import string
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from assay.apps.images import ImageFiles
from assay.apps.review import queues
from assay.apps.review.decisions import Decision, Decisions, Stored
from assay.apps.review.queues import Queue, Scores
from assay.apps.review.training import Trainer
from assay.apps.review.views import GradCam, map_points, nearest_labelled, rarest
from assay.arrays import Bools, Floats, Ints
from assay.errors import DataError, RunError
from assay.files import write_json
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.metrics.intervals import Metric
from assay.metrics.remaining import random_audit
from assay.report.sections.feature_map import palette

KEYS = tuple("1234567890" + "".join(letter for letter in string.ascii_lowercase if letter not in "diuyz"))
"""Keys of classes, in order; D, I, U, Y and Z are those of the page."""
TOP = 10  # classes of an image whose probability is listed
AUDIT_FILE = "random_audit.json"
LIMITS = ("value", "low", "high")
MOST_ROWS = 4_000  # of one request
LEAST_DECISIONS = 20  # below which the number of wrong labels is not estimated: hard images look like wrong labels

Label = str | Mapping[str, int | None] | None


@dataclass(frozen=True)
class RandomAudit:
    """Rows that were drawn to estimate the share of wrong labels."""

    rows: Ints
    seed: int

    def write(self, path: Path, samples: Samples) -> None:
        names = samples.table["id"]
        write_json(path, {"seed": self.seed, "images": [names[row] for row in self.rows.tolist()]})

    @staticmethod
    def read(path: Path, decisions: Decisions) -> RandomAudit | None:
        """Return what was drawn last, of the images that are still there; None where nothing was."""
        if not path.exists():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [decisions.rows[name] for name in record["images"] if name in decisions.rows]
        return RandomAudit(np.array(rows, np.int64), record["seed"])


@dataclass(frozen=True)
class Estimates:
    """What is expected by now: labels still wrong, those that the next 100 decisions find, and validation metrics."""

    wrong_left: Metric | None = None
    next_hundred: float | None = None
    validation: tuple[str, Metric] | None = None


@dataclass(eq=False)
class ReviewSession:
    """The state that all windows share; its methods may be called from any thread."""

    name: str
    kind: Literal["run", "data"]
    decisions: Decisions
    images: ImageFiles
    command: str
    busy: Callable[[], str | None] = lambda: None  # why nothing can be stored just now
    folder: Path | None = None  # for what is to be there when the review is opened again
    features: Floats | None = None  # (N, F)
    scores: Scores | None = None
    gradcam: GradCam | None = None
    trainer: Trainer | None = None
    audit: RandomAudit | None = None
    estimates: Estimates = Estimates()
    first: Sequence[Queue] = ()  # what is best labelled next
    further: Sequence[Queue] = ()  # that do not change: outliers, copies, what an audit listed
    on_decision: Callable[[], None] = lambda: None
    learning: bool = False
    working: str | None = None  # what is done before anything can be learnt, or why nothing is
    decided_at: int = 0  # the version that the last decision made
    _version: int = 0
    _map_lock: threading.Lock = field(default_factory=threading.Lock)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _queues: list[Queue] = field(default_factory=list)
    _made_of: int = -1
    _made_at: float = -np.inf
    _seconds: float = 0.0

    @property
    def samples(self) -> Samples:
        return self.decisions.samples

    @property
    def version(self) -> int:
        return self._version

    def changed(self) -> int:
        """Count the version up, and return it."""
        with self._lock:
            self._version += 1
            return self._version

    def refresh(self) -> None:
        """Take over what another process has written to the ledger."""
        if self.decisions.refresh():
            self._decided()

    # What is decided.

    def decide(self, decisions: Sequence[Decision]) -> tuple[int, Stored]:
        """Store decisions; return the version they make. Raises as `Decisions.decide` does."""
        stored = self.decisions.decide(decisions)
        return self._decided(), stored

    def undo(self) -> tuple[int, Stored]:
        stored = self.decisions.undo()
        return self._decided(), stored

    def redo(self) -> tuple[int, Stored]:
        stored = self.decisions.redo()
        return self._decided(), stored

    def _decided(self) -> int:
        version = self.decided_at = self.changed()
        self.on_decision()
        return version

    def publish(self, scores: Scores, estimates: Estimates, first: Sequence[Queue] = ()) -> None:
        """Take over what a model makes of the images now."""
        with self._lock:
            self.scores, self.estimates, self.first, self._made_of = scores, estimates, first, -1
        self.changed()

    # What the page shows.

    def state(self) -> dict[str, object]:
        """Return all that a window needs to know, as JSON has it."""
        with self._lock, self.decisions.lock:
            decided = self.decisions.decided()
            space = self.samples.space
            return {
                "version": self.version,
                "name": self.name,
                "kind": self.kind,
                "count": len(self.samples),
                "heads": [_head_json(head) for head in space],
                "queues": [self._queue_json(queue) for queue in self.queues()],
                "progress": self.progress(decided),
                "random_audit": self._audit_json(),
                "can_undo": self.decisions.can_undo,
                "can_redo": self.decisions.can_redo,
                "locked": self.decisions.fault or self.busy(),
                "features": self.features is not None,
                "model": self.gradcam is not None,
                "trainer": self.trainer is not None,
                "command": self.command,
            }

    def progress(self, decided: Bools | None = None) -> dict[str, object]:
        """Return what the bar of the page says."""
        with self.decisions.lock:
            decided = self.decisions.decided() if decided is None else decided
            wrong = int(self.decisions.wrong().sum())
        count, measured = int(decided.sum()), self.estimates.validation
        sure = count >= LEAST_DECISIONS
        left = self.estimates.wrong_left if sure else None
        return {
            "decided": count,
            "wrong_found": wrong,
            "wrong_left": left.to_json() if left else None,
            "validation": {"metric": measured[0], **measured[1].to_json()} if measured else None,
            "next_hundred": self.estimates.next_hundred if sure else None,
            "learning": self.learning,
            "working": self.working,
        }

    def queues(self) -> list[Queue]:
        """Return the queues; after a decision those made before do for a while, where it takes long to make them."""
        with self._lock:
            fresh = time.monotonic() - self._made_at < 20 * self._seconds
            if self._made_of == self.version or (self._made_of >= 0 and fresh):
                return self._queues
            began = time.monotonic()
            self._queues, self._made_of = self._make_queues(), self.version
            self._made_at = time.monotonic()
            self._seconds = self._made_at - began
            return self._queues

    def _make_queues(self) -> list[Queue]:
        space, codes, count = self.samples.space, self.decisions.codes, len(self.samples)
        lists: list[Queue] = [*self.first]
        if self.scores is not None:
            validation = (self.samples.table["split"] == "val").fill_null(False).to_numpy()
            lists += [
                queues.suspects(space, self.decisions.given, self.scores),
                queues.wrong_in_validation(space, codes, self.scores, validation),
                queues.least_certain(space, self.scores),
            ]
        lists += [*self.further]
        lists += [queues.doubtful(space, self.scores)] if self.scores is not None else []
        lists += [queues.unlabelled(space, codes), queues.by_class(space, codes, self.scores)]
        lists += [queues.in_random_order(count), queues.as_in_the_data(count)]
        lists += [queues.settled(self.decisions.decided())]
        if self.audit is not None:
            lists.append(Queue("random_audit", "Random audit", self.audit.rows))
        return lists

    def queue(self, name: str, group: str = "") -> tuple[Ints, int]:
        """Return the rows of a queue or a group of it that are left to look at, and the version they are of.

        Raises DataError where there is none of that name.
        """
        with self._lock, self.decisions.lock:
            queue = next((queue for queue in self.queues() if queue.id == name), None)
            if queue is None or (group and all(one.id != group for one in queue.groups)):
                raise DataError(f"there is no queue {name!r} with a group {group!r}.")
            return queue.left(self.decisions.settled, group), self.version

    def _queue_json(self, queue: Queue) -> dict[str, object]:
        settled = self.decisions.settled
        groups = [
            {"id": group.id, "title": group.title, "count": len(group.left(settled)), "head": group.head}
            for group in queue.groups
        ]
        return {"id": queue.id, "title": queue.title, "count": len(queue.left(settled)), "groups": groups}

    # The random audit.

    def draw_audit(self, n: int) -> int:
        """Draw `n` labelled images to estimate the share of wrong labels by: others each time.

        Raises DataError without a label, SpaceError.
        """
        known = np.flatnonzero(self.samples.labelled())
        if not len(known):
            raise DataError("no image has a label yet, so there is none to check. Label some first.")
        seed = 0 if self.audit is None else self.audit.seed + 1
        audit = RandomAudit(np.random.default_rng(seed).permutation(known)[:n], seed)
        if self.folder is not None:
            audit.write(self.folder / AUDIT_FILE, self.samples)
        with self._lock:
            self.audit, self._made_of = audit, -1
        return self.changed()

    def _audit_json(self) -> dict[str, object] | None:
        if self.audit is None:
            return None
        rows, settled = self.audit.rows, self.decisions.settled
        left = Queue("", "", rows).left(settled)
        checked = np.setdiff1d(rows, left)
        wrong = int(self.decisions.wrong()[checked].sum())
        share = random_audit(wrong, len(checked), int(self.samples.labelled().sum()))
        limits = {"value": share.value, "low": share.low, "high": share.high} if share else dict.fromkeys(LIMITS)
        return {"n": len(rows), "decided": len(checked), "wrong": wrong, **limits}

    # Single images.

    def rows(self, wanted: Sequence[int]) -> list[dict[str, object]]:
        """Return what a grid shows of images. Raises DataError for a row that there is not."""
        if len(wanted) > MOST_ROWS:
            raise DataError(f"{len(wanted):,} rows are asked for. Ask for {MOST_ROWS:,} at a time.")
        for row in wanted:
            self.require(row)
        with self.decisions.lock:
            return [self._row(row) for row in wanted]

    def require(self, row: int) -> None:
        """Raise DataError where there is no such row."""
        if not 0 <= row < len(self.samples):
            raise DataError(f"there is no image {row}. Their numbers go from 0 to {len(self.samples) - 1}.")

    def _row(self, row: int) -> dict[str, object]:
        space, codes, settled = self.samples.space, self.decisions.codes, self.decisions.settled
        given = self.decisions.given
        wrong = self.scores.wrong if self.scores else ()
        certain = {
            head.name: round(float(np.nanmax(of_head[row])), 4)
            for head, of_head in zip(space, wrong, strict=False)
            if np.isfinite(of_head[row]).any()
        }
        return {
            "row": row,
            "id": self.samples.table["id"][row],
            "split": self.samples.table["split"][row],
            "labels": {head.name: _label(head, known[row]) for head, known in zip(space, codes, strict=True)},
            "given": {head.name: _label(head, known[row]) for head, known in zip(space, given, strict=True)},
            "dropped": self.decisions.dropped(row),
            "suggestion": self._suggestions(row),
            "p_wrong": certain,
            "decided": [head.name for head, cells in zip(space, settled, strict=True) if cells[row].any()],
            "note": self.images.note(row),
        }

    def _suggestions(self, row: int) -> dict[str, dict[str, object]]:
        """Return the most probable class of each head; of tags the one that the labels contradict most."""
        if self.scores is None or not np.isfinite(self.scores.probabilities[row]).all():
            return {}
        answers = {}
        for head, _, known, probabilities in self.samples.space.each(
            [codes[row : row + 1] for codes in self.decisions.codes], self.scores.probabilities[row : row + 1]
        ):
            if not head.size:
                continue
            contradiction = np.where(known[0] < 0, probabilities[0], np.abs(known[0] - probabilities[0]))
            best = int(probabilities[0].argmax() if head.multiclass else contradiction.argmax())
            value = round(float(probabilities[0, best]), 4)
            answers[head.name] = {"class": head.classes[best], "probability": value}
        return answers

    def details(self, row: int) -> dict[str, object]:
        """Return what is known of one image: probabilities, nearest labelled images, its history, its path."""
        self.require(row)
        probabilities = {}
        if self.scores is not None and np.isfinite(self.scores.probabilities[row]).all():
            for head, columns in self.samples.space.each():
                values = self.scores.probabilities[row, columns]
                best = np.argsort(-values, kind="stable")[:TOP].tolist()
                probabilities[head.name] = [
                    {"class": head.classes[number], "probability": round(float(values[number]), 4)} for number in best
                ]
        return {
            "probabilities": probabilities,
            "neighbours": self._neighbours(row),
            "history": [
                {
                    "date": date, "step": edit.step, "head": edit.head, "tag": edit.tag, "action": edit.action,
                    "old": edit.old, "new": edit.new, "reason": edit.reason, "score": edit.score,
                }
                for date, edit in self.decisions.history(row)
            ],
            "path": str(self.images.path(row)),
        }  # fmt: skip

    def map(self) -> Floats:
        """Return the map of the features (N, 2). Raises RunError before there are any."""
        if self.features is None:
            raise RunError(f"There is no map yet: {self.working or 'the features of the images are not computed'}.")
        with self._map_lock:
            return map_points(self.features, self.folder)

    def classes(self, number: int) -> Ints:
        """Return the class of each image (N,) under a head, of several tags the rarest; -1 for none.

        Raises DataError for a head that there is not.
        """
        heads = self.samples.space.heads
        if not 0 <= number < len(heads):
            raise DataError(f"there is no head {number}. Their numbers go from 0 to {len(heads) - 1}.")
        codes = self.decisions.codes[number]
        return codes if heads[number].multiclass else rarest(heads[number].present(codes))

    def _neighbours(self, row: int) -> list[dict[str, object]]:
        """Return the nearest labelled images by cosine of features, the nearest first."""
        if self.features is None:
            return []
        near = nearest_labelled(self.features, row, self.decisions.codes, self.samples.space.heads)
        space, codes = self.samples.space, self.decisions.codes
        return [
            {
                "row": other,
                "label": "; ".join(
                    text for head, known in zip(space, codes, strict=True) if (text := head.labels_text(known[other]))
                ),
                "distance": round(1 - cosine, 4),
            }
            for other, cosine in near
        ]


def _head_json(head: Head) -> dict[str, object]:
    """Return a head, with the key of each class, as far as there are any, and its colour on the map."""
    keys = [KEYS[number] if number < len(KEYS) else "" for number in range(head.size)]
    classes, colours = list(head.classes), palette(head.size)
    return {"name": head.name, "kind": head.kind, "classes": classes, "keys": keys, "colours": colours}


def _label(head: Head, code: Ints) -> Label:
    """Return the label of one image as JSON has it."""
    if head.multiclass:
        return head.classes[int(code)] if code >= 0 else None
    if (code < 0).all():
        return None
    return {tag: None if value < 0 else value for tag, value in zip(head.classes, code.tolist(), strict=True)}
