"""The pictures of a run: curves of every figure, and the confusion matrix of every head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from assay.evidence.charts import PARTS, confusion, curves, save
from assay.labels.space import LabelSpace


def write_pictures(folder: Path, histories: Sequence[pl.DataFrame], heads: dict[str, Any], space: LabelSpace) -> None:
    """Write curves and confusion matrices as SVG and PNG under `folder`.

    `histories` are those of the fits in their order; `heads` the scores of the validation pictures by head.
    """
    if histories:
        save(curves(on_one_axis(histories)), folder / "curves")
    for head in space:
        matrix = heads.get(head.name, {}).get("confusion")
        if matrix is None:
            continue
        name = "confusion" if len(space) == 1 else f"confusion-{list(space).index(head) + 1}"
        save(confusion(np.array(matrix), head.classes, head=head.name if len(space) > 1 else None), folder / name)


def on_one_axis(histories: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Histories one after the other, their epochs counted on from step to step; no seconds, no counts of labels."""
    shifted, before = [], 0
    for history in histories:
        figures = history.filter(pl.col("part").is_in(PARTS) & (pl.col("name") != "seconds"))
        shifted.append(figures.with_columns(pl.col("epoch") + before))
        before += int(history["epoch"].max() or 0)  # type: ignore[arg-type]
    return pl.concat(shifted)
