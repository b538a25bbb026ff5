"""What a combination is worth beside its members, for done.json and in lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from assay.figures.metrics import overall
from assay.figures.paired import gains
from assay.labels.samples import Samples
from assay.predictions.predict import Predictions
from assay.predictions.scores import scored
from assay.steps.state import Context

CHIEF = "macro_f1"  # of exclusive heads and independent ones alike
SHOWN = ("accuracy", "macro_f1", "nll")

Told = dict[str, Any]


def worth(
    members: Sequence[Predictions], answers: Predictions, validation: Samples, context: Context
) -> tuple[Told, Told]:
    """The figures of each member, and the gain of the combination over the best of them, by macro F1, then by loss.

    The best was chosen on these pictures, which flatters it; the gain is over that.
    """
    scores = {one.model: overall(scored(one, validation)) for one in members}
    best = max(members, key=lambda one: (scores[one.model][CHIEF].value, -scores[one.model]["nll"].value))
    figures = {name: {figure: found.to_json() for figure, found in own.items()} for name, own in scores.items()}
    return figures, told(best, answers, validation, f"the best member, {best.model}", context)


def told(before: Predictions, after: Predictions, validation: Samples, what: str, context: Context) -> Told:
    """The paired gain in every figure, for done.json; of the chief ones said in lines."""
    found = gains(scored(before, validation), scored(after, validation))
    for name, figure in found.items():
        if name in SHOWN:
            context.watch.line(f"  {name}: better than {what} by {figure.value:.4f}{figure.limits()}, n = {figure.n}")
    return {"over": what, **{name: figure.to_json() for name, figure in found.items()}}
