"""Functions of shards that processes of a test import, and a command line to start one that is to be killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from assay.errors import DataError
from assay.labels.shards import Shard, state_of
from assay.progress import NoProgress
from assay.scale.executors import pick_executor
from assay.scale.jobs import Job, map_shards


@dataclass(frozen=True)
class Content:
    """Writes the content of a shard with the number of threads; what its content begins with may go wrong before."""

    folder: Path

    def __call__(self, job: Job, result: Path) -> None:
        text = Path(job.shard.address).read_text()
        (self.folder / f"begun-{job.shard.name}-{os.getpid()}").touch()
        match text.partition(" ")[0]:
            case "kill" if not (self.folder / "mended").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            case "once" if len(list(self.folder.glob(f"begun-{job.shard.name}-*"))) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait" if not (self.folder / "mended").exists():
                time.sleep(60)
            case "change":
                Path(job.shard.address).write_text("other")
            case "refuse":
                raise DataError(f"{job.shard.name}: is refused. Mend it.")
            case "full":
                raise MemoryError("no more")
            case "fault":
                raise ZeroDivisionError("ours")
        result.write_text(f"{text} {os.environ['OMP_NUM_THREADS']}")


def jobs_of(folder: Path, *texts: str) -> list[Job]:
    """Return a job for each text, a shard in a folder."""
    jobs = []
    for number, text in enumerate(texts):
        path = folder / f"{number}.tar"
        if not path.exists():
            path.write_text(text)
        shard = Shard(str(path), state_of(str(path)))
        jobs.append(Job(shard, path, folder / "results" / f"{number}.txt"))
    return jobs


def run(folder: Path, *texts: str, workers: int, executor: str = "local") -> list[str]:
    """Return the results of `Content` for these texts."""
    chosen, _ = pick_executor(executor, workers=workers, device="cpu", progress=NoProgress())
    jobs = jobs_of(folder, *texts)
    map_shards(Content(folder), jobs, executor=chosen, progress=NoProgress())
    return [job.result.read_text() for job in jobs]


if __name__ == "__main__":
    run(Path(sys.argv[1]), *sys.argv[3:], workers=2, executor=sys.argv[2])
