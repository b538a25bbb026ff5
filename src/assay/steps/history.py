"""The figures of every epoch, a row a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from assay.files import whole

COLUMNS = {
    "step": pl.String,
    "epoch": pl.Int64,
    "part": pl.String,
    "name": pl.String,
    "value": pl.Float64,
    "best": pl.Boolean,
}


def write_history(path: Path, step: str, epochs: list[dict[str, Any]]) -> None:
    """Write a fit's history as CSV; `best` is true in the epoch that validation chose."""
    best = max((row["epoch"] for row in epochs if row["best"]), default=0)
    rows = [
        (step, row["epoch"], part, name, value, row["epoch"] == best)
        for row in epochs
        for part, figures in [
            ("training", row["training"] | {"lr": row["lr"], "seconds": row["seconds"]}),
            ("validation", row["validation"]),
            ("unlabelled", row.get("unlabelled", {})),
        ]
        for name, value in figures.items()
    ]
    with whole(path) as beside:
        pl.DataFrame(rows, schema=COLUMNS, orient="row").write_csv(beside)


def read_history(path: Path) -> pl.DataFrame:
    """Read what `write_history` wrote."""
    return pl.read_csv(path, schema_overrides=COLUMNS)
