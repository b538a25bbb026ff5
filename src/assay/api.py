"""Reading pictures and labels from Python as the command line reads them."""

from __future__ import annotations

from pathlib import Path

from assay.labels.read import read as read_data
from assay.labels.samples import Samples
from assay.plan import from_source


def read(source: str | Path) -> Samples:
    """Pictures and labels, split, from a folder, a table, or a YAML file with `data:` in it.

    Raises DataError for data that cannot be trained on.
    """
    loaded = from_source(Path(source))
    return read_data(loaded.plan.data, base=loaded.base)
