"""The table of an ablation: as text, and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from assay.figures.intervals import Figure
from assay.files import whole, write_json, write_text
from assay.studies.ablate import Ablation

COLUMNS = ("variant", "figure", "difference to the whole plan", "so", "seconds")


def rows(ablation: Ablation) -> list[list[str]]:
    """A row a variant, as `COLUMNS` says."""
    return [
        [
            row.variant.said,
            shown(row.figure),
            "" if row.change is None else shown(row.change, "+"),
            row.verdict,
            f"{row.seconds:,.0f}",
        ]
        for row in ablation.rows
    ]


def markdown(ablation: Ablation) -> list[str]:
    """The table in Markdown, and below it what its figures are."""
    cells = [list(COLUMNS), ["---"] * len(COLUMNS), *rows(ablation)]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
    return [*lines, "", f"{named(ablation)}; {ablation.basis}."]


def named(ablation: Ablation) -> str:
    """The figure and the seeds, in words."""
    seeds = ", ".join(map(str, ablation.seeds))
    return f"Validation {ablation.figure}, seed{'s' if len(ablation.seeds) > 1 else ''} {seeds}"


def write(ablation: Ablation, folder: Path) -> None:
    """ablation.csv, ablation.json and ablation.md."""
    table = [
        {
            "variant": row.variant.said,
            "folder": f"variants/{row.variant.name}",
            "figure": ablation.figure,
            **_cells("", row.figure),
            "n": row.figure.n,
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


def shown(figure: Figure, sign: str = "") -> str:
    """A figure and its interval; with `+`, as a difference."""
    bounds = "" if figure.low is None else f" [{figure.low:{sign}.4f}, {figure.high:{sign}.4f}]"
    return f"{figure.value:{sign}.4f}{bounds}"


def _cells(prefix: str, figure: Figure | None) -> dict[str, Any]:
    names = ("value", "low", "high")
    return {f"{prefix}{name}": None if figure is None else getattr(figure, name) for name in names}
