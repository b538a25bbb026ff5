"""Draw docs/images/schedules.png: every schedule at its defaults, top rate 0.1, over 5 epochs of 10 optimiser steps.

python -m benchmarks.schedules
"""

from pathlib import Path
from typing import get_args

import polars as pl
from PIL import Image

from assay.report.charts import save
from assay.report.rate_charts import every_schedule
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


if __name__ == "__main__":
    save(every_schedule(table(), per_epoch=PER_EPOCH, subtitle=SUBTITLE), CHART)
    # As few colours as the image needs are a third of the bytes.
    Image.open(CHART).convert("RGB").quantize(64).save(CHART, optimize=True)
