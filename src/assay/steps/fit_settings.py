"""Settings of a fit, and what follows from them.

Apart from fit.py, since other steps hold a fit in their settings and the loop, in turn, follows what they leave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field

from assay.arrays import Floats, Ints
from assay.errors import PlanError
from assay.images.augment import Augment
from assay.images.decode import Resize
from assay.images.mix import Mix
from assay.labels.samples import MEMBER, Samples
from assay.labels.space import LabelSpace, require_known
from assay.models.decision_rule import DecisionRule
from assay.settings import Source
from assay.steps.base import StepSettings
from assay.training.class_weights import (
    ClassWeights,
    Given,
    Inverse,
    class_weights,
    given_weights,
    log_priors,
    logit_shift,
)
from assay.training.losses import AnyLoss, ByHead, LossSettings, divides_by_weights, head_losses, most_probable
from assay.training.objective import Objective
from assay.training.optimizers import AdamW, OptimizerSettings
from assay.training.sampling import (
    Balanced,
    Order,
    SampledOrder,
    Sampling,
    Shuffled,
    ShuffledByShard,
    augment_by_class,
    extra_repeats,
    repeat_counts,
    round_robin,
    shift_prior,
)
from assay.training.schedules import OneCycle, ScheduleSettings
from assay.training.semi_supervised import UnlabelledSettings

Positive = Annotated[float, Field(gt=0)]
Prior = Literal["data", "square_root", "uniform"]
PRIORS: Mapping[Prior, float] = {"data": 0.0, "square_root": 0.5, "uniform": 1.0}
"""Assumed class frequencies, by what part of the way they are from those of the data to equal ones, as powers."""
MOST_VIEWS = 8  # cached where a plan does not say how many
VIEWS_SHARE = 1 / 3  # of the seconds of a fit, which the activations of its views may take


class FitSettings(StepSettings):
    """Train on the labelled training images; validation chooses the epoch that is handed on."""

    size: int = Field(128, ge=16, description="Images are trained on at size x size pixels.")
    resize: Resize = Resize()
    epochs: int = Field(8, ge=1)
    seconds: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that the fit may take. Its schedule is fitted to them, and epochs is the most.",
    )
    batch: int = Field(32, ge=1, description="Images a forward pass.")
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
    views: Annotated[int, Field(ge=1)] | Literal["auto", "fresh"] = Field(
        "auto",
        description="What frozen stages see: so many views an image, all but the first augmented, whose features or "
        "activations are cached; or fresh ones in every epoch. auto chooses by epochs and disk.",
    )
    views_disk: float = Field(8.0, gt=0, description="GB of disk that the cached activations of a run may take.")
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
        None, description="How often images are shown, by their classes; the prior is set right likewise."
    )
    logit_adjust: float = Field(
        0.0,
        ge=0,
        description="Times the logarithm of the class frequencies, added to the logits in training.",
    )
    prior: Prior | Literal["trained"] = Field(
        "data",
        description="The class frequencies that predictions assume: the data's, those taught by weights or sampling, "
        "the square root of the data's, which is best for macro F1, or equal ones, which are best for balanced "
        "accuracy (logit adjustment, Menon et al. 2021).",
    )
    head_weights: dict[str, Positive] = Field({}, description="What the loss of a head counts, where that is not 1.")
    augment: Augment | None = None
    mix: Mix | None = None
    unlabelled: UnlabelledSettings | None = None
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of an average of the weights, used for all metrics.")
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient.")
    monitor: str = Field("loss", description="The validation metric that chooses the best epoch.")
    early_stop: int | None = Field(None, ge=1, description="Epochs without a better metric after which to stop.")
    take: Literal["best", "last"] = Field("best", description="The epoch that is handed on.")
    keep: Literal["both", "best", "last"] = Field("both", description="The checkpoints that stay on disk.")

    def require_consistent(self) -> None:
        if self.keep not in ("both", self.take):
            raise ValueError(f"take: {self.take} hands on what keep: {self.keep} does not keep; make them the same")
        self._require_suiting_views()
        repeats = [change.more for change in self.augment.per_class.values()] if self.augment else []
        if isinstance(self.sampling, Balanced) and any(number != 1 for number in repeats):
            raise ValueError(
                "sampling: balanced shows every class equally often, and more in augment.per_class shows some oftener; "
                "drop more, or take oversample"
            )
        if divides_by_weights(self.loss) and self.class_weights is None:
            raise ValueError("loss, mean: weights divides by class weights, and there are none; give class_weights")
        if divides_by_weights(self.loss) and self.unlabelled is not None:
            raise ValueError(
                "loss, mean: weights counts known labels by their weights, and unlabelled adds images without; drop one"
            )

    def _require_suiting_views(self) -> None:
        if self.freeze in ("none", 0):
            if self.views not in (1, "auto", "fresh"):
                raise ValueError(
                    "views are cached features or activations of what is frozen; set freeze, or drop views"
                )
        elif self.views == "fresh":
            if self.freeze == "backbone" and not (self.augment or self.mix or self.unlabelled):
                raise ValueError(
                    "views: fresh draws images anew, and nothing is drawn; give augment or mix, or drop views"
                )
        elif isinstance(self.views, int):
            self._require_cached_suffices(self.views)

    def _require_cached_suffices(self, views: int) -> None:
        name = "unlabelled" if self.unlabelled else "mix" if self.mix else None
        if name is not None and self.freeze == "backbone":
            raise ValueError(
                f"{name} draws images anew, and views: {views} trains on cached features; set views: fresh, or "
                f"drop {name}"
            )
        if self.augment is not None and views == 1:
            raise ValueError(
                f"freeze: {self.freeze} with views: 1 trains on plain images; set views: fresh to augment anew in "
                "every epoch, raise views to cache that many, or drop augment"
            )

    @property
    def wanted_views(self) -> int:
        """How many cached views of an image the fit asks for; 0: the frozen stages see images in every epoch."""
        if self.freeze in ("none", 0) or self.views == "fresh":
            return 0
        if isinstance(self.views, int):
            return self.views
        if self.unlabelled or (self.mix and self.freeze == "backbone"):
            return 0
        return 1 if self.augment is None else min(max(self.epochs, 2), MOST_VIEWS)

    @property
    def cached_views(self) -> int:
        """How many views of an image the fit trains on as cached features of a frozen backbone; 0: on images."""
        return self.wanted_views if self.freeze == "backbone" else 0


# Sampling, loss and decision rule that follow from the settings and the labels.

ClassWeightArrays = Sequence[Floats]  # (K,) a head


@dataclass(frozen=True)
class SamplingPlan:
    """The order in which training images are drawn, and the class settings by which some are augmented (N,)."""

    order: Order
    chosen: Ints | None = None
    prior_weights: ClassWeightArrays | None = None  # what the order does to the class prior; None: nothing


@dataclass(frozen=True)
class FitObjective:
    """Losses of training images as sampled, and of validation images, each once; and the decision rule for both.

    `training_mean` and `validation_mean` are the class weights that a mean over weights counts the images by.
    """

    training: Objective
    validation: Objective
    rule: DecisionRule
    training_mean: ClassWeightArrays | None = None
    validation_mean: ClassWeightArrays | None = None


def check_fit(settings: FitSettings, space: LabelSpace) -> None:
    """Raise PlanError for a head or class that is not in the data, before anything is trained."""
    heads = [head.name for head in space]
    for name in settings.head_weights:
        require_known(name, heads, "head", "head_weights")
    for name in (settings.sampling and settings.sampling.heads) or ():
        require_known(name, heads, "head", "sampling, heads")
    if isinstance(settings.class_weights, Given):
        given_weights(settings.class_weights.weights, space)
    if settings.augment is not None:
        augment_by_class(settings.augment.per_class, space, [head.unknown(0) for head in space])


def require_reachable(threshold: float, loss: AnyLoss, space: LabelSpace) -> None:
    """Raise PlanError where label smoothing keeps every probability below the threshold of `unlabelled`."""
    for head in space:
        most = most_probable(loss, head.values)
        if most < threshold:
            raise PlanError(
                f"unlabelled: smoothing teaches head {head.name!r} to be sure by {most:.3f} at most, and "
                f"threshold {threshold:g} is above that. Lower one of the two."
            )


def sampling_plan(settings: FitSettings, train: Samples, *, seed: int, by_shard: bool = False) -> SamplingPlan:
    """Return how often the training images are drawn, and how they are augmented, by their labels.

    Images that are drawn once each may be read shard by shard.
    """
    space, codes, weights = train.space, train.codes(), train.weights()
    times, chosen = np.ones(len(train)), None
    if settings.augment is not None and settings.augment.per_class:
        chosen = augment_by_class(settings.augment.per_class, space, codes)
        times = extra_repeats(settings.augment, chosen)
    if settings.sampling is not None:
        times = times * repeat_counts(settings.sampling, space, codes, weights)
    prior = shift_prior(times, space, codes, weights)
    if isinstance(settings.sampling, Balanced):
        step = settings.batch * settings.accumulate
        return SamplingPlan(round_robin(settings.sampling, space, codes, weights, step=step, seed=seed), chosen, prior)
    if (times == 1).all() and by_shard and MEMBER in train.table.columns:
        return SamplingPlan(ShuffledByShard(_shard_of(train), seed), chosen)
    if (times == 1).all():
        return SamplingPlan(Shuffled(len(train), seed), chosen)
    return SamplingPlan(SampledOrder(times, seed), chosen, prior)


def _shard_of(samples: Samples) -> Ints:
    """Return the number (N,) of each image's shard; -1 where it is a file."""
    shards: Ints = samples.table[MEMBER].struct.field("shard").cast(pl.Int64).fill_null(-1).to_numpy()
    return shards


def fit_objective(settings: FitSettings, train: Samples, sampling: SamplingPlan) -> FitObjective:
    """Return the losses over all heads, and the decision rule for logits that were learnt under them.

    To draw a class oftener is to weigh it, in the mean over epochs: validation images, each drawn once, are weighed by
    what sampling does to training, so that their loss is the one that training minimises.
    """
    space = train.space
    factors = tuple(settings.head_weights.get(head.name, 1.0) for head in space)
    weights = _weights_of_classes(settings, train)
    both, adjustment = _product(weights, sampling.prior_weights), _adjustment(settings, train, sampling)
    offsets = torch.from_numpy(adjustment) if settings.logit_adjust else None
    rule = rule_for(settings.prior, train, _taught(both, adjustment))

    def objective(by_head: ClassWeightArrays | None) -> Objective:
        tensors = None if by_head is None else [torch.from_numpy(by_class) for by_class in by_head]
        return Objective(space, head_losses(space, settings.loss, class_weights=tensors), factors, offsets)

    if divides_by_weights(settings.loss):
        return FitObjective(objective(weights), objective(both), rule, weights, both)
    return FitObjective(objective(weights), objective(both), rule)


def taught_prior(settings: FitSettings, train: Samples, sampling: SamplingPlan) -> Floats:
    """Return the log of the class frequencies that training teaches over those of the data: (W,)."""
    both = _product(_weights_of_classes(settings, train), sampling.prior_weights)
    return _taught(both, _adjustment(settings, train, sampling))


def _weights_of_classes(settings: FitSettings, train: Samples) -> ClassWeightArrays | None:
    return None if settings.class_weights is None else class_weights(settings.class_weights, train)


def _adjustment(settings: FitSettings, train: Samples, sampling: SamplingPlan) -> Floats:
    """Return what is added to the logits in training (W,), of the classes as they are drawn.

    Menon et al. 2021, "Long-tail learning via logit adjustment", equation 10.
    """
    return settings.logit_adjust * log_priors(train, sampling.prior_weights)


def _taught(weights: ClassWeightArrays | None, adjustment: Floats) -> Floats:
    return -adjustment if weights is None else logit_shift(weights) - adjustment


def rule_for(prior: Prior | Literal["trained"], train: Samples, taught: Floats | None = None) -> DecisionRule:
    """Return the decision rule by which predictions assume a prior.

    `taught` (W,) is the log of the class frequencies that training taught over those of the data, by default 0.
    """
    plain = DecisionRule.plain(train.space)
    if prior == "trained":
        return plain
    # Equal frequencies are those that inverse weights teach.
    assumed = PRIORS[prior] * logit_shift(class_weights(Inverse(), train))
    return replace(plain, shift=(plain.shift if taught is None else taught) - assumed)


def _product(one: ClassWeightArrays | None, other: ClassWeightArrays | None) -> ClassWeightArrays | None:
    if one is None or other is None:
        return one if other is None else other
    return [left * right for left, right in zip(one, other, strict=True)]
