"""Charts of a search: trials as they came, what mattered, all values side by side, curves a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
from markupsafe import Markup

from assay.messages import plain, shortened
from assay.report import drawing as svg
from assay.report.drawing import BLUE, GRID, INK, ORANGE, PAPER, QUIET, Drawing, Rows, axis, base, drawing

LETTERS = 22  # of a value
COLUMNS = 3
BETWEEN = 150  # pixels from one axis to the next


@dataclass(frozen=True)
class Axis:
    """An axis of parallel coordinates: its title, and the texts along it with their heights from 0 (below) to 1."""

    title: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Line:
    """A trial over the axes: a height on each, None where it has none, and its rank from 0 (worst) to 1."""

    trial: int
    heights: Sequence[float | None]
    rank: float | None  # None: it came to no metric
    best: bool = False


@dataclass(frozen=True)
class Drawn:
    """A drawing and its rows."""

    made: Drawing
    rows: Rows

    @property
    def svg(self) -> Markup:
        return svg.inline(self.made, self.rows)


def progress(trials: Sequence[tuple[int, float, float]], *, title: str) -> Drawn:
    """Return metrics by trial, and the best so far; `trials` are (number, metric, best so far), done."""
    x = alt.X("trial:Q", scale=alt.Scale(nice=False, padding=12), axis=axis(title="trial", format="d", tickMinStep=1))
    y = alt.Y("value:Q", scale=alt.Scale(zero=False, padding=12), axis=axis(title=title, format=".4~g"))
    marks = base().encode(x=x, y=y)
    layers = [
        marks.mark_line(interpolate="step-after", color=ORANGE, strokeWidth=2).encode(y="best:Q"),
        marks.mark_circle(size=46, color=BLUE, opacity=0.85),
    ]
    rows = [{"trial": number, "value": value, "best": best} for number, value, best in trials]
    return Drawn(drawing(alt.layer(*layers), width=620, height=190), rows)


def importance(shares: Sequence[tuple[str, float]]) -> Drawn:
    """Return bars: the share of the variance of the metric that each key explains."""
    y = alt.Y(
        "key:N", sort=None, axis=axis(labelLimit=220, domain=False, ticks=False, labelColor=INK, labelFontSize=12)
    )
    x = alt.X("share:Q", scale=alt.Scale(domain=[0, 1]), axis=axis(format="%", tickCount=5))
    marks = base().encode(x=x, y=y)
    number = marks.mark_text(align="left", dx=6, fontSize=12, color=INK).encode(text=alt.Text("share:Q", format=".0%"))
    chart = alt.layer(marks.mark_bar(color=BLUE, height=16, cornerRadiusEnd=3), number)
    rows = [{"key": _short(key), "share": share} for key, share in shares]
    return Drawn(drawing(chart, width=420, height=max(40, 30 * len(rows))), rows)


def parallel(axes: Sequence[Axis], lines: Sequence[Line]) -> Drawn:
    """Return a line a trial over an axis a key, the last one the metric; the best drawn last and strong."""
    domain = [-0.12, len(axes) - 1 + 0.45]
    x = alt.X("x:Q", scale=alt.Scale(domain=domain, nice=False), axis=None)
    heights = alt.Scale(domain=[-0.04, 1.16], nice=False)
    y = alt.Y("y:Q", scale=heights, axis=None)
    line = base().transform_filter("datum.trial != null").encode(x=x, y=y, detail="trial:N")
    opacity = alt.Opacity("rank:Q", scale=alt.Scale(domain=[0, 1], range=[0.15, 0.85]), legend=None)
    tick = base().transform_filter("datum.text != null").encode(x=x, y=y, text="text:N")
    head = base().transform_filter("datum.head != null").encode(x=x, y=y, text="head:N")
    halo: dict[str, object] = {"align": "left", "dx": 6, "fontSize": 11}
    layers = [
        base()
        .transform_filter("datum.from != null")
        .mark_rule(color=GRID)
        .encode(x=x, y=alt.Y("from:Q", scale=heights, axis=None), y2="to:Q"),
        line.transform_filter("datum.rank == null").mark_line(color=QUIET, strokeDash=[3, 3], opacity=0.4),
        line.transform_filter("datum.rank != null && !datum.best").mark_line(color=BLUE).encode(opacity=opacity),
        line.transform_filter("datum.best").mark_line(color=ORANGE, strokeWidth=3),
        line.transform_filter("datum.best").mark_circle(color=ORANGE, size=44, opacity=1),
        tick.mark_text(stroke=PAPER, strokeWidth=4, color=PAPER, **halo),
        tick.mark_text(color=INK, **halo),
        head.mark_text(align="left", dx=-4, fontSize=12, fontWeight=600, color=INK),
    ]
    rows: list[dict[str, object]] = []
    for number, one in enumerate(axes):
        rows.append({"x": number, "from": 0, "to": 1})
        rows.append({"x": number, "y": 1.1, "head": _short(one.title)})
        rows += [{"x": number, "y": height, "text": _short(text)} for height, text in one.ticks]
    for trial in lines:
        rows += [
            {"x": number, "y": height, "trial": trial.trial, "rank": trial.rank, "best": trial.best}
            for number, height in enumerate(trial.heights)
            if height is not None
        ]
    return Drawn(drawing(alt.layer(*layers), width=max(420, BETWEEN * len(axes)), height=260), rows)


def curves(points: pl.DataFrame, groups: Sequence[str]) -> list[tuple[str, Drawn]]:
    """Return a panel a group, on the same scales: training and validation of its trials by epoch, the best strong.

    points: group (str), trial, step, x (epochs counted on), value, part (training | validation), best (bool).
    """
    if points.is_empty():
        return []
    x = alt.X("x:Q", scale=alt.Scale(domain=_reach(points["x"]), nice=False), axis=axis(format="d", grid=False))
    ticks = axis(format=".4~g", tickCount=4, minExtent=44)
    y = alt.Y("value:Q", scale=alt.Scale(domain=_reach(points["value"]), nice=False, clamp=True), axis=ticks)
    layers = []
    for part, colour in (("training", ORANGE), ("validation", BLUE)):
        marks = base().transform_filter(f"datum.part == '{part}'").encode(x=x, y=y, detail=["trial:N", "step:N"])
        for chosen, width, dot, opacity in (("!datum.best", 1.2, 10, 0.5), ("datum.best", 3, 26, 1)):
            dots = {"size": dot, "color": colour}
            line = marks.transform_filter(chosen).mark_line(
                color=colour, strokeWidth=width, opacity=opacity, point=dots
            )
            layers.append(line)
    made = drawing(alt.layer(*layers))
    return [(_short(group), Drawn(made, points.filter(group=group).to_dicts())) for group in groups]


def write_png(path: Path, drawn: Drawn, *, title: str) -> Path:
    """Write one chart as an image, in the colours of the page by day."""
    return svg.write_png(path, {**drawn.made, "title": _title(title)}, {"rows": drawn.rows})


def write_panels(path: Path, panels: Sequence[tuple[str, Drawn]], *, title: str) -> Path:
    """Write several panels that are drawn alike as one image."""
    outer = ("config", "$schema", "background", "datasets", "padding")
    parts = []
    for number, (name, drawn) in enumerate(panels):
        inner = {key: value for key, value in drawn.made.items() if key not in outer}
        parts.append({**_renamed(inner, f"rows {number}"), "title": {**_title(name), "fontSize": 13}})
    whole = {key: value for key, value in panels[0][1].made.items() if key in ("config", "$schema")}
    spec: Drawing = {**whole, "concat": parts, "columns": COLUMNS, "spacing": 26}
    data = {f"rows {number}": drawn.rows for number, (_, drawn) in enumerate(panels)}
    return svg.write_png(path, {**spec, "title": {**_title(title), "offset": 14}}, data)


def _renamed(made: Any, name: str) -> Any:
    """Return a drawing, or a part of one, of the data `name` instead of `rows`."""
    if isinstance(made, dict):
        return {k: {"name": name} if k == "data" else _renamed(inside, name) for k, inside in made.items()}
    return [_renamed(inside, name) for inside in made] if isinstance(made, list) else made


def _title(text: str) -> dict[str, object]:
    return {"text": text, "anchor": "start", "color": INK, "fontSize": 16, "fontWeight": 600, "offset": 10}


def _reach(values: pl.Series) -> list[float]:
    """Return the ends of an axis: a little beyond the values, and never the same."""
    low, high = float(values.min() or 0), float(values.max() or 0)  # type: ignore[arg-type]
    room = 0.05 * (high - low) or 0.5
    return [low - room, high + room]


def _short(text: str) -> str:
    return shortened(plain(text), LETTERS)
