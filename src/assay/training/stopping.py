"""Stopping on a signal: SIGTERM and Ctrl-C end a training at once, but for blocks that write a checkpoint first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_signals: list[int] = []  # received; a signal handler can reach module state only
_finishing: list[None] = []  # one for each open block that a signal does not end


@contextmanager
def graceful_stop() -> Iterator[None]:
    """Make SIGTERM and SIGINT end the block by SystemExit(143) or KeyboardInterrupt.

    Within `finishing` they wait for the loop, which writes a checkpoint; a second signal ends the process at once.
    Python delivers signals to the main thread only; in other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: FrameType | None) -> None:
        if _signals:
            raise SystemExit(128 + number)
        _signals.append(number)
        leave_if_stopped()

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
        leave_if_stopped()
    except Exception:  # of several processes one has left, and an exchange with it failed
        leave_if_stopped()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals.clear()


@contextmanager
def finishing() -> Iterator[None]:
    """Let a signal within the block wait: the block asks `stop_requested`, and leaves by `leave`."""
    _finishing.append(None)
    try:
        yield
    finally:
        _finishing.pop()


@contextmanager
def interruptible() -> Iterator[None]:
    """Within `finishing`, let a signal end the block at once: whoever called it can write a checkpoint."""
    held = len(_finishing)
    _finishing.clear()
    try:
        leave_if_stopped()
        yield
    finally:
        _finishing.extend([None] * held)


def stop_requested() -> bool:
    """Return whether a signal asked to stop."""
    return bool(_signals)


def leave_if_stopped() -> None:
    """Leave if a signal asked to, and no block is to finish; also where a library has swallowed the exception."""
    if _signals and not _finishing:
        leave()


def leave() -> NoReturn:
    """Raise KeyboardInterrupt after Ctrl-C, else SystemExit(143)."""
    if _signals and _signals[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signal.SIGTERM)
