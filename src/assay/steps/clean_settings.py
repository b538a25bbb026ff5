"""What a clean_labels may be told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from assay.pixels.decode import Resize
from assay.repair.confident_learning import Filter
from assay.repair.judges import By
from assay.repair.suspect_edits import Action, Flag
from assay.settings import Settings, Source
from assay.steps.fit_settings import FitSettings


class CleanLabelsSettings(Settings):
    """List the training labels that are probably wrong, by models that did not see them; change them if told to."""

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to judge; default: all.")
    by: By | None = Field(
        None, description="Whose probabilities judge; default: both on features, confident_learning with fine_tune."
    )
    size: int = Field(192, ge=16, description="Pictures are resized to size x size pixels.")
    resize: Resize = Resize()
    weights: Annotated[str | None, Source("weights", frozenset({"pretrained", "none"}))] = Field(
        None, description="Weights of the judging backbone, as under model; default: those that the plan begins with."
    )
    fine_tune: FitSettings | None = Field(
        None, description="Judge by such a fit, anew for every fold, instead of on the features of a frozen backbone."
    )
    folds: int = Field(5, ge=2, description="Parts of the pictures, each judged by what the others teach.")
    neighbours: int = Field(20, ge=1, description="How many of the nearest pictures are asked.")
    filter: Filter = Field("class", description="Which of the labels that probabilities contradict are suspect.")
    action: Action = Field(Flag(), description="What is done about suspects.")
    max_share: float = Field(
        1.0, gt=0, le=1, description="Share of the labels of each class that may be suspect, the worst first."
    )

    @model_validator(mode="after")
    def _consistent(self) -> CleanLabelsSettings:
        if self.fine_tune is None:
            return self
        if self.by in ("neighbours", "both"):
            raise ValueError(
                f"by: {self.by} looks for neighbours in the features of a backbone that no label has touched, and "
                "fine_tune asks for another judge; drop one of them"
            )
        if self.fine_tune.start == "previous" and "start" in self.fine_tune.model_fields_set:
            raise ValueError(
                "fine_tune begins anew in every fold, and start: previous would begin with a model that has seen "
                "the labels it is to judge; drop start"
            )
        return self

    @property
    def judge(self) -> By:
        """Whose probabilities judge."""
        return self.by or ("both" if self.fine_tune is None else "confident_learning")
