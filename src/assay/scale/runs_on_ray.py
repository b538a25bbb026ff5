"""Runs on the machines of a Ray cluster: one that several processes train together, or many, each of them a task.

Ray Train gives the processes the environment that torchrun gives; what they do is the same. Their lines come by the
log of the run, which lies in a folder that all machines share.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from assay import __version__
from assay.errors import AssayError, RunError, install_command
from assay.files import RunFolder
from assay.progress import Progress, is_lost_process, stage
from assay.run.environment import lock
from assay.scale.jobs import Failure, attempted, killed, require_done
from assay.scale.on_ray import (
    PATIENCE,
    RESTARTS,
    answer_of,
    answers,
    connect,
    not_there,
    require_there,
    require_version,
    size_of,
    wait,
)

FOLLOWED = 0.5  # seconds between two looks at the log
WAITING = 12 * 3600  # seconds in which others wait for the main process, which reads
LEAVING = 20.0  # seconds for tasks that are to stop, to write their checkpoints

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Share:
    """What a process takes of a cluster, and for how many there is room now."""

    device: str
    cpus: int
    gpus: int
    room: int


def share_of(ray: Any, device: str | None) -> Share:
    """Return what a process takes: as many cores as OMP_NUM_THREADS says, else one, and a GPU where there are some."""
    cores, gpus = size_of(ray)
    chosen = device or ("cuda" if gpus else "cpu")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    cpus = max(1, int(threads)) if threads.isdecimal() else 1
    each = 1 if chosen.startswith("cuda") else 0
    if each and not gpus:
        raise RunError(f"--device {chosen}: the Ray cluster has no GPU. Leave the option out, or give --device cpu.")
    return Share(chosen, cpus, each, min(cores // cpus, gpus) if each else cores // cpus)


# One run by several processes.


def train_together(
    train: Callable[..., object], folder: Path, *, workers: int, device: str | None, progress: Progress
) -> None:
    """Call `train`, which can be pickled, with the device in each of several processes of one process group.

    They train the run in `folder`; lines that its log gains are passed on. After one was killed, or its machine was
    lost, all begin again where the last epoch ended. Raises what one of them raised, RunError where the cluster has
    no room or is gone, and TrainingError where one is killed again and again.
    """
    with lock(folder):
        pass  # a folder that is taken or closed is refused before anything is started
    ray = connect()
    share = share_of(ray, device)
    _require_room(ray, workers, share, progress)
    log = _Log(RunFolder(folder).log)
    for _ in range(RESTARTS + 1):
        with stage(progress, "training on Ray"):
            error = _in_thread(ray, _trainer(train, folder, workers, share), lambda: log.pass_on(progress))
        if error is None:
            return
        _raise_unless_lost(error)
        progress.line("a process of this training was lost: all begin again where the last epoch ended")
    raise killed("at work on the run", f"{RESTARTS + 1} times, or its machine was lost")


def _trainer(train: Callable[..., object], folder: Path, workers: int, share: Share) -> Callable[[], object]:
    """Return what trains when it is called. Raises RunError where Ray Train is not installed."""
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"  # which gives processes the environment of torchrun
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        command = install_command("ray")
        raise RunError(f"--executor ray: Ray Train is not installed ({error}): {command}") from error
    work = {"train": train, "device": share.device, "folder": os.getcwd(), "version": __version__}
    resources = {"CPU": share.cpus, "GPU": share.gpus} if share.gpus else {"CPU": share.cpus}
    beside = RunFolder(folder).cache.absolute() / ".ray"  # Ray Train wants a folder; nothing of ours is in it

    def fit() -> None:
        try:
            TorchTrainer(
                _work,
                train_loop_config=work,
                torch_config=TorchConfig(timeout_s=WAITING),
                scaling_config=ScalingConfig(
                    num_workers=workers, use_gpu="GPU" in resources, resources_per_worker=resources
                ),
                run_config=RunConfig(name="train", storage_path=str(beside)),
            ).fit()
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    return fit


def _work(config: dict[str, Any]) -> None:
    _enter(config["folder"], config["version"])
    config["train"](device=config["device"])


def _in_thread(ray: Any, fit: Callable[[], object], look: Callable[[], None]) -> BaseException | None:
    """Return the error that ends `fit`, or None; `look` is called meanwhile.

    Not in the main thread: there Ray would take Ctrl-C, and would not give it back.
    """
    ends: list[BaseException] = []

    def run() -> None:
        try:
            fit()
        except BaseException as error:  # it is raised in the main thread
            ends.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    address, looked = ray.get_runtime_context().gcs_address, time.monotonic()
    try:
        while thread.is_alive():
            thread.join(FOLLOWED)
            look()
            if time.monotonic() - looked > PATIENCE:
                require_there(address)
                looked = time.monotonic()
    finally:
        if thread.is_alive() and answers(address):
            ray.shutdown()  # ends the processes
        look()
    return ends[0] if ends else None


def _raise_unless_lost(error: BaseException) -> None:
    """Raise what the user can mend, else what is a fault of ours; return where a process or a machine was lost."""
    by_rank = getattr(error, "worker_failures", {})
    failures = [by_rank[rank] for rank in sorted(by_rank)]
    for failure in failures:
        if isinstance(failure, AssayError):
            raise failure
        if isinstance(failure, ModuleNotFoundError):
            raise not_there(str(failure)) from error
    if not failures or not all(map(_is_lost, failures)):
        raise RuntimeError(f"training by Ray Train failed:\n{error}") from error


def _is_lost(failure: BaseException) -> bool:
    return is_lost_process(failure) or type(failure).__module__.startswith("ray.")


def _require_room(ray: Any, workers: int, share: Share, progress: Progress) -> None:
    """Raise RunError where this machine has too few cores for all processes; a cluster may grow: say that they wait."""
    if workers <= share.room:
        return
    cores, gpus = size_of(ray)
    wanted = f"{workers:,} GPUs" if share.gpus else f"{workers * share.cpus:,} cores"
    there = f"{gpus:,}" if share.gpus else f"{cores:,}"
    if not os.environ.get("RAY_ADDRESS"):
        raise RunError(
            f"--workers {workers}: needs {wanted}, and this machine has {there}. Give at most {share.room}, or set "
            "RAY_ADDRESS to the address of a larger cluster."
        )
    progress.line(f"note: {workers} workers need {wanted}, and the cluster has {there}: they wait until it has grown")


class _Log:
    """The lines that are added to the log of a run from now on, by whatever machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0

    def pass_on(self, progress: Progress) -> None:
        for line in self._lines():
            progress.line(line)

    def _lines(self) -> Iterator[str]:
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._read)
            for entry in file:
                if not entry.endswith(b"\n"):  # it is being written
                    break
                self._read += len(entry)
                if (text := json.loads(entry).get("line")) is not None:
                    yield text


# Many runs, each a task.


def spread_on_ray(
    *, workers: int | None, device: str | None, progress: Progress
) -> Callable[[Callable[[T], R], Sequence[T]], Iterator[R]]:
    """Return what calls a function on each of several items, `workers` at once, else as many as there is room for.

    Function, items and results can be pickled; results come in any order. It raises what the function raised, RunError
    where the cluster is gone, and TrainingError for a task whose process is killed again and again.
    """

    def spread(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        ray = connect()
        share = share_of(ray, device)
        count = min(workers or max(1, share.room), len(items))
        if count > share.room:
            progress.line(f"note: {count} workers, and the cluster has room for {share.room}: others begin as it grows")
        return _in_tasks(ray, share, function, items, count)

    return spread


def _in_tasks(ray: Any, share: Share, function: Callable[[T], R], items: Sequence[T], count: int) -> Iterator[R]:
    task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=RESTARTS)(_attempt)
    waiting, under_way = list(reversed(items)), list[Any]()
    address = ray.get_runtime_context().gcs_address
    try:
        while waiting or under_way:
            while waiting and len(under_way) < count:
                under_way.append(task.remote(function, waiting.pop(), os.getcwd(), __version__))
            done, under_way = wait(ray, under_way)
            if not done:
                require_there(address)
            for ready in done:
                result, failure = answer_of(ray, ready, "at work on a run")
                require_done(failure)
                yield result
    finally:
        if under_way and answers(address):
            for left in under_way:
                ray.cancel(left)  # Ctrl-C for the task: it writes its checkpoint
            ray.wait(under_way, num_returns=len(under_way), timeout=LEAVING)


def _attempt(function: Callable[[T], R], item: T, folder: str, version: str) -> tuple[R | None, Failure]:
    """Return the result, or why there is none."""
    results = list[R]()

    def call() -> None:
        _enter(folder, version)
        results.append(function(item))

    failure = attempted(call, "a run")
    return (results[0] if results else None), failure


def _enter(folder: str, version: str) -> None:
    """Go to the working folder of the command. Raises RunError where it is not there, or the version is another."""
    require_version(__version__, of_command=version)
    try:
        os.chdir(folder)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be entered on {socket.gethostname()} ({error.strerror}). Working folder, data and run "
            "must lie in folders that all machines share."
        ) from error
