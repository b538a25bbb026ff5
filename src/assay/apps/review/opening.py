"""Opening a review: of a run, whose ledger takes the decisions, or of data alone, with a file beside it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.apps.images import ImageFiles
from assay.apps.review.decisions import Decisions, file_state
from assay.apps.review.learning import Learning
from assay.apps.review.queues import Group, Queue
from assay.apps.review.session import AUDIT_FILE, RandomAudit, ReviewSession
from assay.apps.review.training import TrainCommand, Trainer
from assay.apps.review.views import GradCam
from assay.errors import PlanError, RunError
from assay.experiments.audit import STAGES_FOLDER
from assay.experiments.audit_inputs import AuditData
from assay.experiments.findings import KINDS, Audit
from assay.files import RunFolder, fingerprint
from assay.images.cache import find_caches
from assay.labels.audit_folder import AUDIT
from assay.labels.corrections import correct, is_ledger, review_file
from assay.labels.ledger import Ledger
from assay.labels.readers.read import read_to_label, resolve_paths
from assay.labels.samples import Samples
from assay.plan.plan import LoadedPlan, from_source
from assay.progress import Progress, stage
from assay.run.environment import lock
from assay.training.devices import pick_device


@dataclass(frozen=True)
class OpenReview:
    """A review that is open, the file that its decisions are in, and the command that trains with them."""

    session: ReviewSession
    decisions: Path
    command: str


@contextmanager
def open_review(
    source: Path, *, out: Path | None, classes: Sequence[str] = (), device: str | None, progress: Progress
) -> Iterator[OpenReview]:
    """Open the review of a run, finished or not, or of data; it learns in the background until it is left.

    `classes` are all of a folder that has no folder for them. Raises AssayError, RunError where it is open already.
    """
    run = RunFolder(source)
    decisions = run.ledger if run.is_read else out or review_file(source)
    folder = run.review if run.is_read else decisions.with_suffix("")
    busy = f"{source}: is being reviewed by another process{{pid}}. Use its window, or end it with Ctrl-C."
    with lock(folder, option="--out", busy=busy):
        loaded = _loaded(source, classes)
        review = _of_run(run, progress) if run.is_read else _of_data(loaded, source, decisions, progress)
        session = review.session
        session.folder = folder
        session.audit = RandomAudit.read(folder / AUDIT_FILE, session.decisions)
        audited = Path("audits") / session.name
        stages = audited / STAGES_FOLDER
        if (audited / AUDIT).is_file():
            session.further = _audited(audited, session)
        data = AuditData(session.name, session.samples, loaded)
        learning = Learning(session, data, stages if stages.is_dir() else folder, device=pick_device(device))
        learning.start()
        try:
            yield review
        finally:
            learning.close()
            if session.trainer is not None:
                session.trainer.stop()


def _loaded(source: Path, classes: Sequence[str]) -> LoadedPlan:
    """Return the plan of a run or of data, with these classes. Raises PlanError."""
    run = RunFolder(source)
    if run.is_read and classes:
        raise PlanError("--classes: a run has its classes already. Give it with the folder that the run was made of.")
    wanted = (f"data.classes={json.dumps(list(classes), ensure_ascii=False)}",) if classes else ()
    return from_source(run.plan if run.is_read else source, overrides=wanted)


def _audited(folder: Path, session: ReviewSession) -> list[Queue]:
    """Return what an audit of these images lists, a group for each kind; nothing of an audit of other images."""
    audit, row_of = Audit.read(folder), session.decisions.rows
    groups = []
    for kind in audit.counts():
        images = dict.fromkeys(image for finding in audit.findings[kind] for image in finding.images)
        rows = np.array([row_of[image] for image in images if image in row_of], np.int64)
        if len(rows):
            groups.append(Group(kind, KINDS[kind].title, rows))
    if not groups:
        return []
    listed = np.concatenate([group.rows for group in groups])
    _, first = np.unique(listed, return_index=True)
    return [Queue("audit", "Listed by the audit", listed[np.sort(first)], groups)]


BUSY = "This run is being trained just now{pid}. Decisions are stored again once that has ended."
OTHER_DATA = "The images of this run have changed since the review was opened. End it with Ctrl-C, and open it again."


class RunGuard:
    """Lets a review write to a run while nothing else does, and as long as its images are those that it opened."""

    def __init__(self, run: RunFolder, ids: Sequence[str]) -> None:
        self.run, self._images, self._state = run, fingerprint(*ids), file_state(run.samples)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run. Raises RunError."""
        with lock(self.run.path, busy=BUSY):
            state = file_state(self.run.samples)
            if state != self._state:  # written anew by each training, mostly the same
                if state is None or fingerprint(*Samples.read(self.run.samples).ids) != self._images:
                    raise RunError(OTHER_DATA)
                self._state = state
            yield

    def reason(self) -> str | None:
        """Return why nothing can be written just now."""
        try:
            with self.writing():
                return None
        except RunError as error:
            return str(error)


def _of_run(run: RunFolder, progress: Progress) -> OpenReview:
    with stage(progress, "reading the run"):
        samples = Samples.read(run.samples)
        guard = RunGuard(run, samples.ids)
        decisions = Decisions(samples, run.ledger, writing=guard.writing)
        caches = find_caches(run.cache, samples.ids, hashes=samples.hashes)
    words = ("assay", "train", str(run.plan), "--run", str(run.path))
    session = ReviewSession(
        name=run.path.resolve().name,
        kind="run",
        decisions=decisions,
        images=ImageFiles(samples, caches, next((one.resize.levels for one in caches), None)),
        command=shlex.join(words),
        busy=guard.reason,
        gradcam=_gradcam(run),
    )
    _let_train(session, TrainCommand(words, run.path))
    return OpenReview(session, run.ledger, session.command)


def _gradcam(run: RunFolder) -> GradCam | None:
    return GradCam(run.model.path) if run.model.spec.exists() else None


def _let_train(session: ReviewSession, command: TrainCommand) -> None:
    """Give a session what trains with its decisions; then the model is that of the new run."""

    def ended() -> None:
        session.gradcam = _gradcam(RunFolder(command.run))
        session.refresh()
        session.changed()

    session.trainer = Trainer(command, ended=ended)


def _of_data(loaded: LoadedPlan, source: Path, path: Path, progress: Progress) -> OpenReview:
    data, words = loaded.plan.data, ["assay", "train", str(source)]
    table = resolve_paths(data, base=loaded.base).get("corrections")
    with stage(progress, "finding and hashing images"):
        known = {"corrections": path.absolute()} if is_ledger(path) else {}
        samples = read_to_label(data.model_copy(update=known), base=loaded.base)
    if table is not None and table != path.absolute() and not path.exists():
        correct(Ledger.read(path), table, samples)  # what the plan says so far, which this file takes the place of
    if "classes" in data.model_fields_set:
        words += ["--set", f"data.classes={json.dumps(data.classes, ensure_ascii=False)}"]
    with_decisions = (*words, "--set", f"data.corrections={_from(loaded.base, path)}")
    command = shlex.join(with_decisions)
    session = ReviewSession(
        name=loaded.source_name,
        kind="data",
        decisions=Decisions(samples, path, writing=nullcontext),
        images=ImageFiles(samples, levels=data.levels),
        command=command,
    )
    before = tuple(words) if samples.labelled().any() else None  # from nothing there is no training without them
    _let_train(session, TrainCommand(with_decisions, Path("runs") / loaded.source_name, before))
    return OpenReview(session, path, command)


def _from(base: Path, path: Path) -> Path:
    """Return a path as a plan with this base names it: the short way where it lies below."""
    return path.relative_to(base) if path.is_relative_to(base) else path
