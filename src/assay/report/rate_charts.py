"""Charts of learning rates: over a plan, of every schedule, and of a range test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import altair as alt
import polars as pl

from assay.experiments.lr_finder import RangeTest
from assay.experiments.preview import Preview
from assay.experiments.timeline import Span
from assay.messages import plain, shortened
from assay.report.charts import BLUE, DATA, INK, ORANGE, QUIET, Chart, empty, save, styled, with_data

WIDTH = 760


def over_plan(rates: pl.DataFrame, spans: Sequence[Span]) -> Chart:
    """Steps, learning rate and momentum by optimiser step, counted on over the plan.

    rates: at (int), fit (str), lr, low (the rate of the first stage, null where all learn alike), momentum (or null).
    """
    title = "Steps, learning rate and momentum"
    total = max([span.ends for span in spans], default=0)
    if total == 0:
        return styled(empty("No step of this plan has a learning rate."), title, ["Nothing is fitted by steps."])
    x = alt.X("at:Q", title=None, scale=alt.Scale(domain=[0, total], nice=False), axis=alt.Axis(labels=False))
    below = x.title("optimiser steps").axis(format=",d", title="optimiser steps")
    rows = [
        *(
            {"what": "span", "name": shortened(plain(one.name), 32), "at": one.begins, "ends": one.ends}
            for one in spans
        ),
        *({"what": "rate", **row} for row in rates.to_dicts()),
    ]
    begins = sorted({span.begins for span in spans} - {0})
    marks = alt.Chart(alt.Data(values=[{"at": at} for at in begins])).mark_rule(strokeDash=[2, 3], color=QUIET)
    momentum = rates["momentum"].is_not_null().any()
    panels = [
        _steps(spans, x),
        _line("lr", "learning rate", below if not momentum else x, marks, second="low"),
        *([_line("momentum", "momentum", below, marks)] if momentum else []),
    ]
    joined = alt.vconcat(*panels, spacing=14).resolve_scale(x="shared")
    subtitle = ["Across: optimiser steps, counted on over the plan. A tick: a step that takes none."]
    if rates["low"].is_not_null().any():
        subtitle.append("Blue: the rate of the head; orange: of the first stage that learns.")
    return with_data(styled(joined, title, subtitle), rows)


def _steps(spans: Sequence[Span], x: alt.X) -> Chart:
    names = [shortened(plain(span.name), 32) for span in spans]
    y = alt.Y(
        "name:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False, labelColor=INK, labelLimit=220)
    )
    base = alt.Chart(alt.NamedData(DATA)).transform_filter("datum.what == 'span'").encode(y=y, x=x)
    bars = base.transform_filter("datum.ends > datum.at").mark_bar(color=BLUE, height=9, opacity=0.85)
    ticks = base.transform_filter("datum.ends == datum.at").mark_tick(color=ORANGE, thickness=3, height=13)
    return alt.layer(bars.encode(x2="ends:Q"), ticks).properties(width=WIDTH, height=alt.Step(19))


def _named(span: Span) -> str:
    return shortened(plain(span.name), 32)


def _line(field: str, title: str, x: alt.X, marks: Chart, *, second: str | None = None) -> Chart:
    scale = alt.Scale(zero=field == "lr", nice=True)
    y = alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5, format=".3~g", minExtent=44))
    base = alt.Chart(alt.NamedData(DATA)).transform_filter(f"datum.what == 'rate' && isValid(datum.{field})")
    lines = [base.mark_line(color=BLUE, strokeWidth=2).encode(x=x, y=y, detail="fit:N")]
    if second is not None:
        other = alt.Chart(alt.NamedData(DATA)).transform_filter(f"datum.what == 'rate' && isValid(datum.{second})")
        lines.append(other.mark_line(color=ORANGE, strokeWidth=1.5).encode(x=x, y=f"{second}:Q", detail="fit:N"))
    return alt.layer(marks.encode(x="at:Q"), *lines).properties(width=WIDTH, height=150)


def every_schedule(rates: pl.DataFrame, *, per_epoch: int, subtitle: Sequence[str]) -> Chart:
    """One column a schedule: its learning rate, and its momentum below.

    rates: kind, at (optimiser step), lr, momentum (null where the schedule leaves it alone).
    """
    kinds = rates["kind"].unique(maintain_order=True).to_list()
    total = int(rates["at"].max() or 0) + 1  # type: ignore[arg-type]
    axis = alt.Axis(values=list(range(0, total + 1, per_epoch)), format="d")
    x = alt.X("at:Q", title=None, scale=alt.Scale(domain=[0, total], nice=False), axis=axis)
    columns = []
    for place, kind in enumerate(kinds):
        base = alt.Chart(alt.NamedData(DATA)).transform_filter(f"datum.kind == '{kind}'").encode(x=x)
        heading = alt.TitleParams(kind, fontSize=13, fontWeight=600, anchor="start")
        rate = _small(base, "lr", "learning rate" if place == 0 else None, rates, BLUE).properties(height=120)
        momentum = _small(base, "momentum", "momentum" if place == 0 else None, rates, ORANGE).properties(height=70)
        columns.append(alt.vconcat(rate.properties(title=heading), momentum, spacing=8))
    return with_data(styled(alt.hconcat(*columns, spacing=12), "Every schedule", list(subtitle)), rates.to_dicts())


def _small(base: Chart, field: str, title: str | None, rates: pl.DataFrame, colour: str) -> Chart:
    """A panel of `every_schedule`; all of a row have the same scale, written at the first."""
    low, high = (0.0 if field == "lr" else rates[field].min()), rates[field].max()
    room = 0.04 * (high - low)  # type: ignore[operator]
    scale = alt.Scale(domain=[low - room * (field != "lr"), high + room], nice=False)  # type: ignore[operator]
    y = alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5, labels=title is not None))
    lines = base.transform_filter(f"isValid(datum.{field})").mark_line(color=colour, strokeWidth=2)
    return lines.encode(y=y).properties(width=135)


def range_test(curve: pl.DataFrame, *, marks: Sequence[tuple[str, float]], subtitle: Sequence[str]) -> Chart:
    """Loss by learning rate, as it was and smoothed, with rates marked by name.

    curve: lr, loss, smoothed.
    """
    x = alt.X("lr:Q", title="learning rate", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format="~e"))
    low, high = float(curve["smoothed"].min()), float(curve["smoothed"].max())  # type: ignore[arg-type]
    room = 0.1 * max(high - low, 1e-9)
    scale = alt.Scale(domain=[low - room, high + room], nice=True, clamp=True)
    y = alt.Y("loss:Q", title="training loss", scale=scale)
    base = alt.Chart(alt.NamedData(DATA)).encode(x=x)
    layers = [
        base.mark_circle(color=QUIET, opacity=0.35, size=16).encode(y=y),
        base.mark_line(color=BLUE, strokeWidth=2.5).encode(y="smoothed:Q"),
    ]
    for place, (name, lr) in enumerate(marks):
        mark = alt.Chart(alt.Data(values=[{"lr": lr, "name": f"{name}: {lr:.2g}"}])).encode(x="lr:Q")
        layers.append(mark.mark_rule(color=ORANGE if place == 0 else QUIET, strokeWidth=1.5, strokeDash=[4, 3]))
        text = mark.mark_text(align="left", dx=5, baseline="top", color=INK if place == 0 else QUIET, fontSize=12)
        layers.append(text.encode(text="name:N", y=alt.value(2 + 18 * place)))
    drawn = alt.layer(*layers).properties(width=WIDTH, height=320)
    return with_data(styled(drawn, "Learning-rate range test", list(subtitle)), curve.to_dicts())


def write_range_test(found: RangeTest, out: Path) -> Path:
    """Write the chart of a range test to `out`/lr.png and return its path."""
    suggestion = found.suggestion
    rates = {
        "steepest": suggestion.steepest,
        "a tenth of the lowest": suggestion.check,
        "lowest": suggestion.lowest,
    }
    marks = [(name, lr) for name, lr in rates.items() if lr is not None]
    subtitle = [f"{found.name}, {len(found.curve)} optimiser steps, each at a higher rate. Line: smoothed."]
    reason = suggestion.reason
    chart = range_test(found.curve, marks=marks, subtitle=[*subtitle, reason[0].upper() + reason[1:] + "."])
    (path,) = save(chart, out / "lr.png")
    return path


def write_schedule(found: Preview, out: Path) -> Path:
    """Write the chart of the rates of a plan to `out`/schedule.png and return its path."""
    (path,) = save(over_plan(found.rates, found.spans), out / "schedule.png")
    return path
