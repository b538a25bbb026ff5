"""Jobs in processes of this machine, each on one core and with the model in memory.

A process waits for the next job at a pipe: when the one that started it is gone, it ends with the job it is at.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from assay.errors import AssayError
from assay.postponed import postpone
from assay.scale.jobs import Failure, Function, Job, at_work, attempt, killed, require_done

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


def in_processes(function: Function, jobs: Sequence[Job], *, workers: int) -> Iterator[Job]:
    """Yield each job when it is done, in any order. Raises what it raised, and TrainingError for a killed process."""
    context = multiprocessing.get_context("spawn")  # libraries that have threads do not outlive a fork
    waiting, processes = list(reversed(jobs)), list[BaseProcess]()
    busy: dict[Connection, tuple[BaseProcess, Job]] = {}
    try:
        for _ in range(min(workers, len(jobs))):
            here, there = context.Pipe()
            started: BaseProcess = context.Process(target=_work, args=(there,), daemon=True)
            started.start()
            processes.append(started)
            there.close()  # else its end would not be noticed
            job = waiting.pop()
            busy[here] = started, job
            _send(here, started, function, job)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, job = busy.pop(ready)
                require_done(_answer(ready, process, job))
                if waiting:
                    busy[ready] = process, waiting.pop()
                    _send(ready, *busy[ready], at=busy[ready][1])
                yield job
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _send(connection: Connection, process: BaseProcess, *what: Function | Job, at: Job | None = None) -> None:
    for one in what:
        try:
            connection.send(one)
        except OSError as error:
            raise _ended(process, at) from error


def _answer(connection: Connection, process: BaseProcess, job: Job) -> Failure:
    try:
        failure: Failure = connection.recv()
    except (EOFError, OSError) as error:
        raise _ended(process, job) from error
    return failure


def _ended(process: BaseProcess, job: Job | None) -> AssayError:
    process.join(10)
    code = process.exitcode
    at = "as it began" if job is None else at_work(job)
    return killed(at, f"signal {-code}" if code is not None and code < 0 else f"exit code {code}")


def _work(connection: Connection) -> None:
    """Do the jobs that come, until there are no more or the other process is gone."""
    postpone()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to all processes: the first ends this one
    os.environ.update(dict.fromkeys(THREADS, "1"))  # before the libraries are imported
    with suppress(EOFError, OSError):
        function = connection.recv()
        while True:
            connection.send(attempt(function, connection.recv()))
