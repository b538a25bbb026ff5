"""Curves of all steps on one time line: loss, metrics and learning rate, training and validation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import altair as alt
import polars as pl
from markupsafe import Markup

from assay.messages import plain
from assay.metrics.metrics import headline
from assay.report.charts import PARTS, in_order, metric_title
from assay.report.drawing import BAND, BLUE, INK, ORANGE, PAPER, QUIET, Drawing, axis, base, drawing, inline
from assay.run.contents import CONTAINER_STEPS, RunContents, StepRecord

MAX_HEADS = 8  # whose points metrics have panels
ROOM = (0.15, 0.12)  # of a panel that a number takes, across and down
POINT = {"x": pl.Float64, "value": pl.Float64, "name": pl.String, "part": pl.String, "step": pl.Int64}
POINT |= {"mark": pl.String}  # "best", "last", "alone" (of a step without epochs) or ""


def history(run: RunContents) -> dict[str, object]:
    """Return a panel a metric, over slots: one for each epoch, and one for a step that has none."""
    steps, table, bands = time_line(run)
    names = panels(table, run)
    chief = run.headline or headline(names)
    first = {"loss", chief, "lr"}  # one row of three on a desk; the others are folded
    return {
        "panels": [
            {
                "title": metric_title(name),
                "first": name in first,
                "svg": _panel(table.filter(name=name), bands, name),
            }
            for name in names
        ],
        "steps": [
            {
                "number": number,
                "name": plain(step.name),
                "epochs": _epochs(step),
                "best": _best(step),
                "under_way": step.done is None,
            }
            for number, step in enumerate(steps, 1)
        ],
        "log": [plain(entry["line"]) for entry in run.log if "line" in entry][-12:] if not run.finished else [],
    }


def time_line(run: RunContents) -> tuple[list[StepRecord], pl.DataFrame, list[dict[str, object]]]:
    """Return the steps that have metrics, a row a metric and epoch, as `POINT`, and the reach of each step."""
    steps = [
        step
        for step in run.steps
        if not step.name.is_trial and step.kind not in CONTAINER_STEPS and (step.history is not None or step.scores)
    ]
    points, bands = _points(run, steps)
    return steps, pl.DataFrame(points, schema=POINT, orient="row").filter(pl.col("value").is_finite()), bands


def _points(run: RunContents, steps: list[StepRecord]) -> tuple[list[tuple[Any, ...]], list[dict[str, object]]]:
    """Return (x, value, name, part, step, mark) of every metric, and from where to where each step reaches."""
    points: list[tuple[Any, ...]] = []
    bands, start = [], 0
    for number, step in enumerate(steps, 1):
        length = max(_epochs(step), 1)
        if step.history is not None:
            last = step.history["epoch"].max()
            for row in step.history.filter(pl.col("part").is_in(PARTS)).iter_rows(named=True):
                mark = "best" if row["best"] else "last" if row["epoch"] == last else ""
                points.append((start + row["epoch"], row["value"], row["name"], row["part"], number, mark))
        else:
            scores = step.scores or {"metrics": {}, "heads": {}}
            named = {"": scores["metrics"]}
            if len(run.samples.space) > 1:
                named |= {f"{head}/": score["metrics"] for head, score in scores["heads"].items()}
            points += [
                (start + 1.0, metric["value"], f"{prefix}{name}", "validation", number, "alone")
                for prefix, metrics in named.items()
                for name, metric in metrics.items()
            ]
        bands.append({"from": start + 0.5, "to": start + length + 0.5, "number": str(number), "even": number % 2 == 0})
        start += length
    return points, bands


def panels(table: pl.DataFrame, run: RunContents) -> list[str]:
    """Return the loss, the metrics over all heads, the headline metric of each head, the learning rate, by name."""
    names = table["name"].unique(maintain_order=True).to_list()
    same = {"micro_f1"} if "accuracy" in names else set()  # under multi-class heads they are equal
    plain_names = [name for name in names if "/" not in name and name not in {"seconds", "lr", *same}]
    heads = [name for name in names if "/" in name and name.rpartition("/")[2] == run.headline]
    return [*in_order(plain_names), *in_order(heads)[:MAX_HEADS], *(["lr"] if "lr" in names else [])]


def _panel(table: pl.DataFrame, bands: list[dict[str, Any]], name: str) -> Markup:
    end = bands[-1]["to"]
    return inline(_drawing(end, rate=name == "lr"), [*_numbered(table.to_dicts(), end), *bands])


def _numbered(rows: list[dict[str, Any]], end: float) -> list[dict[str, object]]:
    """Return the rows, and which of the kept values have room for their number beside those after them."""
    values = [row["value"] for row in rows]
    high, wide = ROOM[1] * (max(values) - min(values)), ROOM[0] * end
    numbered: list[dict[str, object]] = []
    for row in sorted(rows, key=lambda row: -row["x"]):
        kept = row["mark"] == "alone" or (row["mark"] == "best" and row["part"] == "validation")
        if kept and all(one["x"] - row["x"] > wide or abs(one["value"] - row["value"]) > high for one in numbered):
            numbered.append(row)
    return [row | {"numbered": row in numbered} for row in rows]


@lru_cache(maxsize=8)
def _drawing(end: float, *, rate: bool) -> Drawing:
    """Draw one metric: lines, the kept epochs ringed with their value, the last ones dotted."""
    x = alt.X("x:Q", scale=alt.Scale(domain=[0.5, end], nice=False), axis=None)
    ticks = axis(format=".1e" if rate else ".4~g", tickCount=4, minExtent=44)
    y = alt.Y("value:Q", scale=alt.Scale(zero=rate, nice=True, padding=12), axis=ticks)
    points = base().transform_filter("datum.value != null").encode(x=x, y=y)
    colours = alt.Color("part:N", scale=alt.Scale(domain=list(PARTS), range=[ORANGE, BLUE]))
    step = base().transform_filter("datum.from != null").encode(x=alt.X("from:Q", axis=None))
    named = step.mark_text(align="left", baseline="top", dx=4, fontSize=10, color=QUIET)
    kept = points.transform_filter("datum.mark == 'best' && datum.part == 'validation'")
    alone = points.transform_filter("datum.mark == 'alone'")
    number = alt.Text("value:Q", format=".3~g")
    layers = [
        step.transform_filter("datum.even").mark_rect(color=BAND).encode(x2="to:Q"),
        named.encode(y=alt.value(2), text="number:N"),
        points.mark_line(strokeWidth=2).encode(color=colours, detail="step:N"),
        points.transform_filter("datum.mark == 'last'").mark_circle(size=22, opacity=1).encode(color=colours),
        alone.mark_point(shape="diamond", filled=True, size=64, color=BLUE, opacity=1),
    ]
    if not rate:
        layers += [
            kept.mark_point(size=74, filled=True, stroke=BLUE, fill=PAPER, strokeWidth=2, opacity=1),
            *(
                marks.transform_filter("datum.numbered").mark_text(dy=-13, fontSize=11, **style).encode(text=number)
                for marks in (kept, alone)
                for style in ({"stroke": PAPER, "strokeWidth": 4, "color": PAPER}, {"color": INK})
            ),
        ]
    return drawing(alt.layer(*layers))


def _epochs(step: StepRecord) -> int:
    return int(step.history["epoch"].max() or 0) if step.history is not None else 0  # type: ignore[arg-type]


def _best(step: StepRecord) -> int | None:
    if step.history is None:
        return None
    epoch = step.history.filter(pl.col("best"))["epoch"].max()
    return int(epoch) if epoch is not None else None  # type: ignore[arg-type]
