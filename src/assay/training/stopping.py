"""SIGTERM and Ctrl-C as a wish that the loop grants at the next optimiser step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_wish: list[int] = []  # signals received; a handler can reach nothing but module state


@contextmanager
def graceful() -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT ask the loop to write a checkpoint and leave.

    A second signal ends the process at once. Only the main thread can take signals; elsewhere
    nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if _wish:
            raise SystemExit(128 + number)
        _wish.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
        stop_requested(leave=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _wish.clear()


def stop_requested(*, leave: bool = False) -> bool:
    """Whether somebody asked to stop; with `leave`, stop now if so (KeyboardInterrupt, or SystemExit 143)."""
    if _wish and leave:
        if _wish[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + _wish[0])
    return bool(_wish)
