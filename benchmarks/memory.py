"""The peak of the anonymous memory of a process and its children, sampled."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of `pid` and its descendants, shared pages shared out (Linux; 0 elsewhere)."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):  # RssAnon would count the pages of a forked worker twice
                total = int(line.split()[1]) << 10
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(anonymous_bytes(int(child)) for child in (task / "children").read_text().split())
    except OSError:  # the process ended while it was being read
        return total
    return total


class Peak:
    """`with Peak(pid) as peak: ...`, then `peak.mib`."""

    def __init__(self, pid: int | None = None, *, interval: float = 0.5) -> None:
        self.pid = os.getpid() if pid is None else pid
        self.interval = interval
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._progress, daemon=True)

    def __enter__(self) -> Peak:
        """Start to sample."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop to sample."""
        self._over.set()
        self._thread.join()

    @property
    def mib(self) -> float:
        """The largest sum seen, in MiB."""
        return round(self.bytes / 2**20, 1)

    def _progress(self) -> None:
        while True:
            self.bytes = max(self.bytes, anonymous_bytes(self.pid))
            if self._over.wait(self.interval):
                return
