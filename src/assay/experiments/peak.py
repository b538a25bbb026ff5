"""The most memory that a piece of work holds, and the largest batch that fits into some memory."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
import threading
from types import TracebackType

import torch

from assay.errors import PlanError

Point = tuple[int, float]
"""A batch, and the MiB that a fit with it holds at the most."""

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
INTERVAL = 0.01  # seconds between two looks: a pass through a network takes longer


class Peak:
    """`with Peak(device) as peak: ...`, then `peak.mib`: of a GPU its tensors, else of this process, sampled.

    What the process has freed but keeps is handed back before, as far as it can be: earlier work does not count.
    """

    def __init__(self, device: str) -> None:
        self.gpu = torch.device(device).type == "cuda"
        self.device = device
        self.mib = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Peak:
        """Start to look."""
        if self.gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        give_back()
        self._over.clear()
        self._thread = threading.Thread(target=self._progress, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; entered again, it goes on with the largest so far."""
        if self.gpu:
            self.mib = max(self.mib, torch.cuda.max_memory_allocated(self.device) / 2**20)
            return
        self._over.set()
        assert self._thread is not None
        self._thread.join()

    def _progress(self) -> None:
        while True:
            self.mib = max(self.mib, held())
            if self._over.wait(INTERVAL):
                self.mib = max(self.mib, held())
                return


def held() -> float:
    """The MiB that this process holds: without mapped files on Linux; elsewhere the most it ever held, with them."""
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
            return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def give_back() -> None:
    """Have glibc hand freed memory back to the system; another C library is asked for nothing."""
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


def memory_of(text: str) -> float:
    """MiB of an amount such as 4GB, 512MB or 1.5GiB. Raises PlanError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", text, re.IGNORECASE)
    amount = float(found[1]) * UNITS[found[2].upper()] / 2**20 if found else 0.0
    if amount <= 0:
        raise PlanError(
            f"--memory {text}: is no amount of memory. Give a number above 0 and its unit, such as 4GB, 512MB, 1.5GiB."
        )
    return amount


def needed(points: tuple[Point, Point], batch: int) -> float:
    """The MiB for a batch, on the straight line through two that were measured; more images never need less."""
    (few, low), (many, high) = sorted(points)
    slope = max(0.0, (high - low) / (many - few))
    return low + slope * (batch - few)


def largest_batch(points: tuple[Point, Point], memory: float, *, most: int) -> int:
    """The largest batch up to `most` for which `memory` MiB suffice; 0 where not even one image fits."""
    if needed(points, 1) > memory:
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(points, middle) <= memory else (low, middle - 1)
    return low
