"""Requests that arrive within a few milliseconds, computed as one batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")
MOST = 32  # images of a batch: larger ones fall out of a CPU's cache and are slower
WAIT = 0.004  # seconds that the first image of a batch waits for others


class Batches(Generic[Input, Output]):
    """A thread that computes inputs together: those that came while the last batch was computed, or within `wait`.

    `compute` takes at most `most` inputs, and returns an output for each in order; what it raises each of them raises.
    """

    def __init__(
        self, compute: Callable[[Sequence[Input]], Sequence[Output]], *, most: int = MOST, wait: float = WAIT
    ) -> None:
        """Start the thread."""
        self._compute, self._most, self._wait = compute, most, wait
        self._waiting: queue.SimpleQueue[tuple[Input, Future[Output]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, one: Input) -> Future[Output]:
        """Return the output that will be; where that is cancelled before its batch begins nothing is computed."""
        future: Future[Output] = Future()
        self._waiting.put((one, future))
        return future

    def close(self) -> None:
        """End the thread after what was submitted."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, ended = self._gather(first)
            batch = [(one, future) for one, future in batch if future.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)
            if ended:
                return

    def _gather(self, first: tuple[Input, Future[Output]]) -> tuple[list[tuple[Input, Future[Output]]], bool]:
        """Return a batch, and whether it is the last."""
        batch, until = [first], time.monotonic() + self._wait
        while len(batch) < self._most:
            try:
                further = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if further is None:
                return batch, True
            batch.append(further)
        return batch, False

    def _answer(self, batch: Sequence[tuple[Input, Future[Output]]]) -> None:
        try:
            outputs = self._compute([one for one, _ in batch])
        except Exception as error:  # those who asked raise it
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), output in zip(batch, outputs, strict=True):
            future.set_result(output)
