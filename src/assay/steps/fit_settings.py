"""What a fit may be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from assay.balance.class_weights import ClassWeights
from assay.balance.sampling import Balanced, Sampling
from assay.pixels.augment import Augment
from assay.pixels.decode import Resize
from assay.pixels.mix import Mix
from assay.settings import Settings, Source
from assay.training.losses import ByHead, LossSettings
from assay.training.optimizers import AdamW, OptimizerSettings
from assay.training.schedules import OneCycle, ScheduleSettings
from assay.training.unlabelled import UnlabelledSettings

Positive = Annotated[float, Field(gt=0)]


class FitSettings(Settings):
    """Train on the labelled training pictures; validation chooses the epoch that is handed on."""

    size: int = Field(128, ge=16, description="Pictures are trained on at size x size pixels.")
    resize: Resize = Resize()
    epochs: int = Field(8, ge=1)
    batch: int = Field(32, ge=1, description="Pictures a forward pass.")
    accumulate: int = Field(1, ge=1, description="Forward passes an optimiser step.")
    start: Annotated[str, Source("model", frozenset({"previous", "pretrained"}))] = Field(
        "previous", description="previous, pretrained, or the folder of a run"
    )
    freeze: Literal["none", "backbone", "all_but_last_stage"] | int = Field(
        "none",
        description="What does not learn: nothing, the backbone, all but its last stage, or its first n stages.",
    )
    batch_norm: Literal["frozen", "train"] = Field(
        "frozen",
        description="Whether batch-norm keeps the statistics it came with, or takes those of each batch.",
    )
    views: int = Field(1, ge=1, description="Cached views a picture of a frozen backbone; further ones are augmented.")
    optimizer: OptimizerSettings = AdamW()
    lr: float = Field(5e-4, gt=0, description="Top learning rate.")
    discriminative: tuple[Positive, Positive] | None = Field(
        None,
        description="Top learning rates of the first and the last stage; those between are spaced geometrically.",
    )
    schedule: ScheduleSettings = OneCycle()
    loss: LossSettings = ByHead()
    class_weights: ClassWeights | None = Field(
        None, description="Weights of classes in the loss; the prior they shift is set right again at prediction."
    )
    sampling: Sampling | None = Field(
        None, description="How often pictures are shown, by their classes; the prior is set right likewise."
    )
    prior: Literal["data", "trained"] = Field(
        "data",
        description="The shares of classes that answers assume: the data's, or those taught by weights or sampling.",
    )
    head_weights: dict[str, Positive] = Field({}, description="What the loss of a head counts, where that is not 1.")
    augment: Augment | None = None
    mix: Mix | None = None
    unlabelled: UnlabelledSettings | None = None
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of an average of the weights, used for all figures.")
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient.")
    monitor: str = Field("loss", description="The validation figure that chooses the best epoch.")
    early_stop: int | None = Field(None, ge=1, description="Epochs without a better figure after which to stop.")
    take: Literal["best", "last"] = Field("best", description="The epoch that is handed on.")
    keep: Literal["both", "best", "last"] = Field("both", description="The checkpoints that stay on disk.")

    @model_validator(mode="after")
    def _consistent(self) -> FitSettings:
        if self.keep not in ("both", self.take):
            raise ValueError(f"take: {self.take} hands on what keep: {self.keep} does not keep; make them the same")
        if self.freeze == "backbone" and self.augment is not None and self.views == 1:
            raise ValueError("freeze: backbone with views: 1 trains on plain pictures; raise views, or drop augment")
        if self.freeze == "backbone" and self.mix is not None:
            raise ValueError(
                "mix mixes pictures, and a frozen backbone trains on cached features; drop mix, or freeze less"
            )
        if self.freeze == "backbone" and self.unlabelled is not None:
            raise ValueError(
                "unlabelled compares views drawn anew, and a frozen backbone trains on cached features; "
                "drop unlabelled, or freeze less"
            )
        more = [own.more for own in self.augment.per_class.values()] if self.augment else []
        if isinstance(self.sampling, Balanced) and any(number != 1 for number in more):
            raise ValueError(
                "sampling: balanced shows every class equally often, and more in augment.per_class shows some oftener; "
                "drop more, or take oversample"
            )
        if self.freeze != "backbone" and self.views > 1:
            raise ValueError("views are cached features of a frozen backbone; set freeze: backbone, or drop views")
        return self
