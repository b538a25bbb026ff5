"""Charts of learning rates: over a plan, and of a range test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl

from assay.experiments.dry_run import DryRun, Length, StepEstimate
from assay.experiments.lr_finder import RangeTest
from assay.messages import plain, shortened
from assay.report.charts import BLUE, DATA, INK, ORANGE, QUIET, Chart, empty, save, styled, with_data
from assay.steps.fit_settings import FitSettings
from assay.training.optimizers import AnyOptimizer, RmsProp, Sgd
from assay.training.schedules import rate

WIDTH = 760
POINTS = 1_000  # of a fit, at the most
RateRow = tuple[str, int, float, float | None, float]
COLUMNS = {"fit": pl.String, "at": pl.Int64, "lr": pl.Float64, "low": pl.Float64, "momentum": pl.Float64}


@dataclass(frozen=True)
class Span:
    """The optimiser steps of a step, counted on over the plan; none where `begins` is `ends`."""

    name: str
    begins: int
    ends: int


def timeline(steps: Sequence[StepEstimate]) -> tuple[pl.DataFrame, tuple[Span, ...]]:
    """The rates of all fits (fit, at, lr, low: of the first stage where stages differ, momentum), and a span a step.

    `reduce_on_plateau` follows metrics; it is drawn as if each epoch were better than the last.
    """
    rows: list[RateRow] = []
    spans, at = [], 0
    for step in steps:
        begins = at
        for name, settings, length in _fits(step):
            rows += _rates(name, at, settings, length)
            at += length.steps
        spans.append(Span(step.name, begins, at))
    return pl.DataFrame(rows, schema=COLUMNS, orient="row"), tuple(spans)


def momentum_of(optimizer: AnyOptimizer) -> float:
    """Momentum as schedules mean it: of SGD and RMSprop, and the first beta of Adam and its kin."""
    return optimizer.momentum if isinstance(optimizer, Sgd | RmsProp) else optimizer.betas[0]


def _fits(step: StepEstimate) -> Iterator[tuple[str, FitSettings, Length]]:
    """The fits whose models are handed on, those of every round and member; not those of mere trials."""
    if step.fit is not None and step.length is not None:
        yield step.name, step.fit, step.length
    elif step.kind in ("repeat", "ensemble"):
        for number in range(1, max((one.rounds for one in step.inner), default=0) + 1):
            for one in step.inner:
                for name, settings, length in _fits(one):
                    yield name.replace(f"{step.name}/round-1/", f"{step.name}/round-{number}/", 1), settings, length


def _rates(name: str, begins: int, settings: FitSettings, length: Length) -> Iterator[RateRow]:
    low, top = settings.discriminative or (None, settings.lr)
    for step in np.unique(np.linspace(0, length.steps - 1, min(length.steps, POINTS)).round().astype(int)).tolist():
        now = rate(settings.schedule, step, total=length.steps, per_epoch=length.per_epoch)
        momentum = momentum_of(settings.optimizer) if now.momentum is None else now.momentum
        yield name, begins + step, top * now.lr_factor, None if low is None else low * now.lr_factor, momentum


def over_plan(rates: pl.DataFrame, spans: Sequence[Span]) -> Chart:
    """Return steps, learning rate and momentum by optimiser step, counted on over the plan.

    rates: at (int), fit (str), lr, low (the rate of the first stage, null where all learn alike), momentum (or null).
    """
    title = "Steps, learning rate and momentum"
    total = max([span.ends for span in spans], default=0)
    if total == 0:
        return styled(empty("No step of this plan has a learning rate."), title, ["Nothing is fitted by steps."])
    x = alt.X("at:Q", title=None, scale=alt.Scale(domain=[0, total], nice=False), axis=alt.Axis(labels=False))
    below = x.title("optimiser steps").axis(format=",d", title="optimiser steps")
    rows = [
        *({"what": "span", "name": _name(one), "at": one.begins, "ends": one.ends} for one in spans),
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
    y = alt.Y(
        "name:N",
        sort=[_name(span) for span in spans],
        title=None,
        axis=alt.Axis(ticks=False, domain=False, labelColor=INK, labelLimit=220),
    )
    base = alt.Chart(alt.NamedData(DATA)).transform_filter("datum.what == 'span'").encode(y=y, x=x)
    bars = base.transform_filter("datum.ends > datum.at").mark_bar(color=BLUE, height=9, opacity=0.85)
    ticks = base.transform_filter("datum.ends == datum.at").mark_tick(color=ORANGE, thickness=3, height=13)
    return alt.layer(bars.encode(x2="ends:Q"), ticks).properties(width=WIDTH, height=alt.Step(19))


def _name(span: Span) -> str:
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


def range_test(curve: pl.DataFrame, *, marks: Sequence[tuple[str, float]], subtitle: Sequence[str]) -> Chart:
    """Return the loss by learning rate, raw and smoothed, with rates marked by name.

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
    for number, (name, lr) in enumerate(marks):
        mark = alt.Chart(alt.Data(values=[{"lr": lr, "name": f"{name}: {lr:.2g}"}])).encode(x="lr:Q")
        layers.append(mark.mark_rule(color=ORANGE if number == 0 else QUIET, strokeWidth=1.5, strokeDash=[4, 3]))
        text = mark.mark_text(align="left", dx=5, baseline="top", color=INK if number == 0 else QUIET, fontSize=12)
        layers.append(text.encode(text="name:N", y=alt.value(2 + 18 * number)))
    drawn = alt.layer(*layers).properties(width=WIDTH, height=320)
    return with_data(styled(drawn, "Learning-rate range test", list(subtitle)), curve.to_dicts())


def write_range_test(test: RangeTest, out: Path) -> Path:
    """Write the chart of a range test to `out`/lr.png and return its path."""
    suggestion = test.suggestion
    rates = (suggestion.steepest, suggestion.check, suggestion.lowest)
    named = zip(("steepest", "a tenth of the lowest", "lowest"), rates, strict=True)
    marks = [(name, lr) for name, lr in named if lr is not None]
    subtitle = [f"{test.name}, {len(test.curve)} optimiser steps, each at a higher rate. Line: smoothed."]
    reason = suggestion.reason
    chart = range_test(test.curve, marks=marks, subtitle=[*subtitle, reason[0].upper() + reason[1:] + "."])
    (path,) = save(chart, out / "lr.png")
    return path


def write_schedule(estimate: DryRun, out: Path) -> Path:
    """Write the chart of the rates of a plan to `out`/schedule.png and return its path."""
    (path,) = save(over_plan(*timeline(estimate.steps)), out / "schedule.png")
    return path
