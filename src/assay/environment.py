"""What a run was made with: versions, the machine, the memory it took."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = (
    "assay",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "polars",
    "pillow",
    "scikit-learn",
    "numpy",
)


def environment(*, processes: int) -> dict[str, Any]:
    """Versions, the machine and the processes, as environment.json holds them. No names of people or hosts."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
    }


class PeakMemory:
    """The most memory this process had, in MiB.

    `resident` counts the pages of memory-mapped files too, which are handed back whenever memory is short;
    `anonymous`, which Linux alone tells, does not. It is read whenever `note` is called.
    """

    def __init__(self) -> None:
        self._anonymous = 0.0

    def note(self) -> None:
        """Look at the memory held now; it takes 0.05 ms."""
        if sys.platform == "linux":
            with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
                found = next(line for line in status if line.startswith("RssAnon"))
            self._anonymous = max(self._anonymous, int(found.split()[1]) / 1024)

    def to_json(self) -> dict[str, float]:
        self.note()
        unit = 2**20 if sys.platform == "darwin" else 2**10
        found = {"resident": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
        return found | ({"anonymous": round(self._anonymous, 1)} if self._anonymous else {})


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
