"""What `synthesize` may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from assay.pixels.decode import Resize
from assay.settings import Settings
from assay.steps.fit_settings import FitSettings


class SynthesizeSettings(Settings):
    """Make up pictures of rare classes by a network, and keep them only if a fit with them is better."""

    head: str | None = Field(None, description="An exclusive head; default: the only one.")
    classes: Literal["few"] | tuple[str, ...] = Field(
        "few", description="Classes to make pictures of; few: the third of the classes with the fewest pictures."
    )
    count: int | None = Field(
        None, ge=1, description="Pictures made up a class; default: what it lacks of the most frequent class."
    )
    least: int = Field(10, ge=4, description="Training pictures that a class must have.")
    size: Literal[32, 64, 128] = Field(64, description="Side of the pictures made up.")
    resize: Resize = Resize()
    optimizer_steps: int = Field(3000, ge=1, description="Optimiser steps of both networks.")
    batch: int = Field(32, ge=2, description="Pictures an optimiser step.")
    width: int = Field(32, ge=4, description="Channels of the maps of half the side.")
    lr: float = Field(2e-4, gt=0)
    ema: float = Field(0.999, gt=0, lt=1, description="Decay of the average of weights that makes the pictures.")
    flip: Literal["none", "horizontal", "vertical", "both"] = Field(
        "none", description="How real pictures are mirrored."
    )
    show_every: int = Field(500, ge=1, description="Optimiser steps from one sheet of samples to the next.")
    fit: FitSettings | None = Field(None, description="The fit that is tried with the pictures and without.")
    seeds: int = Field(3, ge=1, description="Times that it is tried.")
    figure: Literal["accuracy", "balanced_accuracy", "macro_f1", "nll"] = Field(
        "balanced_accuracy", description="The validation figure that decides."
    )
    keep: Literal["if_better", "always", "never"] = Field(
        "if_better", description="if_better: where the 95 % interval of the gain lies above 0."
    )

    @model_validator(mode="after")
    def _decidable(self) -> SynthesizeSettings:
        if self.keep == "if_better" and self.fit is None:
            raise ValueError(
                "keep: if_better needs a fit to be tried with the pictures and without; add `fit: {...}`, "
                "or say keep: always or never"
            )
        return self
