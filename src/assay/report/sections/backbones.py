"""How `backbone: auto` was decided: what each backbone reaches, against its seconds."""

from __future__ import annotations

from typing import Any

import altair as alt
from markupsafe import Markup

from assay.messages import plain
from assay.report.charts import metric_title
from assay.report.drawing import BLUE, INK, ORANGE, PAPER, axis, base, drawing, inline
from assay.run.contents import RunContents
from assay.run.records import BackboneChoice, BackboneRow


def backbones(run: RunContents) -> dict[str, Any] | None:
    """Return a chart and a row for each backbone that was tried; None where the plan named its own."""
    choice = run.metrics.backbones if run.metrics else None
    if choice is None:
        return None
    return {
        "chosen": plain(str(choice["chosen"])),
        "why": plain(choice["why"]),
        "metric": metric_title(choice["metric"]).lower(),
        "n": choice["n"],
        "seconds": choice["seconds"],
        "limit": choice["limit"],
        "chart": _chart(choice) if len(choice["rows"]) > 1 else None,
        "rows": [_row(row, choice) for row in sorted(choice["rows"], key=lambda row: row["seconds"])],
        "facts": [
            {**one, "number": number, "backbone": plain(one["backbone"])}
            for number, one in enumerate(choice["candidates"], 1)
        ],
        "left_out": [
            {"backbone": plain(one["backbone"]), "size": one["size"], "why": plain(one["why"])}
            for one in choice["left_out"]
        ],
    }


def _row(row: BackboneRow, choice: BackboneChoice) -> dict[str, object]:
    return {**row, "name": plain(" + ".join(row["backbones"])), "chosen": _is_chosen(row, choice)}


def _is_chosen(row: BackboneRow, choice: BackboneChoice) -> bool:
    return row["backbones"] == [choice["chosen"]] and row["size"] == choice["size"]


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
            "chosen": _is_chosen(row, choice),
            "name": " + ".join(number[name] for name in row["backbones"]),
        }
        for row in choice["rows"]
    ]
    return inline(drawing(alt.layer(*layers), width=620, height=220), rows)
