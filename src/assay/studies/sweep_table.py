"""The table of a search: as text, and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from assay.figures.intervals import Figure
from assay.files import whole, write_json
from assay.studies.sweep import Row, Sweep

FIRST, LAST = ("trial", "figure"), ("difference to the best", "so", "seconds")


def columns(sweep: Sweep) -> list[str]:
    """The headings: each key path by its last words, as many as tell it from the others."""
    return [*FIRST, *short(list(sweep.space.sweep.over)).values(), *LAST]


def rows(sweep: Sweep) -> list[list[str]]:
    """A row a trial as `columns` says, the best first; then those that came to no figure."""
    others = [row for row in sweep.rows if row.figure is None]
    return [
        [
            str(row.number),
            shown(row.figure) if row.figure else row.said,
            *(_value(row.values.get(key, "")) for key in sweep.space.sweep.over),
            shown(row.change, "+") if row.change else "",
            "the best" if row is sweep.best else row.verdict,
            "" if row.seconds is None else f"{row.seconds:,.0f}",
        ]
        for row in (*sweep.ranked, *others)
    ]


def basis(sweep: Sweep) -> str:
    """What the figures are, and what they are not."""
    done = sweep.ranked
    n = f"{sweep.best.figure.n:,}" if sweep.best.figure else "0"
    return (
        f"Validation {sweep.figure} of {n} pictures, 95 % intervals over them, differences paired. The best of "
        f"{len(done)} trials was chosen by this figure, so its own flatters; only a test split is free of that"
    )


def write(sweep: Sweep, folder: Path) -> None:
    """sweep.csv, by number of the trial, and sweep.json."""
    table = [_record(sweep, row) for row in sweep.rows]
    with whole(folder / "sweep.csv") as beside:
        pl.DataFrame(table, infer_schema_length=None).write_csv(beside)
    write_json(folder / "sweep.json", sweep.to_json())


def short(keys: list[str]) -> dict[str, str]:
    """Key path -> its last words, as many as tell it from the other paths."""
    found = {}
    for key in keys:
        words = key.split(".")
        tails = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        others = [f".{other}" for other in keys if other != key]
        found[key] = next((tail for tail in tails if not any(other.endswith(f".{tail}") for other in others)), key)
    return found


def shown(figure: Figure, sign: str = "") -> str:
    """A figure with its interval."""
    bounds = "" if figure.low is None else f" [{figure.low:{sign}.4f}, {figure.high:{sign}.4f}]"
    return f"{figure.value:{sign}.4f}{bounds}"


def _record(sweep: Sweep, row: Row) -> dict[str, Any]:
    return {
        "trial": row.number,
        "state": row.state,
        **{key: row.values.get(key) for key in sweep.space.sweep.over},
        "figure": sweep.figure,
        **_cells("", row.figure),
        "n": row.figure.n if row.figure else None,
        **_cells("difference ", row.change),
        "verdict": row.verdict,
        "epochs": row.epochs,
        "seconds": None if row.seconds is None else round(row.seconds, 1),
        "why": row.why,
        "folder": f"trials/{row.folder.name}",
    }


def _cells(prefix: str, figure: Figure | None) -> dict[str, Any]:
    names = ("value", "low", "high")
    return {f"{prefix}{name}": None if figure is None else getattr(figure, name) for name in names}


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
