"""The table of an ablation: as text, and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from assay.experiments.ablate import Ablation
from assay.files import whole, write_json, write_text
from assay.metrics.intervals import Metric

COLUMNS = ("variant", "metric", "difference to the whole plan", "so", "seconds")


def rows(ablation: Ablation) -> list[list[str]]:
    """A row a variant, as `COLUMNS` says."""
    return [
        [
            row.variant.title,
            shown(row.metric),
            "" if row.change is None else shown(row.change, "+"),
            row.verdict,
            f"{row.seconds:,.0f}",
        ]
        for row in ablation.rows
    ]


def markdown(ablation: Ablation) -> list[str]:
    """The table in Markdown, and below it what its metrics are."""
    cells = [list(COLUMNS), ["---"] * len(COLUMNS), *rows(ablation)]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
    return [*lines, "", f"{named(ablation)}; {ablation.basis}."]


def named(ablation: Ablation) -> str:
    """The metric and the seeds, in words."""
    seeds = ", ".join(map(str, ablation.seeds))
    return f"Validation {ablation.metric}, seed{'s' if len(ablation.seeds) > 1 else ''} {seeds}"


def write(ablation: Ablation, folder: Path) -> None:
    """ablation.csv, ablation.json and ablation.md."""
    table = [
        {
            "variant": row.variant.title,
            "folder": f"variants/{row.variant.name}",
            "metric": ablation.metric,
            **_cells("", row.metric),
            "n": row.metric.n,
            "seeds": len(ablation.seeds),
            **_cells("difference ", row.change),
            "verdict": row.verdict,
            "seconds": round(row.seconds, 1),
        }
        for row in ablation.rows
    ]
    with whole(folder / "ablation.csv") as beside:
        pl.DataFrame(table, infer_schema_length=None).write_csv(beside)
    write_text(folder / "ablation.md", "\n".join(markdown(ablation)) + "\n")
    write_json(folder / "ablation.json", ablation.to_json())


def shown(metric: Metric, sign: str = "") -> str:
    """A metric and its interval; with `+`, as a difference."""
    bounds = "" if metric.low is None else f" [{metric.low:{sign}.4f}, {metric.high:{sign}.4f}]"
    return f"{metric.value:{sign}.4f}{bounds}"


def _cells(prefix: str, metric: Metric | None) -> dict[str, Any]:
    names = ("value", "low", "high")
    return {f"{prefix}{name}": None if metric is None else getattr(metric, name) for name in names}
