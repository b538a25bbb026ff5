"""A step for tests of what the ledger does with edits: it relabels the first training images of other classes."""

from __future__ import annotations

import polars as pl

from assay.labels.edits import Edit
from assay.settings import Settings
from assay.steps.base import Context, State, Step, StepResult


class RelabelSettings(Settings):
    """Call the first images that are something else `to`."""

    count: int = 3
    to: str = "red"


def run(settings: RelabelSettings, state: State, context: Context) -> StepResult:
    """Propose the edits; no model comes of it."""
    (head,) = state.samples.space
    rows = state.samples.part("train").table.sort("id").filter(pl.col(f"label:{head.name}") != settings.to)
    edits = [
        Edit(
            id=row["id"],
            head=head.name,
            action="set",
            old=row[f"label:{head.name}"],
            new=settings.to,
            score=0.9 - 0.1 * place,
            reason="looks like it",
            step=context.name,
            origin="corrected",
        )
        for place, row in enumerate(rows.head(settings.count).iter_rows(named=True))
    ]
    return StepResult(None, edits=edits)


RELABEL = Step(RelabelSettings, run)
