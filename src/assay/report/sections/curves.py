"""The curves of several runs over one another: a colour a run, in the colours of the page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import altair as alt
import polars as pl

from assay.report.sections.drawing import PAPER, RUNS, Drawing, axis, base, drawing, inline
from assay.report.sections.history import panel_title, panels, time_line
from assay.run.contents import HEADLINE_METRICS, RunContents

DASHES = ([1, 0], [7, 3], [2, 2])
"""Of the first runs, one a colour, then of as many more."""


def look(place: int) -> dict[str, Any]:
    """How the run at a place is drawn: the number of its colour, and its dashes."""
    return {"colour": place % len(RUNS), "dashes": DASHES[place // len(RUNS) % len(DASHES)]}


def over_one_another(runs: Sequence[RunContents]) -> list[dict[str, Any]]:
    """A panel for each metric that any of the runs has a curve of, over the epochs of all its steps.

    `first` are those to be seen at once: the loss, the headline and the learning rate.
    """
    tables = [time_line(run)[1].with_columns(run=pl.lit(place)) for place, run in enumerate(runs)]
    table = pl.concat(tables)
    if table.is_empty():
        return []
    names = list(dict.fromkeys(name for own, run in zip(tables, runs, strict=True) for name in panels(own, run)))
    chief = next(
        (run.headline for run in runs if run.headline), next((name for name in HEADLINE_METRICS if name in names), "")
    )
    end = float(table["x"].max() or 1)  # type: ignore[arg-type]
    return [
        {
            "title": panel_title(name),
            "first": name in {"loss", chief, "lr"},
            "svg": inline(_drawing(end, len(runs), rate=name == "lr"), table.filter(name=name).to_dicts()),
        }
        for name in names
    ]


@lru_cache(maxsize=8)
def _drawing(end: float, count: int, *, rate: bool) -> Drawing:
    """One metric: a line a run and part, training thin and pale; the kept epochs ringed; steps without epochs alone."""
    x = alt.X(
        "x:Q", scale=alt.Scale(domain=[0.5, end + 0.5], nice=False), axis=axis(format="d", grid=False, tickMinStep=1)
    )
    ticks = axis(format=".1e" if rate else ".4~g", tickCount=4, minExtent=44)
    y = alt.Y("value:Q", scale=alt.Scale(zero=rate, nice=True, padding=12), axis=ticks)
    layers = []
    for place in range(count):
        own = base().transform_filter(f"datum.run == {place}").encode(x=x, y=y, detail="step:N")
        colour, dashes = RUNS[look(place)["colour"]], look(place)["dashes"]
        training = own.transform_filter("datum.part == 'training'")
        validation = own.transform_filter("datum.part == 'validation'")
        layers += [
            training.mark_line(
                color=colour, strokeDash=dashes, strokeWidth=2 if rate else 1, opacity=1 if rate else 0.45
            ),
            validation.transform_filter("datum.mark != 'alone'").mark_line(
                color=colour, strokeDash=dashes, strokeWidth=2
            ),
            validation.transform_filter("datum.mark == 'alone'").mark_point(
                shape="diamond", filled=True, size=64, color=colour, opacity=1
            ),
            validation.transform_filter("datum.mark == 'best'").mark_point(
                size=60, filled=True, stroke=colour, fill=PAPER, strokeWidth=2, opacity=1
            ),
        ]
    return drawing(alt.layer(*layers))
