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


def environment() -> dict[str, Any]:
    """Versions and the machine, as environment.json holds them. No names of people or hosts."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
    }


def peak_memory() -> dict[str, float]:
    """Peak memory of this process in MiB: all that was resident, and the anonymous part where Linux tells.

    Pages of memory-mapped files count as resident but are handed back whenever memory is short.
    """
    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = {"resident": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
