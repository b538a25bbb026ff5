"""Image classifiers from images whose labels cannot be fully trusted."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.commands.api import compare, evaluate, load, read, train
    from assay.errors import AssayError
    from assay.labels.samples import Samples
    from assay.labels.writers.table import write_table
    from assay.predictions.predict import Predictions
    from assay.run.train import Run

# For polars' allocator, before polars is loaded: else it keeps freed memory while nothing calls polars.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")

__version__ = "0.1.0"
__all__ = ["AssayError", "Predictions", "Run", "Samples", "compare", "evaluate", "load", "read", "train", "write_table"]

# Imported when first used: torch takes seconds, and `assay --help` none of them.
_HOMES = {
    "AssayError": "assay.errors",
    "Predictions": "assay.predictions.predict",
    "Run": "assay.run.train",
    "Samples": "assay.labels.samples",
    "compare": "assay.commands.api",
    "evaluate": "assay.commands.api",
    "load": "assay.commands.api",
    "read": "assay.commands.api",
    "train": "assay.commands.api",
    "write_table": "assay.labels.writers.table",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'assay' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
