"""Opening a review: of a run, whose ledger takes the decisions, or of data alone, with a file beside it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.apps.review.decisions import Decisions
from assay.apps.review.images import ImageFiles
from assay.apps.review.learning import Learning
from assay.apps.review.queues import Group, Queue
from assay.apps.review.session import ReviewSession
from assay.errors import RunError
from assay.experiments.audit import STAGES_FOLDER
from assay.experiments.audit_inputs import AuditData
from assay.experiments.findings import KINDS, Audit
from assay.files import RunFolder
from assay.images.cache import find_caches
from assay.labels.audit_folder import AUDIT
from assay.labels.corrections import correct
from assay.labels.ledger import Ledger
from assay.labels.readers.read import read, resolve_paths
from assay.labels.samples import Samples
from assay.plan.plan import LoadedPlan, from_source
from assay.progress import Progress, stage
from assay.run.environment import lock
from assay.training.devices import pick_device

REVIEW = "review"
"""The folder in a run for what only a review needs; beside data alone `NAME.review/`."""


@dataclass(frozen=True)
class OpenReview:
    """A review that is open, the file that its decisions are in, and the command that trains with them."""

    session: ReviewSession
    decisions: Path
    command: str


@contextmanager
def open_review(source: Path, *, out: Path | None, device: str | None, progress: Progress) -> Iterator[OpenReview]:
    """Open the review of a run, finished or not, or of data; it learns in the background until it is left.

    Raises AssayError, RunError where it is open already.
    """
    run = RunFolder(source)
    decisions = run.ledger if run.is_read else out or _beside(source)
    folder = source / REVIEW if run.is_read else decisions.with_suffix("")
    busy = f"{source}: is being reviewed by another process{{pid}}. Use its window, or end it with Ctrl-C."
    with lock(folder, option="--out", busy=busy):
        loaded = from_source(run.plan if run.is_read else source)
        review = _of_run(run, progress) if run.is_read else _of_data(loaded, source, decisions, progress)
        session = review.session
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


def _beside(source: Path) -> Path:
    """Return where decisions on data lie: beside it, as NAME.review.csv."""
    path = source.absolute()
    return path.parent / f"{path.name if path.is_dir() else path.stem}.review.csv"


def _of_run(run: RunFolder, progress: Progress) -> OpenReview:
    with stage(progress, "reading the run"):
        samples = Samples.read(run.samples)

        @contextmanager
        def writing() -> Iterator[None]:
            with lock(run.path, busy=BUSY):
                yield

        decisions = Decisions(samples, run.ledger, writing=writing)
        caches = find_caches(run.cache, samples.ids, hashes=samples.hashes)
    levels = next((one.resize.levels for one in caches), None)
    command = shlex.join(["assay", "train", str(run.plan), "--run", str(run.path)])
    session = ReviewSession(
        name=run.path.resolve().name,
        kind="run",
        decisions=decisions,
        images=ImageFiles(samples, caches, levels),
        command=command,
        busy=lambda: _busy(run.path),
        model=run.model.spec.exists(),
    )
    return OpenReview(session, run.ledger, command)


BUSY = "This run is being trained just now{pid}. Decisions are stored again once that has ended."


def _busy(run: Path) -> str | None:
    """Return why nothing can be written to a run just now."""
    try:
        with lock(run, busy=BUSY):
            return None
    except RunError as error:
        return str(error)


def _of_data(loaded: LoadedPlan, source: Path, path: Path, progress: Progress) -> OpenReview:
    data = loaded.plan.data
    with stage(progress, "finding and hashing images"):
        samples = read(data, base=loaded.base)
    table = resolve_paths(data, base=loaded.base).get("corrections")
    if table is not None and table != path and not path.exists():
        correct(Ledger.read(path), table, samples)  # what the plan says so far, which this file takes the place of
    command = shlex.join(["assay", "train", str(source), "--set", f"data.corrections={_from(loaded.base, path)}"])
    session = ReviewSession(
        name=loaded.source_name,
        kind="data",
        decisions=Decisions(samples, path, writing=nullcontext),
        images=ImageFiles(samples, levels=data.levels),
        command=command,
    )
    return OpenReview(session, path, command)


def _from(base: Path, path: Path) -> Path:
    """Return a path as a plan with this base names it: the short way where it lies below."""
    return path.relative_to(base) if path.is_relative_to(base) else path
