"""The machines of a Ray cluster. Jobs on them: an actor a core, or a GPU, with the model in memory.

Ray places the actors, starts one again that was killed, and gives it the job that it was at. Jobs and errors go over
its wires, images and results by the folders that all machines share.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from assay import __version__
from assay.errors import RunError, install_command
from assay.progress import Progress, kept_handler
from assay.scale.jobs import KEPT, Failure, Function, Job, at_work, attempt, fewer_workers, killed, require_done
from assay.scale.local import THREADS

RESTARTS = 2  # of an actor that was killed, and of the job that it was at
PATIENCE = 5.0  # seconds between two looks at whether the cluster is there, and to reach it
LOOKS = 0.05  # seconds between two looks at what is done
SILENCE = 40.0  # seconds in which a cluster must have taken up the connection
GONE = "Start it (ray start --head), or set RAY_ADDRESS to the address of one that runs, or unset it for this machine."


class _Worker:
    """Does jobs in a process of the cluster."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def version(self) -> str:
        return __version__

    def attempt(self, job: Job) -> Failure:
        return attempt(self._function, job)


def connect() -> Any:
    """Return the library, connected to the cluster of RAY_ADDRESS, or else to one of this machine alone.

    Raises RunError where it is not installed, or the cluster cannot be reached.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
    os.environ.setdefault("RAY_worker_niceness", "0")  # else actors of this machine give way to whatever else runs
    try:
        import ray
    except ImportError as error:
        raise RunError(f"--executor ray: Ray is not installed: {install_command('ray')}") from error
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "auto", "local"):
        _require_cluster(address)
    try:
        with kept_handler(signal.SIGTERM):  # Ray's would abort the command, ours ends it with a message
            ray.init(include_dashboard=None if address else False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"the Ray cluster {address!r} cannot be reached ({error}). {GONE}") from error
    return ray


def size_of(ray: Any) -> tuple[int, int]:
    """Return how many cores and GPUs the cluster has."""
    resources = ray.cluster_resources()
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def on_cluster(
    function: Function, jobs: Sequence[Job], *, workers: int, gpus: int, progress: Progress
) -> Iterator[Job]:
    """Yield each job when it is done, in any order. Raises what it raised, and RunError where the cluster is gone.

    Raises TrainingError for an actor that is killed again and again. Actors begin as the cluster has room for them.
    """
    ray = connect()
    actor = ray.remote(
        num_cpus=1,
        num_gpus=gpus,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
        runtime_env={"env_vars": dict.fromkeys(THREADS, "1")},
    )(_Worker)
    waiting = list(reversed(jobs))
    count = fewer_workers(workers, len(jobs), progress)
    actors = [actor.remote(function) for _ in range(count)]
    under_way: dict[Any, tuple[Any, Job | None]] = {one.version.remote(): (one, None) for one in actors}
    address, left = ray.get_runtime_context().gcs_address, len(jobs)
    try:
        while left:
            done, _ = wait(ray, list(under_way))
            if not done:
                require_there(address)
            for ready in done:
                worker, job = under_way.pop(ready)
                answer = answer_of(ray, ready, "as it began" if job is None else at_work(job))
                if job is None:
                    require_version(answer)
                else:
                    require_done(answer)
                    left -= 1
                    yield job
                if waiting:
                    job = waiting.pop()
                    under_way[worker.attempt.remote(job)] = worker, job
    finally:
        if answers(address):
            for one in actors:
                ray.kill(one)


def wait(ray: Any, refs: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return what is done and what is not, after PATIENCE at the latest.

    Asked again and again: a signal that ends the command must not arrive in Ray's own waiting, which loses its error.
    """
    until = time.monotonic() + PATIENCE
    while True:
        done, others = ray.wait(refs, timeout=0)
        if done or time.monotonic() > until:
            return done, others
        time.sleep(LOOKS)


def require_there(address: str) -> None:
    """Raise RunError where a cluster that was there no longer answers: Ray itself would wait, or end the process."""
    if not answers(address):
        raise RunError(f"the Ray cluster at {address} is gone. {KEPT}")


def answer_of(ray: Any, ready: Any, at: str) -> Any:
    """Return the result of a task or an actor, which was `at` something. Raises RunError and TrainingError."""
    errors = ray.exceptions
    try:
        return ray.get(ready)
    except errors.RayTaskError as error:  # the class itself could not be loaded there
        raise not_there(str(error.cause or error)) from error
    except errors.RuntimeEnvSetupError as error:
        raise not_there(str(error)) from error
    except errors.OutOfMemoryError as error:
        raise killed(at, "by Ray, which saw no more memory") from error
    except errors.WorkerCrashedError as error:
        raise killed(at, f"its process ended {RESTARTS + 1} times") from error
    except errors.RayActorError as error:
        if "ModuleNotFoundError" in str(error):
            raise not_there(str(error)) from error
        raise killed(at, f"its actor ended {RESTARTS + 1} times, or its machine was lost") from error


def not_there(reason: str) -> RunError:
    """Return the error for a machine that cannot load this program."""
    last = reason.strip().splitlines()[-1] if reason.strip() else "no reason"
    return RunError(f"a machine of the Ray cluster cannot do the work ({last}). {_SAME}")


_SAME = f"Every machine needs this program in the same version: {install_command('ray')}"


def require_version(version: str, *, of_command: str = __version__) -> None:
    """Raise RunError where a machine has another version of this program than the command."""
    if version != of_command:
        raise RunError(f"a machine of the Ray cluster has version {version}, and this one {of_command}. {_SAME}")


def _require_cluster(address: str) -> None:
    """Raise RunError where nothing answers at an address, or what does is no cluster that takes us: Ray would wait."""
    if not answers(address):
        raise RunError(f"no Ray cluster answers at {address} (RAY_ADDRESS). {GONE}")
    if address.startswith("ray:"):
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SILENCE, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise RunError(
            f"the Ray cluster at {address} (RAY_ADDRESS) does not take up the connection. Where it wants a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH. Its version of Ray must be this one's."
        )


def answers(address: str) -> bool:
    """Return whether anything listens at an address of a cluster."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 6379), timeout=PATIENCE):
            return True
    except (OSError, ValueError):
        return False
