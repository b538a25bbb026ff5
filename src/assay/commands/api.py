"""Reading images and labels from Python as the command line reads them."""

from __future__ import annotations

from pathlib import Path

from assay.labels.corrections import corrected
from assay.labels.readers.read import read as read_data
from assay.labels.readers.read import resolve_paths
from assay.labels.samples import Samples
from assay.plan.plan import from_source


def read(source: str | Path) -> Samples:
    """Images and labels, split, from a folder, a table, or a YAML file with `data:` in it, corrected as that says.

    Raises DataError for data that cannot be trained on.
    """
    loaded = from_source(Path(source))
    data = loaded.plan.data
    return corrected(read_data(data, base=loaded.base), resolve_paths(data, base=loaded.base).get("corrections"))
