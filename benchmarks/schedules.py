"""Draw docs/images/schedules.png: every schedule at its defaults, top rate 0.1, over 5 epochs of 10 optimiser steps.

python -m benchmarks.schedules
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import altair as alt
import polars as pl
from PIL import Image

from assay.report.charts import BLUE, DATA, ORANGE, Chart, save, styled, with_data
from assay.training.schedules import AnySchedule, rate

TOP, EPOCHS, PER_EPOCH = 0.1, 5, 10
CHART = Path("docs/images/schedules.png")
SUBTITLE = (
    f"At their defaults: top learning rate {TOP:g}, {EPOCHS} epochs of {PER_EPOCH} optimiser steps (across). Without a "
    "line, momentum is left alone.",
    "reduce_on_plateau as if no epoch were better than the first.",
)


def table() -> pl.DataFrame:
    """Return kind, at, lr, momentum of every optimiser step under every schedule."""
    rows, total = [], EPOCHS * PER_EPOCH
    for settings in (kind() for kind in get_args(AnySchedule)):
        for at in range(total):
            history = [1.0] * (at // PER_EPOCH)  # of losses, none better than the first
            now = rate(settings, at, total=total, per_epoch=PER_EPOCH, history=history, higher_is_better=False)
            rows.append({"kind": settings.kind, "at": at, "lr": TOP * now.lr_factor, "momentum": now.momentum})
    return pl.DataFrame(rows, infer_schema_length=None)


def every_schedule(rates: pl.DataFrame, *, per_epoch: int, subtitle: Sequence[str]) -> Chart:
    """Return a column a schedule: its learning rate, and its momentum below.

    rates: kind, at (optimiser step), lr, momentum (null where the schedule leaves it alone).
    """
    kinds = rates["kind"].unique(maintain_order=True).to_list()
    total = int(rates["at"].max() or 0) + 1  # type: ignore[arg-type]
    axis = alt.Axis(values=list(range(0, total + 1, per_epoch)), format="d")
    x = alt.X("at:Q", title=None, scale=alt.Scale(domain=[0, total], nice=False), axis=axis)
    columns = []
    for number, kind in enumerate(kinds):
        base = alt.Chart(alt.NamedData(DATA)).transform_filter(f"datum.kind == '{kind}'").encode(x=x)
        heading = alt.TitleParams(kind, fontSize=13, fontWeight=600, anchor="start")
        rate = _small(base, "lr", "learning rate" if number == 0 else None, rates, BLUE).properties(height=120)
        momentum = _small(base, "momentum", "momentum" if number == 0 else None, rates, ORANGE).properties(height=70)
        columns.append(alt.vconcat(rate.properties(title=heading), momentum, spacing=8))
    return with_data(styled(alt.hconcat(*columns, spacing=12), "Every schedule", list(subtitle)), rates.to_dicts())


def _small(base: Chart, field: str, title: str | None, rates: pl.DataFrame, colour: str) -> Chart:
    """Return a panel of `every_schedule`; all of a row have the same scale, written at the first."""
    low, high = (0.0 if field == "lr" else rates[field].min()), rates[field].max()
    room = 0.04 * (high - low)  # type: ignore[operator]
    scale = alt.Scale(domain=[low - room * (field != "lr"), high + room], nice=False)  # type: ignore[operator]
    y = alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5, labels=title is not None))
    lines = base.transform_filter(f"isValid(datum.{field})").mark_line(color=colour, strokeWidth=2)
    return lines.encode(y=y).properties(width=135)


if __name__ == "__main__":
    save(every_schedule(table(), per_epoch=PER_EPOCH, subtitle=SUBTITLE), CHART)
    # As few colours as the image needs are a third of the bytes.
    Image.open(CHART).convert("RGB").quantize(64).save(CHART, optimize=True)
