"""The page of a search, and its charts as pictures."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from assay import __version__
from assay.evidence.charts import figure_title
from assay.evidence.names import plain
from assay.evidence.page import searched
from assay.evidence.page.drawn import inline
from assay.evidence.page.folder import read_run
from assay.evidence.page.gallery import Shown
from assay.evidence.page.history import panel_title, time_line
from assay.evidence.page.rendered import write_page
from assay.evidence.page.searched import Axis, Drawn, Line
from assay.figures.metrics import higher_is_better
from assay.studies.sweep import BEST, SEARCHED, Row, Sweep
from assay.studies.sweep_space import spelt
from assay.studies.sweep_table import basis, short
from assay.sweep_settings import AnyOver, Choices, values_of

PAGE = "sweep.html"
PICTURES = "pictures"
FEW = 12  # values of a range that have a panel each; of more, four groups of as many trials
GROUPS = 4
CURVE = {
    "trial": pl.Int64,
    "step": pl.Int64,
    "x": pl.Float64,
    "value": pl.Float64,
    "part": pl.String,
    "name": pl.String,
    "best": pl.Boolean,
}


def write_sweep_page(found: Sweep, folder: Path) -> Path:
    """Write sweep.html, one file that loads nothing, and its charts into `folder`/pictures.

    Raises SpaceError or RunError where they cannot be written.
    """
    names = short(list(found.space.sweep.over))
    figure = figure_title(found.figure)
    charts = _charts(found, names)
    panels = _panels(found)
    for name, (title, drawn) in charts.items():
        searched.write_png(folder / PICTURES / f"{name}.png", drawn, title=title)
    for key, by_figure in panels.items():
        for name, drawn_panels in by_figure.items():
            title = f"{panel_title(name)} by {names[key]}: training (orange), validation (blue)"
            place = folder / PICTURES / f"curves-{_file_name(names[key])}-{_file_name(name)}.png"
            searched.write_panels(place, drawn_panels, title=plain(title))
    parts: dict[str, Any] = {
        "name": plain(folder.resolve().name),
        "version": __version__,
        "figure": figure,
        "percent": found.figure.rpartition("/")[2] == "accuracy",
        "lower": not higher_is_better(found.figure),
        "best": _told(found, found.best),
        "values": [{"key": plain(key), "value": _text(value)} for key, value in found.best.values.items()],
        "counts": dict(Counter(row.state for row in found.rows)),
        "basis": basis(found),
        "keys": [plain(name) for name in names.values()],
        "rows": [_told(found, row) for row in _in_order(found)],
        "charts": {"importance": None} | {name: inline(one.made, one.rows) for name, (_, one) in charts.items()},
        "curves": [
            {
                "key": plain(names[key]),
                "figures": [
                    {
                        "title": panel_title(name),
                        "panels": [{"title": title, "svg": inline(one.made, one.rows)} for title, one in drawn_panels],
                    }
                    for name, drawn_panels in by_figure.items()
                ],
            }
            for key, by_figure in panels.items()
        ],
        "plan": plain_lines((folder / SEARCHED).read_text(encoding="utf-8")),
        "best_file": BEST,
    }
    script = {"pictures": {name: [] for name in ("place", "name", "part", "label", "answer")}, "heads": [], "cells": {}}
    return write_page(
        folder / PAGE, "sweep.html.jinja", shown=Shown([], []), script={**script, "map": None}, parts=parts
    )


def plain_lines(text: str) -> str:
    """A text without letters that would turn it around."""
    return "\n".join(plain(line) for line in text.splitlines())


def _charts(found: Sweep, names: dict[str, str]) -> dict[str, tuple[str, Drawn]]:
    """Name of the file -> title and chart; what trials tell nothing of is left out."""
    figure = figure_title(found.figure)
    better: Callable[..., float] = max if higher_is_better(found.figure) else min
    so_far: list[tuple[int, float, float]] = []
    for row in found.rows:
        if row.figure is not None:
            best = better(row.figure.value, so_far[-1][2]) if so_far else row.figure.value
            so_far.append((row.number, row.figure.value, best))
    charts = {"trials": (f"Validation {figure} by trial, and the best so far", searched.progress(so_far, title=figure))}
    charts["parallel"] = (f"All trials; right: validation {figure}", _parallel(found, names))
    if found.importance:
        shares = [(names[key], share) for key, share in found.importance.items()]
        title = f"Share of the variance of validation {figure} (fANOVA)"
        charts["importance"] = (title, searched.importance(shares))
    return charts


def _parallel(found: Sweep, names: dict[str, str]) -> Drawn:
    over = found.space.sweep.over
    values = [row.figure.value for row in found.ranked if row.figure]
    low, high = min(values), max(values)
    room = (high - low) or 1.0
    ticks = [(place, f"{low + place * (high - low):.4g}") for place in ((0.0, 0.5, 1.0) if high > low else (0.0,))]
    axes = [Axis(names[key], _ticks(own)) for key, own in over.items()] + [Axis(figure_title(found.figure), ticks)]
    ranks = {row.number: 1 - place / max(1, len(found.ranked) - 1) for place, row in enumerate(found.ranked)}
    lines = []
    for row in reversed(_in_order(found)):  # the best on top
        places = [_place(own, row.values[key]) if key in row.values else None for key, own in over.items()]
        last = (row.figure.value - low) / room if row.figure else None
        lines.append(Line(row.number, [*places, last], ranks.get(row.number), best=row is found.best))
    return searched.parallel(axes, lines)


def _ticks(over: AnyOver) -> list[tuple[float, str]]:
    if isinstance(over, Choices):
        return [(_place(over, text), str(text)) for text in (spelt(over, value) for value in over.choices)]
    middle = math.sqrt(over.low * over.high) if over.log else (over.low + over.high) / 2
    return [(place, f"{value:.3g}") for place, value in ((0.0, over.low), (0.5, middle), (1.0, over.high))]


def _place(over: AnyOver, value: Any) -> float:
    """Where on its axis a value lies, from 0 to 1."""
    if isinstance(over, Choices):
        texts = [spelt(over, one) for one in over.choices]
        return texts.index(value) / (len(texts) - 1)
    if over.log:
        return math.log(value / over.low) / math.log(over.high / over.low)
    return float((value - over.low) / (over.high - over.low))


def _panels(found: Sweep) -> dict[str, dict[str, list[tuple[str, Drawn]]]]:
    """Key path -> figure -> a panel a value, with the curves of the trials that have it."""
    told = pl.concat([_curves(row, best=row is found.best) for row in found.rows])
    panels: dict[str, dict[str, list[tuple[str, Drawn]]]] = {}
    for key, over in found.space.sweep.over.items():
        groups = _groups(over, {row.number: row.values[key] for row in found.rows if key in row.values})
        own = told.with_columns(group=pl.col("trial").replace_strict(groups, default=None, return_dtype=pl.String))
        order = list(dict.fromkeys(groups.values()))
        drawn = {
            name: searched.curves(own.filter(pl.col("group").is_not_null(), name=name), order)
            for name in dict.fromkeys((found.figure, "loss"))
        }
        panels[key] = {name: panel for name, panel in drawn.items() if panel}
    return {key: drawn for key, drawn in panels.items() if drawn}


def _curves(row: Row, *, best: bool) -> pl.DataFrame:
    """The figures of every epoch of a trial, counted on; of one that did not come to reading its pictures none."""
    begun = (row.folder / "plan.yaml").exists() and (row.folder / "samples.parquet").exists()
    if not begun:
        return pl.DataFrame(schema=CURVE)
    _, table, _ = time_line(read_run(row.folder))
    curves = table.filter(pl.col("mark") != "alone").with_columns(
        trial=pl.lit(row.number), best=pl.lit(best), x=pl.col("x").rank("dense")
    )
    return curves.select(pl.col(name).cast(kind) for name, kind in CURVE.items())


def _groups(over: AnyOver, values: dict[int, Any]) -> dict[int, str]:
    """Number of the trial -> what its panel is called, in the order of the values."""
    if isinstance(over, Choices):
        order = [spelt(over, value) for value in over.choices]
        ranked = sorted(values.items(), key=lambda found: order.index(found[1]))
        return {number: str(value) for number, value in ranked}
    ranked = sorted(values.items(), key=lambda found: (found[1], found[0]))
    every = values_of(over)
    if every is not None and len(every) <= FEW:
        return {number: _text(value) for number, value in ranked}
    groups: dict[int, str] = {}
    for part in range(GROUPS):
        own = ranked[part * len(ranked) // GROUPS : (part + 1) * len(ranked) // GROUPS]
        groups |= {number: f"{_text(own[0][1])} to {_text(own[-1][1])}" for number, _ in own}
    return groups


def _in_order(found: Sweep) -> list[Row]:
    return [*found.ranked, *(row for row in found.rows if row.figure is None)]


def _told(found: Sweep, row: Row) -> dict[str, Any]:
    """A row as the template shows it."""
    return {
        "number": row.number,
        "folder": f"trials/{row.folder.name}",
        "state": row.state,
        "said": plain(row.said),
        "figure": row.figure,
        "values": [_text(row.values.get(key, "")) for key in found.space.sweep.over],
        "change": row.change,
        "verdict": row.verdict,
        "seconds": row.seconds,
        "best": row is found.best,
    }


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else plain(str(value))


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
