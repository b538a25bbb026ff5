"""Draw docs/images/schedules.png: every schedule at its defaults, top rate 0.1, over 5 epochs of 10 optimiser steps.

python -m benchmarks.schedules
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import polars as pl
from PIL import Image

from assay.report.charts import save
from assay.report.rate_charts import every_schedule
from assay.training.schedules import AnySchedule, rate

TOP, EPOCHS, PER_EPOCH = 0.1, 5, 10
STUCK = [1.0] * EPOCHS  # the losses that `reduce_on_plateau` is shown: none is better than the first
PLACE = Path("docs/images/schedules.png")
SUBTITLE = (
    f"At their defaults: top learning rate {TOP:g}, {EPOCHS} epochs of {PER_EPOCH} optimiser steps (across). Without a "
    "line, momentum is left alone.",
    "reduce_on_plateau as if no epoch were better than the first.",
)


def table() -> pl.DataFrame:
    """kind, at, lr, momentum of every optimiser step under every schedule."""
    rows = []
    for kind in get_args(AnySchedule):
        settings = kind()
        for at in range(EPOCHS * PER_EPOCH):
            now = rate(
                settings,
                at,
                total=EPOCHS * PER_EPOCH,
                per_epoch=PER_EPOCH,
                history=STUCK[: at // PER_EPOCH],
                higher_is_better=False,
            )
            rows.append({"kind": settings.kind, "at": at, "lr": TOP * now.lr_factor, "momentum": now.momentum})
    return pl.DataFrame(rows, infer_schema_length=None)


def main() -> None:
    """Draw, and keep as few colours as the image needs: a third of the bytes."""
    save(every_schedule(table(), per_epoch=PER_EPOCH, subtitle=SUBTITLE), PLACE)
    Image.open(PLACE).convert("RGB").quantize(64).save(PLACE, optimize=True)


if __name__ == "__main__":
    main()
