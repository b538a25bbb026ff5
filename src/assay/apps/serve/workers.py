"""Processes that do the same work: started one after another, replaced when they are killed, ended together."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue

from assay.errors import RunError

Work = Callable[[int, "SimpleQueue[str]"], None]
"""What a process does, by its number. It puts "" in the queue once it works, or else why it cannot."""


class Workers:
    """Processes, of which each is ended by SIGTERM, and then has so many seconds. `work` can be pickled."""

    def __init__(self, count: int, work: Work, *, seconds: float) -> None:
        self._count, self._work, self._seconds = count, work, seconds
        self._context = multiprocessing.get_context("spawn")  # libraries that have threads do not outlive a fork
        self._reports: SimpleQueue[str] = self._context.SimpleQueue()
        self._processes: dict[int, BaseProcess] = {}

    def run(self, closing: threading.Event, *, started: Callable[[], None]) -> None:
        """Keep them at work until `closing` is set; `started` is called once all work. Raises RunError."""
        try:
            for number in range(self._count):  # the first makes what all keep on disk
                self._start(number)
            started()
            while not closing.wait(0.5):
                for number, process in list(self._processes.items()):
                    if not process.is_alive():
                        sys.stderr.write(f"A process ended (code {process.exitcode}). Another one is started.\n")
                        self._start(number)
        finally:
            self._stop()

    def _start(self, number: int) -> None:
        """Start a process, and wait until it works."""
        process = self._context.Process(target=self._work, args=(number, self._reports), daemon=True)
        process.start()
        self._processes[number] = process
        while self._reports.empty():
            process.join(0.05)
            if not process.is_alive() and self._reports.empty():
                raise RunError(f"A process ended before it answered (code {process.exitcode}); its lines are above.")
        if failure := self._reports.get():
            raise RunError(failure)

    def _stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(self._seconds)
            process.kill()
