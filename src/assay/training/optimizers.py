"""Optimisers by name, parameter groups with a learning rate for each stage, and the rate of an optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypedDict

import torch
from pydantic import Field
from torch import nn

from assay.errors import PlanError
from assay.settings import Choice, by_name

Momentum = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[
    tuple[Momentum, Momentum],
    Field(description="Decay of the running means of the gradient and of its square."),
]
Eps = Annotated[float, Field(gt=0, description="Added to the divisor, so that it is never 0.")]
WeightDecay = Annotated[float, Field(ge=0, description="Decay of the weights towards 0.")]
Decays = Annotated[
    Literal["kernels", "all"],
    Field(description="What decays: matrices and kernels, or norms and biases too, as in torch by default."),
]


class Sgd(Choice):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: Momentum = 0.9
    nesterov: bool = Field(default=False, description="Look ahead along the momentum.")
    weight_decay: WeightDecay = 0.0
    decays: Decays = "kernels"

    def require_consistent(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov looks ahead along the momentum, and momentum is 0; raise it, or drop nesterov")


class Adam(Choice):
    """Adam; its weight decay is added to the gradient."""

    kind: Literal["adam"] = "adam"
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: WeightDecay = 0.0
    decays: Decays = "kernels"


class AdamW(Choice):
    """Adam with weight decay decoupled from the gradient."""

    kind: Literal["adamw"] = "adamw"
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: WeightDecay = 0.01
    decays: Decays = "kernels"


class AmsGrad(Choice):
    """Adam that divides by the largest running mean so far."""

    kind: Literal["amsgrad"] = "amsgrad"
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: WeightDecay = 0.0
    decays: Decays = "kernels"


class RmsProp(Choice):
    """RMSprop."""

    kind: Literal["rmsprop"] = "rmsprop"
    alpha: Momentum = Field(default=0.99, description="Decay of the running mean of the squared gradient.")
    momentum: Momentum = 0.0
    centered: bool = Field(False, description="Divide by the variance of the gradient, not by its mean square.")
    eps: Eps = 1e-8
    weight_decay: WeightDecay = 0.0
    decays: Decays = "kernels"


AnyOptimizer = Sgd | Adam | AdamW | AmsGrad | RmsProp
OptimizerSettings = Annotated[AnyOptimizer, Field(discriminator="kind"), by_name(AnyOptimizer)]
"""An optimiser in a plan: its name, or a mapping with `kind` and what differs from the defaults."""


class Group(TypedDict):
    """Parameters that share a learning rate and a weight decay."""

    params: list[nn.Parameter]
    lr: float
    top_lr: float
    weight_decay: float
    name: str


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "amsgrad": lambda groups, **options: torch.optim.Adam(groups, amsgrad=True, **options),
    "rmsprop": torch.optim.RMSprop,
}
FUSED_KINDS = frozenset({"sgd", "adam", "adamw", "amsgrad"})
FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


def build(settings: AnyOptimizer, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """Return the optimiser over `groups` (see `parameter_groups`), fused where its kind and the device allow it."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    options = settings.model_dump(exclude={"kind", "decays"})
    if settings.kind in FUSED_KINDS and devices <= FUSED_DEVICES:
        options["fused"] = True
    return OPTIMIZERS[settings.kind]([dict(group) for group in groups], **options)


def parameter_groups(
    model: nn.Module,
    stages: Sequence[Sequence[str]],
    *,
    lr: float,
    discriminative: tuple[float, float] | None = None,
    layer_decay: float | None = None,
    weight_decay: float = 0.0,
    decays: Literal["kernels", "all"] = "kernels",
) -> list[Group]:
    """Return the trainable parameters of `model`, two groups a stage: weights, which decay, and norms and biases.

    `stages` holds parameter names from the first stage to the last, the head last; frozen ones are skipped.
    `discriminative` spaces the rates of the trainable stages geometrically from low to high
    (fastai's `slice(low, high)`); `layer_decay` multiplies the rate once for every stage below the last.
    Raises PlanError where both are given or nothing is trainable.
    """
    if discriminative is not None and layer_decay is not None:
        raise PlanError("discriminative and layer_decay both set the learning rate of every stage; keep one of them.")
    trainable = [(i, named) for i, names in enumerate(stages) if (named := _trainable(model, names))]
    _require_all(model, stages)
    rates = stage_rates(len(trainable), lr=lr, discriminative=discriminative, layer_decay=layer_decay)
    groups: list[Group] = []
    for (position, named), rate in zip(trainable, rates, strict=True):
        for kernels in (True, False):
            params = [p for name, p in named if is_kernel(name, p) is kernels]
            if params:
                name = f"stage {position}, {'weights' if kernels else 'norms and biases'}"
                decay = weight_decay if kernels or decays == "all" else 0.0
                groups.append(Group(params=params, lr=rate, top_lr=rate, weight_decay=decay, name=name))
    if not groups:
        raise PlanError("freeze: every parameter of the model is frozen, and nothing is left to fit. Freeze less.")
    return groups


def stage_rates(
    count: int,
    *,
    lr: float,
    discriminative: tuple[float, float] | None = None,
    layer_decay: float | None = None,
) -> list[float]:
    """Return the top learning rate of each of `count` stages, first to last."""
    if discriminative is not None:
        low, high = discriminative
        return [high * (low / high) ** ((count - 1 - i) / max(count - 1, 1)) for i in range(count)]
    return [lr * (1.0 if layer_decay is None else layer_decay) ** (count - 1 - i) for i in range(count)]


def is_kernel(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a matrix or kernel, no norm, bias or other vector."""
    return parameter.ndim > 1 and not name.endswith("bias")


def set_rate(optimizer: torch.optim.Optimizer, factor: float, *, momentum: float | None = None) -> None:
    """Set every group's learning rate to `factor` times its top one, and the momentum where one is given.

    Momentum is `momentum` of SGD and RMSprop and the first beta of Adam and its kin.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["top_lr"] * factor
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def _trainable(model: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Parameter]]:
    parameters = ((name, model.get_parameter(name)) for name in names)
    return [(name, parameter) for name, parameter in parameters if parameter.requires_grad]


def _require_all(model: nn.Module, stages: Sequence[Sequence[str]]) -> None:
    """Raise ValueError unless every trainable parameter is in one stage: one left out would silently never learn."""
    staged = [name for names in stages for name in names]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if missing := trainable - set(staged):
        raise ValueError(f"no stage holds {sorted(missing)[0]!r}, one of {len(missing)} such parameters")
    if len(staged) != len(set(staged)):
        raise ValueError("a parameter is in two stages")
