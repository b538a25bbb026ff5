"""The same function on every shard: a result is one file, written whole, which is there once it is done."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from assay.errors import AssayError, DataError, RunError, TrainingError, is_want_of_memory
from assay.files import remove_unfinished, whole
from assay.labels.shards import Shard
from assay.messages import printable
from assay.progress import Progress

KEPT = "What is done is kept; the same command goes on from there."


@dataclass(frozen=True, slots=True)
class Job:
    """A shard as it was when the command began, the index of its images, and the file that its result goes to."""

    shard: Shard
    index: Path
    result: Path


class Function(Protocol):
    """What is done with a shard. It can be pickled, and keeps in its process what it has loaded."""

    def __call__(self, job: Job, result: Path) -> None:
        """Write the result of a job to a file, which then gets its name. Raises AssayError."""


Failure: TypeAlias = "AssayError | str | None"
"""Why a job is not done: an error of the user's, the traceback of one of ours, or nothing."""
Executor = Callable[[Function, Sequence[Job]], Iterator[Job]]
"""Does jobs in any order, and yields each when it is done. Raises AssayError."""


def map_shards(
    function: Function,
    jobs: Sequence[Job],
    *,
    executor: Executor,
    progress: Progress,
    images: Callable[[Job], int] = lambda job: 1,
) -> None:
    """Write the result of each job that is not there; `images` is by how much one advances progress.

    Raises DataError for a shard that is gone or has changed, TrainingError for a process that was killed, RunError
    for a cluster that cannot be reached. The results that are done stay then.
    """
    waiting = []
    for job in jobs:
        if job.result.exists():
            progress.advance(images(job))
        else:
            waiting.append(job)
    for job in executor(function, waiting) if waiting else ():
        if not job.result.exists():
            raise RunError(
                f"{job.result}: was written on another machine, and is not here. Results, shards and model must lie in "
                "folders that all machines share."
            )
        progress.advance(images(job))
    for folder in {job.result.parent for job in waiting}:
        remove_unfinished(folder)


def attempt(function: Function, job: Job) -> Failure:
    """Do a job, and return why it is not done. The shard must be the same before and after."""

    def work() -> None:
        _require_same(job.shard)
        with whole(job.result) as beside:
            function(job, beside)
            _require_same(job.shard)

    return attempted(work, printable(job.shard.name))


def attempted(work: Callable[[], None], what: str) -> Failure:
    """Do some work, and return why it is not done; `what` it is on is named where it does not fit into memory."""
    try:
        work()
    except AssayError as error:
        return error
    except Exception as error:
        if is_want_of_memory(error):
            return TrainingError(
                f"{what}: the work on it does not fit into memory ({error}). Free some, or start fewer processes with "
                f"--workers. {KEPT}"
            )
        return traceback.format_exc()
    return None


def require_done(failure: Failure) -> None:
    """Raise what `attempt` returned."""
    if isinstance(failure, AssayError):
        raise failure
    if failure is not None:
        raise RuntimeError(f"work in another process failed:\n{failure}")


def at_work(job: Job) -> str:
    """Return what a process was at, for `killed`."""
    return f"at work on {printable(job.shard.name)}"


def killed(at: str, reason: str) -> TrainingError:
    """Return the error for a process that ended without an answer."""
    return TrainingError(
        f"a process was killed {at} ({reason}), most likely for want of memory. Free some, or start fewer with "
        f"--workers. {KEPT}"
    )


def fewer_workers(workers: int, jobs: int, progress: Progress) -> int:
    """Return how many processes to start: no more than there are shards to do."""
    if workers > jobs:
        progress.line(f"  {workers:,} workers for {jobs:,} shards: {jobs:,} are started")
    return min(workers, jobs)


def _require_same(shard: Shard) -> None:
    if (fault := shard.fault()) is not None:
        raise DataError(fault)
