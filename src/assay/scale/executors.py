"""The executors by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from assay.progress import Progress, cores
from assay.scale.jobs import Executor, Function, Job, fewer_workers


def pick_executor(name: str, *, workers: int | None, device: str | None, progress: Progress) -> tuple[Executor, str]:
    """Return an executor of so many processes, and the device of each.

    Usual is a process a core, or one on this machine's accelerator; on a cluster one a GPU where it has some.
    Raises PlanError for a device that is not there, RunError for a cluster that cannot be reached.
    """
    return (_on_ray if name == "ray" else _local)(workers, device, progress)


def _local(workers: int | None, device: str | None, progress: Progress) -> tuple[Executor, str]:
    from assay.scale.local import in_processes

    chosen = device or ""
    if chosen != "cpu":
        from assay.training.devices import pick_device  # torch, which not every function needs

        chosen = pick_device(device)
    usual = cores() if chosen == "cpu" else 1

    def run(function: Function, jobs: Sequence[Job]) -> Iterator[Job]:
        count = min(usual, len(jobs)) if workers is None else fewer_workers(workers, len(jobs), progress)
        return in_processes(function, jobs, workers=count)

    return run, chosen


def _on_ray(workers: int | None, device: str | None, progress: Progress) -> tuple[Executor, str]:
    from assay.scale.on_ray import connect, on_cluster, size_of

    cores_there, gpus_there = size_of(connect())
    chosen = device or ("cuda" if gpus_there else "cpu")
    gpus = 0 if chosen == "cpu" else 1
    usual = max(1, gpus_there if gpus else cores_there)

    def run(function: Function, jobs: Sequence[Job]) -> Iterator[Job]:
        count = min(usual, len(jobs)) if workers is None else workers
        return on_cluster(function, jobs, workers=count, gpus=gpus, progress=progress)

    return run, chosen
