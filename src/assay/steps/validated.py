"""What a step begins with that decides anew what a model's answers mean: the model, and its validation answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from assay.errors import DataError, PlanError
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import labelled
from assay.models.composite import Model, load_model
from assay.models.deciding import Deciding
from assay.predictions.predict import Predictions
from assay.steps.state import Context, State

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Validated:
    """A model and its answers for the labelled validation pictures."""

    saved: Model
    samples: Samples
    predictions: Predictions

    @staticmethod
    def of(state: State, *, step: str) -> Validated:
        """Read them. Raises PlanError where no step has made a model, DataError where nothing validates."""
        if state.model is None:
            raise PlanError(f"{step}: there is no model yet. Put a probe or a fit before it.")
        samples = labelled(state.samples.part("val"))
        if len(samples) == 0:
            raise DataError(
                f"{step}: it chooses on validation pictures, and none has a known label. "
                "Raise split.val, label some, or take the step out of the plan."
            )
        predictions = Predictions.read(state.model / "predictions.parquet", state.samples.space, model=step)
        return Validated(load_model(state.model), samples, predictions)

    def write(self, deciding: Deciding, *, logits: Array, thresholds: Array, context: Context) -> Path:
        """The model as it decides now, and validation answers (N, W) that did not choose for themselves."""
        folder = context.folder / "best"
        space, ids = self.samples.space, self.predictions.ids
        Predictions.of(ids, space, logits, model=context.name, thresholds=thresholds).write(
            folder / "predictions.parquet"
        )
        replace(self.saved, deciding=deciding).save(folder)
        return folder


def heads_named(space: LabelSpace, names: Sequence[str] | None, *, step: str) -> list[tuple[int, Head, slice]]:
    """Position, head and columns of the heads named, or of all. Raises PlanError where a name is no head."""
    known = [head.name for head in space]
    for name in names or ():
        if name not in known:
            raise PlanError(f"{step}: heads: {name!r} is no head of this data. Its heads are: {', '.join(known)}.")
    found = enumerate(zip(space, space.slices, strict=True))
    return [(place, head, columns) for place, (head, columns) in found if names is None or head.name in names]
