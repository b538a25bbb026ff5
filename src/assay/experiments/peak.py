"""The most memory that a piece of work holds, and the largest batch that fits into some memory."""

from __future__ import annotations

import resource
import sys
import threading
from bisect import bisect_right

import torch

from assay.training.devices import return_freed_memory

Point = tuple[int, float]  # a batch, and the MiB that a fit with it holds at the most
INTERVAL = 0.01  # seconds between two looks: a pass through a network takes longer


class Peak:
    """`with Peak(device) as peak: ...`, then `peak.mib`: of a GPU its tensors, else of this process, sampled.

    Freed memory that the process keeps is handed back before, as far as that can be: earlier work does not count.
    """

    def __init__(self, device: str) -> None:
        self.device, self.mib = device, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        if torch.device(self.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        return_freed_memory()
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._thread.ident is None:
            self.mib = torch.cuda.max_memory_allocated(self.device) / 2**20
            return
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        over = False
        while not over:
            over = self._over.wait(INTERVAL)
            self.mib = max(self.mib, held())


def held() -> float:
    """The MiB that this process holds: without mapped files on Linux; elsewhere the most it ever held, with them."""
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
            return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def needed(points: tuple[Point, Point], batch: int) -> float:
    """The MiB for a batch, on the straight line through two that were measured; more images never need less."""
    (small, low), (large, high) = sorted(points)
    slope = max(0.0, (high - low) / max(large - small, 1))
    return low + slope * (batch - small)


def largest_batch(points: tuple[Point, Point], memory: float, *, most: int) -> int:
    """The largest batch up to `most` for which `memory` MiB suffice; 0 where not even one image fits."""
    return bisect_right(range(1, most + 1), memory, key=lambda batch: needed(points, batch))
