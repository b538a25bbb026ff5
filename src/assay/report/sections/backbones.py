"""How `backbone: auto` was decided: what each backbone reaches, against its seconds."""

from __future__ import annotations

from typing import Any

import altair as alt
from markupsafe import Markup

from assay.report.charts import metric_title
from assay.report.drawing import BLUE, INK, ORANGE, PAPER, axis, base, drawing, inline
from assay.run.contents import RunContents
from assay.run.records import BackboneChoice


def backbones(run: RunContents) -> dict[str, Any] | None:
    """Return a chart and a row for each backbone that was tried; None where the plan named its own."""
    choice = run.metrics.backbones if run.metrics else None
    if choice is None:
        return None
    return {
        **choice,
        "metric": metric_title(choice["metric"]).lower(),
        "chart": _chart(choice) if len(choice["rows"]) > 1 else None,
    }


def _chart(choice: BackboneChoice) -> Markup:
    """Draw the metric against ms an image: blue at the size that the plan begins with, orange at the other."""
    ticks = axis(title="ms an image", format="~g", tickCount=4)
    seconds = [1000 * row["seconds"] for row in choice["rows"]]
    ends = alt.Scale(type="log", domain=[0.8 * min(seconds), 1.5 * max(seconds)], nice=False)
    x = alt.X("ms:Q", scale=ends, axis=ticks)
    y = alt.Y("value:Q", scale=alt.Scale(zero=False, padding=18), axis=axis(format=".3~g", minExtent=40))
    marks = base().encode(x=x, y=y)
    colour = alt.condition("datum.first", alt.value(BLUE), alt.value(ORANGE))
    text = {"align": "left", "dx": 8, "fontSize": 11}
    layers = [
        marks.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q", color=colour),
        marks.mark_circle(size=60, opacity=1).encode(color=colour),
        marks.transform_filter("datum.chosen").mark_point(size=150, color=INK, strokeWidth=1.5),
        marks.mark_text(**text, stroke=PAPER, strokeWidth=4, color=PAPER).encode(text="name:N"),
        marks.mark_text(**text, color=INK).encode(text="name:N"),
    ]
    number = {one["backbone"]: str(number) for number, one in enumerate(choice["candidates"], 1)}
    rows = [
        {
            "ms": 1000 * row["seconds"],
            "value": row["value"]["value"],
            "low": row["value"]["low"],
            "high": row["value"]["high"],
            "first": row["size"] == choice["size"],
            "chosen": row["backbones"] == [choice["chosen"]] and row["size"] == choice["size"],
            "name": " + ".join(number[name] for name in row["backbones"]),
        }
        for row in choice["rows"]
    ]
    return inline(drawing(alt.layer(*layers), width=620, height=220), rows)
