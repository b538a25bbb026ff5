"""The page of a search with its charts, and its table as text and files."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Table

from assay import __version__
from assay.experiments.sweep import BEST, SEARCHED, Sweep, TrialRow
from assay.experiments.sweep_space import spelt
from assay.files import RunFolder, write_json
from assay.messages import plain, text_table
from assay.metrics.metrics import higher_is_better
from assay.plan.sweep_settings import AnyOver, Choices, values_of
from assay.report import search_charts
from assay.report.charts import metric_title
from assay.report.gallery import Thumbnails
from assay.report.page import write_page
from assay.report.search_charts import Axis, Drawn, Line
from assay.report.sections.history import time_line
from assay.report.tables import interval_cells, interval_text, write_csv
from assay.run.contents import read_run

PAGE = "sweep.html"
MAX_PANELS = 12  # values of a range that have a panel each; of more, four groups of as many trials
GROUPS = 4
CURVE = {"trial": pl.Int64, "step": pl.Int64, "x": pl.Float64, "value": pl.Float64, "part": pl.String}
CURVE |= {"name": pl.String, "best": pl.Boolean}


Charts = dict[str, tuple[str, Drawn]]
"""Title and chart by the name of the file."""
Panels = dict[str, dict[str, list[tuple[str, Drawn]]]]
"""By key path and metric a panel a value."""


def write_sweep_page(sweep: Sweep, folder: Path) -> Path:
    """Write sweep.html, one file that loads nothing, and its charts into `folder`/figures.

    Raises SpaceError or RunError where they cannot be written.
    """
    names = short(list(sweep.space.sweep.axes))
    charts, panels = _charts(sweep, names), _panels(sweep)
    _write_images(RunFolder(folder).charts, names, charts, panels)
    parts: dict[str, object] = {
        "name": plain(folder.resolve().name),
        "version": __version__,
        "metric": metric_title(sweep.metric),
        "percent": sweep.metric.rpartition("/")[2] == "accuracy",
        "lower": not higher_is_better(sweep.metric),
        "best": _row(sweep, sweep.best),
        "values": [{"key": plain(key), "value": _text(value)} for key, value in sweep.best.values.items()],
        "counts": dict(Counter(row.state for row in sweep.rows)),
        "basis": basis(sweep),
        "keys": [plain(name) for name in names.values()],
        "rows": [_row(sweep, row) for row in _best_first(sweep)],
        "charts": {"importance": None} | {name: chart.svg for name, (_, chart) in charts.items()},
        "curves": [
            {
                "key": plain(names[key]),
                "metrics": [
                    {
                        "title": metric_title(name),
                        "panels": [{"title": title, "svg": panel.svg} for title, panel in drawn],
                    }
                    for name, drawn in by_metric.items()
                ],
            }
            for key, by_metric in panels.items()
        ],
        "plan": "\n".join(map(plain, (folder / SEARCHED).read_text(encoding="utf-8").splitlines())),
        "best_file": BEST,
    }
    return write_page(folder / PAGE, "sweep.html.jinja", thumbnails=Thumbnails([], []), script={}, parts=parts)


def _write_images(folder: Path, names: dict[str, str], charts: Charts, panels: Panels) -> None:
    for name, (title, chart) in charts.items():
        search_charts.write_png(folder / f"{name}.png", chart, title=title)
    for key, by_metric in panels.items():
        for name, drawn in by_metric.items():
            title = f"{metric_title(name)} by {names[key]}: training (orange), validation (blue)"
            path = folder / f"curves-{_file_name(names[key])}-{_file_name(name)}.png"
            search_charts.write_panels(path, drawn, title=plain(title))


def _charts(sweep: Sweep, names: dict[str, str]) -> Charts:
    """Return the charts; the importance is left out where trials do not show any."""
    metric = metric_title(sweep.metric)
    better: Callable[..., float] = max if higher_is_better(sweep.metric) else min
    so_far: list[tuple[int, float, float]] = []
    for row in sweep.rows:
        if row.metric is not None:
            best = better(row.metric.value, so_far[-1][2]) if so_far else row.metric.value
            so_far.append((row.number, row.metric.value, best))
    charts = {
        "trials": (f"Validation {metric} by trial, and the best so far", search_charts.progress(so_far, title=metric))
    }
    charts["parallel"] = (f"All trials; right: validation {metric}", _parallel(sweep, names))
    if sweep.importance:
        shares = [(names[key], share) for key, share in sweep.importance.items()]
        title = f"Share of the variance of validation {metric} (fANOVA)"
        charts["importance"] = (title, search_charts.importance(shares))
    return charts


def _parallel(sweep: Sweep, names: dict[str, str]) -> Drawn:
    over = sweep.space.sweep.axes
    values = [row.metric.value for row in sweep.ranked if row.metric]
    low, high = min(values), max(values)
    room = (high - low) or 1.0
    ticks = [(at, f"{low + at * (high - low):.4g}") for at in ((0.0, 0.5, 1.0) if high > low else (0.0,))]
    axes = [Axis(names[key], _ticks(one)) for key, one in over.items()] + [Axis(metric_title(sweep.metric), ticks)]
    ranks = {row.number: 1 - rank / max(1, len(sweep.ranked) - 1) for rank, row in enumerate(sweep.ranked)}
    lines = []
    for row in reversed(_best_first(sweep)):  # the best on top
        heights = [_height(one, row.values[key]) if key in row.values else None for key, one in over.items()]
        last = (row.metric.value - low) / room if row.metric else None
        lines.append(Line(row.number, [*heights, last], ranks.get(row.number), best=row is sweep.best))
    return search_charts.parallel(axes, lines)


def _ticks(over: AnyOver) -> list[tuple[float, str]]:
    if isinstance(over, Choices):
        return [(_height(over, text), str(text)) for text in (spelt(over, value) for value in over.choices)]
    middle = math.sqrt(over.low * over.high) if over.log else (over.low + over.high) / 2
    return [(at, f"{value:.3g}") for at, value in ((0.0, over.low), (0.5, middle), (1.0, over.high))]


def _height(over: AnyOver, value: Any) -> float:
    """Return where on its axis a value lies, from 0 to 1."""
    if isinstance(over, Choices):
        texts = [spelt(over, one) for one in over.choices]
        return texts.index(value) / (len(texts) - 1)
    if over.log:
        return math.log(value / over.low) / math.log(over.high / over.low)
    return float((value - over.low) / (over.high - over.low))


def _panels(sweep: Sweep) -> Panels:
    """Return a panel a value with the curves of the trials that have it; nothing where there are none."""
    table = pl.concat([_curves(row, best=row is sweep.best) for row in sweep.rows])
    panels: Panels = {}
    for key, over in sweep.space.sweep.axes.items():
        groups = _groups(over, {row.number: row.values[key] for row in sweep.rows if key in row.values})
        group = pl.col("trial").replace_strict(groups, default=None, return_dtype=pl.String)
        grouped = table.with_columns(group=group).filter(pl.col("group").is_not_null())
        order = list(dict.fromkeys(groups.values()))
        for name in dict.fromkeys((sweep.metric, "loss")):
            if drawn := search_charts.curves(grouped.filter(name=name), order):
                panels.setdefault(key, {})[name] = drawn
    return panels


def _curves(row: TrialRow, *, best: bool) -> pl.DataFrame:
    """Return the metrics of every epoch of a trial, counted on; none before its images were read."""
    if not RunFolder(row.folder).is_read:
        return pl.DataFrame(schema=CURVE)
    _, table, _ = time_line(read_run(row.folder))
    curves = table.filter(pl.col("mark") != "alone").with_columns(
        trial=pl.lit(row.number), best=pl.lit(best), x=pl.col("x").rank("dense")
    )
    return curves.select(pl.col(name).cast(kind) for name, kind in CURVE.items())


def _groups(over: AnyOver, values: dict[int, Any]) -> dict[int, str]:
    """Return the title of the panel of each trial by its number, in the order of the values."""
    if isinstance(over, Choices):
        order = [spelt(over, value) for value in over.choices]
        ranked = sorted(values.items(), key=lambda item: order.index(item[1]))
        return {number: str(value) for number, value in ranked}
    ranked = sorted(values.items(), key=lambda item: (item[1], item[0]))
    every = values_of(over)
    if every is not None and len(every) <= MAX_PANELS:
        return {number: _text(value) for number, value in ranked}
    groups: dict[int, str] = {}
    for part in range(GROUPS):
        inside = ranked[part * len(ranked) // GROUPS : (part + 1) * len(ranked) // GROUPS]
        groups |= {number: f"{_text(inside[0][1])} to {_text(inside[-1][1])}" for number, _ in inside}
    return groups


def _best_first(sweep: Sweep) -> list[TrialRow]:
    """Return the trials by rank; those that came to no metric last."""
    return [*sweep.ranked, *(row for row in sweep.rows if row.metric is None)]


def _row(sweep: Sweep, row: TrialRow) -> dict[str, object]:
    """Return a trial as the template shows it."""
    return {
        "number": row.number,
        "state": plain(row.state_text),
        "metric": row.metric,
        "values": [_text(row.values.get(key, "")) for key in sweep.space.sweep.axes],
        "change": row.change,
        "verdict": _verdict(sweep, row),
        "seconds": row.seconds,
    }


def _verdict(sweep: Sweep, row: TrialRow) -> str:
    return "the best" if row is sweep.best else row.verdict


def _text(value: Any) -> str:
    return plain(_value(value))


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)


# The table of a search: as text, and as files.

FIRST, LAST = ("trial", "metric"), ("difference to the best", "so", "seconds")


def blocks(sweep: Sweep, folder: Path, page: Path) -> Iterator[Table | str]:
    """Yield what the terminal shows."""
    title = f"Validation {sweep.metric} of {len(sweep.rows)} trials"
    yield text_table(columns(sweep), rows(sweep), right=("seconds",), title=title)
    yield f"{basis(sweep)}.\nThe table is in {folder}/sweep.csv and .json, the page in {page}."
    yield "To train the best plan:\n"
    yield f"    assay train {shlex.quote(str(folder / BEST))} --run {shlex.quote(f'{folder}-best')}\n"


def columns(sweep: Sweep) -> list[str]:
    """Return the headings: each key path by its last words, as many as it shares with no other."""
    return [*FIRST, *short(list(sweep.space.sweep.axes)).values(), *LAST]


def rows(sweep: Sweep) -> list[list[str]]:
    """Return a row a trial as `columns` says, the best first; then those that came to no metric."""
    return [
        [
            str(row.number),
            interval_text(row.metric) or row.state_text,
            *(_value(row.values.get(key, "")) for key in sweep.space.sweep.axes),
            interval_text(row.change, "+"),
            _verdict(sweep, row),
            "" if row.seconds is None else f"{row.seconds:,.0f}",
        ]
        for row in _best_first(sweep)
    ]


def basis(sweep: Sweep) -> str:
    """Return what the metrics are, and what they are not."""
    n = f"{sweep.best.metric.n:,}" if sweep.best.metric else "0"
    return (
        f"Validation {sweep.metric} of {n} images, 95 % intervals over them, differences paired. The best of "
        f"{len(sweep.ranked)} trials was chosen by this metric, so its own flatters; only a test split is free of that"
    )


def write(sweep: Sweep, folder: Path) -> None:
    """Write sweep.csv, by number of the trial, and sweep.json."""
    write_csv(folder / "sweep.csv", [_record(sweep, row) for row in sweep.rows])
    write_json(folder / "sweep.json", sweep.to_json())


def short(keys: list[str]) -> dict[str, str]:
    """Return the last words of each key path, as many as it shares with no other."""
    names = {}
    for key in keys:
        words = key.split(".")
        tails = (".".join(words[-count:]) for count in range(1, len(words) + 1))
        others = [f".{other}" for other in keys if other != key]
        names[key] = next((tail for tail in tails if not any(other.endswith(f".{tail}") for other in others)), key)
    return names


def _record(sweep: Sweep, row: TrialRow) -> dict[str, object]:
    return {
        "trial": row.number,
        "state": row.state,
        **{key: row.values.get(key) for key in sweep.space.sweep.axes},
        "metric": sweep.metric,
        **interval_cells("", row.metric),
        "n": row.metric.n if row.metric else None,
        **interval_cells("difference ", row.change),
        "verdict": row.verdict,
        "epochs": row.epochs,
        "seconds": None if row.seconds is None else round(row.seconds, 1),
        "why": row.why,
        "folder": f"trials/{row.folder.name}",
    }


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
