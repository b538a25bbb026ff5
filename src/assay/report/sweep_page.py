"""The page of a search, and its charts as images."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from assay import __version__
from assay.experiments.sweep import BEST, SEARCHED, Sweep, TrialRow
from assay.experiments.sweep_space import spelt
from assay.files import RunFolder, whole, write_json
from assay.messages import plain
from assay.metrics.intervals import Metric
from assay.metrics.metrics import higher_is_better
from assay.plan.sweep_settings import AnyOver, Choices, values_of
from assay.report.charts import metric_title
from assay.report.sections import search_charts
from assay.report.sections.drawing import inline
from assay.report.sections.gallery import Shown
from assay.report.sections.history import panel_title, time_line
from assay.report.sections.page import write_page
from assay.report.sections.search_charts import Axis, Drawn, Line
from assay.run.contents import read_run

PAGE = "sweep.html"
FIGURES = "figures"
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
    """Write sweep.html, one file that loads nothing, and its charts into `folder`/images.

    Raises SpaceError or RunError where they cannot be written.
    """
    names = short(list(found.space.sweep.over))
    metric = metric_title(found.metric)
    charts = _charts(found, names)
    panels = _panels(found)
    for name, (title, drawn) in charts.items():
        search_charts.write_png(folder / FIGURES / f"{name}.png", drawn, title=title)
    for key, by_metric in panels.items():
        for name, drawn_panels in by_metric.items():
            title = f"{panel_title(name)} by {names[key]}: training (orange), validation (blue)"
            place = folder / FIGURES / f"curves-{_file_name(names[key])}-{_file_name(name)}.png"
            search_charts.write_panels(place, drawn_panels, title=plain(title))
    parts: dict[str, Any] = {
        "name": plain(folder.resolve().name),
        "version": __version__,
        "metric": metric,
        "percent": found.metric.rpartition("/")[2] == "accuracy",
        "lower": not higher_is_better(found.metric),
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
                "metrics": [
                    {
                        "title": panel_title(name),
                        "panels": [{"title": title, "svg": inline(one.made, one.rows)} for title, one in drawn_panels],
                    }
                    for name, drawn_panels in by_metric.items()
                ],
            }
            for key, by_metric in panels.items()
        ],
        "plan": plain_lines((folder / SEARCHED).read_text(encoding="utf-8")),
        "best_file": BEST,
    }
    script = {"images": {name: [] for name in ("place", "name", "part", "label", "answer")}, "heads": [], "cells": {}}
    return write_page(
        folder / PAGE, "sweep.html.jinja", shown=Shown([], []), script={**script, "map": None}, parts=parts
    )


def plain_lines(text: str) -> str:
    """A text without letters that would turn it around."""
    return "\n".join(plain(line) for line in text.splitlines())


def _charts(found: Sweep, names: dict[str, str]) -> dict[str, tuple[str, Drawn]]:
    """Name of the file -> title and chart; what trials tell nothing of is left out."""
    metric = metric_title(found.metric)
    better: Callable[..., float] = max if higher_is_better(found.metric) else min
    so_far: list[tuple[int, float, float]] = []
    for row in found.rows:
        if row.metric is not None:
            best = better(row.metric.value, so_far[-1][2]) if so_far else row.metric.value
            so_far.append((row.number, row.metric.value, best))
    charts = {
        "trials": (f"Validation {metric} by trial, and the best so far", search_charts.progress(so_far, title=metric))
    }
    charts["parallel"] = (f"All trials; right: validation {metric}", _parallel(found, names))
    if found.importance:
        shares = [(names[key], share) for key, share in found.importance.items()]
        title = f"Share of the variance of validation {metric} (fANOVA)"
        charts["importance"] = (title, search_charts.importance(shares))
    return charts


def _parallel(found: Sweep, names: dict[str, str]) -> Drawn:
    over = found.space.sweep.over
    values = [row.metric.value for row in found.ranked if row.metric]
    low, high = min(values), max(values)
    room = (high - low) or 1.0
    ticks = [(place, f"{low + place * (high - low):.4g}") for place in ((0.0, 0.5, 1.0) if high > low else (0.0,))]
    axes = [Axis(names[key], _ticks(own)) for key, own in over.items()] + [Axis(metric_title(found.metric), ticks)]
    ranks = {row.number: 1 - place / max(1, len(found.ranked) - 1) for place, row in enumerate(found.ranked)}
    lines = []
    for row in reversed(_in_order(found)):  # the best on top
        places = [_place(own, row.values[key]) if key in row.values else None for key, own in over.items()]
        last = (row.metric.value - low) / room if row.metric else None
        lines.append(Line(row.number, [*places, last], ranks.get(row.number), best=row is found.best))
    return search_charts.parallel(axes, lines)


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
    """Key path -> metric -> a panel a value, with the curves of the trials that have it."""
    told = pl.concat([_curves(row, best=row is found.best) for row in found.rows])
    panels: dict[str, dict[str, list[tuple[str, Drawn]]]] = {}
    for key, over in found.space.sweep.over.items():
        groups = _groups(over, {row.number: row.values[key] for row in found.rows if key in row.values})
        own = told.with_columns(group=pl.col("trial").replace_strict(groups, default=None, return_dtype=pl.String))
        order = list(dict.fromkeys(groups.values()))
        drawn = {
            name: search_charts.curves(own.filter(pl.col("group").is_not_null(), name=name), order)
            for name in dict.fromkeys((found.metric, "loss"))
        }
        panels[key] = {name: panel for name, panel in drawn.items() if panel}
    return {key: drawn for key, drawn in panels.items() if drawn}


def _curves(row: TrialRow, *, best: bool) -> pl.DataFrame:
    """The metrics of every epoch of a trial, counted on; of one that did not come to reading its images none."""
    if not RunFolder(row.folder).is_read:
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


def _in_order(found: Sweep) -> list[TrialRow]:
    return [*found.ranked, *(row for row in found.rows if row.metric is None)]


def _told(found: Sweep, row: TrialRow) -> dict[str, Any]:
    """A row as the template shows it."""
    return {
        "number": row.number,
        "folder": f"trials/{row.folder.name}",
        "state": row.state,
        "said": plain(row.state_text),
        "metric": row.metric,
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


# The table of a search: as text, and as files.

FIRST, LAST = ("trial", "metric"), ("difference to the best", "so", "seconds")


def columns(sweep: Sweep) -> list[str]:
    """The headings: each key path by its last words, as many as tell it from the others."""
    return [*FIRST, *short(list(sweep.space.sweep.over)).values(), *LAST]


def rows(sweep: Sweep) -> list[list[str]]:
    """A row a trial as `columns` says, the best first; then those that came to no metric."""
    others = [row for row in sweep.rows if row.metric is None]
    return [
        [
            str(row.number),
            shown(row.metric) if row.metric else row.state_text,
            *(_value(row.values.get(key, "")) for key in sweep.space.sweep.over),
            shown(row.change, "+") if row.change else "",
            "the best" if row is sweep.best else row.verdict,
            "" if row.seconds is None else f"{row.seconds:,.0f}",
        ]
        for row in (*sweep.ranked, *others)
    ]


def basis(sweep: Sweep) -> str:
    """What the metrics are, and what they are not."""
    done = sweep.ranked
    n = f"{sweep.best.metric.n:,}" if sweep.best.metric else "0"
    return (
        f"Validation {sweep.metric} of {n} images, 95 % intervals over them, differences paired. The best of "
        f"{len(done)} trials was chosen by this metric, so its own flatters; only a test split is free of that"
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


def shown(metric: Metric, sign: str = "") -> str:
    """A metric with its interval."""
    bounds = "" if metric.low is None else f" [{metric.low:{sign}.4f}, {metric.high:{sign}.4f}]"
    return f"{metric.value:{sign}.4f}{bounds}"


def _record(sweep: Sweep, row: TrialRow) -> dict[str, Any]:
    return {
        "trial": row.number,
        "state": row.state,
        **{key: row.values.get(key) for key in sweep.space.sweep.over},
        "metric": sweep.metric,
        **_cells("", row.metric),
        "n": row.metric.n if row.metric else None,
        **_cells("difference ", row.change),
        "verdict": row.verdict,
        "epochs": row.epochs,
        "seconds": None if row.seconds is None else round(row.seconds, 1),
        "why": row.why,
        "folder": f"trials/{row.folder.name}",
    }


def _cells(prefix: str, metric: Metric | None) -> dict[str, Any]:
    names = ("value", "low", "high")
    return {f"{prefix}{name}": None if metric is None else getattr(metric, name) for name in names}


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
