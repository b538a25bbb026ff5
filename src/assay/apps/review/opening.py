"""Opening a review: of a run, whose ledger takes the decisions, or of data alone, with a file beside it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from assay.apps.review.decisions import Decisions
from assay.apps.review.images import ImageFiles
from assay.apps.review.session import ReviewSession
from assay.errors import RunError
from assay.files import RunFolder
from assay.images.cache import find_caches
from assay.labels.corrections import correct
from assay.labels.ledger import Ledger
from assay.labels.readers.read import read, resolve_paths
from assay.labels.samples import Samples
from assay.plan.plan import from_source
from assay.progress import Progress, stage
from assay.run.environment import lock

REVIEW = "review"
"""The folder in a run for what only a review needs; beside data alone `NAME.review/`."""


@dataclass(frozen=True)
class OpenReview:
    """A review that is open, the file that its decisions are in, and the command that trains with them."""

    session: ReviewSession
    decisions: Path
    command: str


@contextmanager
def open_review(source: Path, *, out: Path | None, progress: Progress) -> Iterator[OpenReview]:
    """Open the review of a run, finished or not, or of data. Raises AssayError, RunError where it is open already."""
    run = RunFolder(source)
    if run.is_read:
        with _alone(source / REVIEW, source):
            yield _of_run(run, progress)
        return
    decisions = out or _beside(source)
    with _alone(decisions.with_suffix(""), source):
        yield _of_data(source, decisions, progress)


def _beside(source: Path) -> Path:
    """Return where decisions on data lie: beside it, as NAME.review.csv."""
    path = source.absolute()
    return path.parent / f"{path.name if path.is_dir() else path.stem}.review.csv"


@contextmanager
def _alone(folder: Path, source: Path) -> Iterator[None]:
    """Hold the review of a source, so that two servers do not write to one ledger. Raises RunError."""
    busy = f"{source}: is being reviewed by another process{{pid}}. Use its window, or end it with Ctrl-C."
    with lock(folder, option="--out", busy=busy):
        yield


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


def _of_data(source: Path, path: Path, progress: Progress) -> OpenReview:
    loaded = from_source(source)
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
