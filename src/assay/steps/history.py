"""The metrics of every epoch of a fit, a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from assay.files import whole

HISTORY_COLUMNS = {
    "step": pl.String,
    "epoch": pl.Int64,
    "part": pl.String,
    "name": pl.String,
    "value": pl.Float64,
    "best": pl.Boolean,
}


def history_table(step: str, epochs: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Return the history of a fit; `best` is true in the epoch that validation chose."""
    best = max((row["epoch"] for row in epochs if row["best"]), default=0)
    rows = [
        (step, row["epoch"], part, name, value, row["epoch"] == best)
        for row in epochs
        for part, metrics in [
            ("training", row["training"] | {"lr": row["lr"], "seconds": row["seconds"]}),
            ("validation", row["validation"]),
            ("unlabelled", row.get("unlabelled", {})),
        ]
        for name, value in metrics.items()
    ]
    return pl.DataFrame(rows, schema=HISTORY_COLUMNS, orient="row")


def write_history(path: Path, step: str, epochs: Sequence[dict[str, Any]]) -> None:
    """Write the history of a fit as CSV."""
    with whole(path) as beside:
        history_table(step, epochs).write_csv(beside)


def read_history(path: Path) -> pl.DataFrame:
    """Read a history as `write_history` writes it."""
    return pl.read_csv(path, schema_overrides=HISTORY_COLUMNS, glob=False)
