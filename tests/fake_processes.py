"""What processes of their own do in tests: without the libraries that take seconds to load."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.queues import SimpleQueue
from pathlib import Path


def note_process(folder: str, number: int, reports: SimpleQueue[str]) -> None:
    """Write the id of this process in a file, and wait."""
    (Path(folder) / str(number)).write_text(str(os.getpid()))
    reports.put("")
    time.sleep(60)


def cannot_work(number: int, reports: SimpleQueue[str]) -> None:
    reports.put("it has no memory")


def ends_at_once(number: int, reports: SimpleQueue[str]) -> None:
    sys.exit(3)
