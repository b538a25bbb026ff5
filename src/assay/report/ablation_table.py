"""The table of an ablation: as text, and as files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from assay.experiments.ablate import Ablation
from assay.files import write_json, write_text
from assay.messages import text_table
from assay.report.tables import interval_cells, interval_text, write_csv

COLUMNS = ("variant", "metric", "difference to the whole plan", "so", "seconds")
SHARE = "share of the gap to right labels"


def blocks(ablation: Ablation, folder: Path) -> Iterator[Table | str]:
    """Yield what the terminal shows."""
    yield text_table(columns(ablation), rows(ablation), right=("seconds",), title=title(ablation))
    yield f"{ablation.basis}.\nThe table is in {folder}/ablation.md, .csv and .json."


def columns(ablation: Ablation) -> list[str]:
    """Return the names of the columns; a share of the gap has one where any is known."""
    return [*COLUMNS, SHARE] if ablation.knows_gap else list(COLUMNS)


def rows(ablation: Ablation) -> list[list[str]]:
    """Return a row a variant, as `columns` says."""
    return [
        [
            row.variant.title,
            interval_text(row.metric),
            interval_text(row.change, "+"),
            row.verdict,
            f"{row.seconds:,.0f}",
            *([row.share.percent() if row.share else ""] if ablation.knows_gap else []),
        ]
        for row in ablation.rows
    ]


def markdown(ablation: Ablation) -> list[str]:
    """Return the table in Markdown, and below it what its metrics are."""
    names = columns(ablation)
    cells = [names, ["---"] * len(names), *rows(ablation)]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
    return [*lines, "", f"{title(ablation)}; {ablation.basis}."]


def title(ablation: Ablation) -> str:
    """Return the metric and the seeds as text."""
    seeds = ", ".join(map(str, ablation.seeds))
    return f"Validation {ablation.metric}, seed{'s' if len(ablation.seeds) > 1 else ''} {seeds}"


def write(ablation: Ablation, folder: Path) -> None:
    """Write ablation.csv, ablation.json and ablation.md."""
    table = [
        {
            "variant": row.variant.title,
            "folder": f"variants/{row.variant.name}",
            "metric": ablation.metric,
            **interval_cells("", row.metric),
            "n": row.metric.n,
            "seeds": len(ablation.seeds),
            **interval_cells("difference ", row.change),
            **(interval_cells("share ", row.share) if ablation.knows_gap else {}),
            "verdict": row.verdict,
            "seconds": round(row.seconds, 1),
        }
        for row in ablation.rows
    ]
    write_csv(folder / "ablation.csv", table)
    write_text(folder / "ablation.md", "\n".join(markdown(ablation)) + "\n")
    write_json(folder / "ablation.json", ablation.to_json())
