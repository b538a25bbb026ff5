"""What processes of their own do in tests: without the libraries that take seconds to load."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any


def note_process(folder: str, number: int, reports: SimpleQueue[str]) -> None:
    """Write the id of this process in a file, and wait."""
    (Path(folder) / str(number)).write_text(str(os.getpid()))
    reports.put("")
    time.sleep(60)


def cannot_work(number: int, reports: SimpleQueue[str]) -> None:
    reports.put("it has no memory")


def ends_at_once(number: int, reports: SimpleQueue[str]) -> None:
    sys.exit(3)


def in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Call a function on each item as another process would, the last item first."""
    for item in reversed(items):
        there, given = pickle.loads(pickle.dumps((function, item)))
        yield pickle.loads(pickle.dumps(there(given)))
