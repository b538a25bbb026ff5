"""How the learning rate and the momentum move through a fit: pure functions of the position in it.

A schedule maps a position, `step` optimiser steps out of `total`, to a share of the top learning rate and
to a momentum. Position 0 is before the first optimiser step and `total` is the end of the fit, so that the
end value belongs to no optimiser step: a rate of 0 would be one spent for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from assay.errors import PlanError
from assay.settings import Choice, parse_named

Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
MomentumPair = Annotated[
    tuple[Momentum, Momentum] | None,
    Field(description="Momentum at the lowest and at the highest learning rate; null leaves it alone."),
]


class Rate(NamedTuple):
    """A share of the top learning rate, and a momentum; None leaves the momentum as it is."""

    lr_factor: float
    momentum: float | None = None


class Constant(Choice):
    """The top learning rate throughout."""

    kind: Literal["constant"] = "constant"


class FlatCos(Choice):
    """The top learning rate for most of the fit, then half a cosine down."""

    kind: Literal["flat_cos"] = "flat_cos"
    flat: Share = Field(default=0.75, description="Share of the fit at the top learning rate.")
    end: Share = Field(default=0.0, description="Last learning rate, as a share of the top.")


class OneCycle(Choice):
    """Up to the top learning rate and down to almost nothing, momentum the other way round."""

    kind: Literal["one_cycle"] = "one_cycle"
    warm_up: float = Field(default=0.25, gt=0, lt=1, description="Share of the fit on the way up.")
    div: float = Field(default=25.0, ge=1, description="The first learning rate is the top one divided by this.")
    final_div: float = Field(default=1e5, ge=1, description="The last learning rate is the top one divided by this.")
    momentum: MomentumPair = (0.95, 0.85)


class Cyclic(Choice):
    """Straight up and down between a base and the top learning rate, momentum the other way round."""

    kind: Literal["cyclic"] = "cyclic"
    base: Share = Field(default=0.1, description="Lowest learning rate, as a share of the top.")
    cycle_epochs: float | None = Field(
        None, gt=0, description="Length of a cycle in epochs; 2 where no length is given."
    )
    cycle_steps: int | None = Field(default=None, ge=2, description="Length of a cycle in optimiser steps.")
    momentum: MomentumPair = (0.95, 0.85)

    @model_validator(mode="after")
    def _one_length(self) -> Cyclic:
        if self.cycle_epochs is not None and self.cycle_steps is not None:
            raise ValueError("cycle_epochs and cycle_steps both give the length of a cycle; keep one of them")
        return self


class Cosine(Choice):
    """A straight warm-up, if any, then half a cosine down."""

    kind: Literal["cosine"] = "cosine"
    warm_up: float | None = Field(None, ge=0, lt=1, description="Share of the fit on the way up; none by default.")
    warm_up_epochs: float | None = Field(default=None, ge=0, description="Epochs on the way up.")
    end: Share = Field(default=0.0, description="Last learning rate, as a share of the top.")

    @model_validator(mode="after")
    def _one_length(self) -> Cosine:
        if self.warm_up is not None and self.warm_up_epochs is not None:
            raise ValueError("warm_up and warm_up_epochs both give the length of the warm-up; keep one of them")
        return self


class ReduceOnPlateau(Choice):
    """Lower the learning rate whenever the monitored metric has stopped improving."""

    kind: Literal["reduce_on_plateau"] = "reduce_on_plateau"
    factor: float = Field(default=0.1, gt=0, lt=1, description="What the learning rate is multiplied with.")
    patience: int = Field(default=2, ge=0, description="Epochs without a better metric that are let pass.")
    least: Share = Field(default=0.0, description="Lowest learning rate, as a share of the top.")


AnySchedule = Constant | FlatCos | OneCycle | Cyclic | Cosine | ReduceOnPlateau
ScheduleName = Literal["constant", "flat_cos", "one_cycle", "cyclic", "cosine", "reduce_on_plateau"]
ScheduleSettings = Annotated[
    AnySchedule,
    Field(discriminator="kind"),
    BeforeValidator(parse_named, json_schema_input_type=ScheduleName | AnySchedule),
]
"""A schedule in a plan: its name, or a mapping with `kind` and what differs from the defaults."""


def constant(_settings: Constant, _step: int, *, total: int, per_epoch: int) -> Rate:
    """The top learning rate, wherever one is."""
    return Rate(1.0)


def flat_cos(settings: FlatCos, step: int, *, total: int, per_epoch: int) -> Rate:
    """Flat, then half a cosine from 1 to `end` (fastai's `fit_flat_cos`)."""
    fallen = _share(step / total - settings.flat, 1 - settings.flat)
    return Rate(_cosine(1.0, settings.end, fallen))


def one_cycle(settings: OneCycle, step: int, *, total: int, per_epoch: int) -> Rate:
    """Half a cosine up from 1/div, half a cosine down to 1/final_div (Smith & Topin 2018, arXiv:1708.07120).

    Annealed by cosines as fastai and torch do it, where the paper has straight lines.
    """
    position = step / total
    if position < settings.warm_up:
        factor = _cosine(1 / settings.div, 1.0, position / settings.warm_up)
        height = _cosine(0.0, 1.0, position / settings.warm_up)
    else:
        fallen = _share(position - settings.warm_up, 1 - settings.warm_up)
        factor = _cosine(1.0, 1 / settings.final_div, fallen)
        height = _cosine(1.0, 0.0, fallen)
    return Rate(factor, _opposite(settings.momentum, height))


def cyclic(settings: Cyclic, step: int, *, total: int, per_epoch: int) -> Rate:
    """A triangle wave that begins at the base (Smith 2017, arXiv:1506.01186, "triangular")."""
    cycle = settings.cycle_steps or max(2.0, (settings.cycle_epochs or 2.0) * per_epoch)
    height = 1 - abs(2 * (step % cycle) / cycle - 1)
    return Rate(settings.base + (1 - settings.base) * height, _opposite(settings.momentum, height))


def cosine(settings: Cosine, step: int, *, total: int, per_epoch: int) -> Rate:
    """A warm-up in equal stairs, the first above 0, then half a cosine (Loshchilov & Hutter 2017).

    Raises PlanError where the warm-up leaves no room for the cosine.
    """
    epochs = settings.warm_up_epochs
    warm_up = round((settings.warm_up or 0.0) * total if epochs is None else epochs * per_epoch)
    if warm_up >= total and epochs is not None:
        raise PlanError(
            f"schedule: warm_up_epochs is {epochs:g} and the fit ends after {total / per_epoch:g} epochs. "
            "Shorten the warm-up, or raise epochs."
        )
    if step < warm_up:
        return Rate((step + 1) / (warm_up + 1))
    return Rate(_cosine(1.0, settings.end, _share(step - warm_up, total - warm_up)))


def plateau_factor(
    history: Sequence[float],
    *,
    factor: float,
    patience: int,
    higher_is_better: bool,
    least: float = 0.0,
) -> float:
    """The share of the top learning rate after the metrics seen so far, one an epoch, in order.

    Each time more than `patience` epochs in a row brought nothing better than the best, the share is
    multiplied by `factor`, down to `least`. A metric that is not a number is never better.
    """
    share, best, waited = 1.0, -math.inf, 0
    for metric in history:
        height = metric if higher_is_better else -metric
        if height > best:
            best, waited = height, 0
            continue
        waited += 1
        if waited > patience:
            share, waited = max(share * factor, least), 0
    return share


SCHEDULES: dict[str, Callable[..., Rate]] = {
    "constant": constant,
    "flat_cos": flat_cos,
    "one_cycle": one_cycle,
    "cyclic": cyclic,
    "cosine": cosine,
}
"""Kind -> its function. `reduce_on_plateau` follows metrics, not positions: see `plateau_factor`."""


def rate(
    settings: AnySchedule,
    step: int,
    *,
    total: int,
    per_epoch: int,
    history: Sequence[float] = (),
    higher_is_better: bool = True,
) -> Rate:
    """What optimiser step `step` (from 0) of `total` uses; `per_epoch` of them make an epoch.

    `history` holds the monitored metric of every finished epoch; only `reduce_on_plateau` looks at it.
    """
    if not 0 <= step <= total or per_epoch < 1:
        raise ValueError(f"optimiser step {step} of {total}, {per_epoch} an epoch, is no position in a fit")
    if isinstance(settings, ReduceOnPlateau):
        options: dict[str, Any] = {
            "factor": settings.factor,
            "patience": settings.patience,
            "least": settings.least,
        }
        return Rate(plateau_factor(history, higher_is_better=higher_is_better, **options))
    return SCHEDULES[settings.kind](settings, step, total=max(total, 1), per_epoch=per_epoch)


def _cosine(start: float, end: float, position: float) -> float:
    """From `start` to `end` along half a cosine; `position` runs from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2


def _share(part: float, whole: float) -> float:
    """`part / whole`, held within 0 and 1; 0 where there is no whole to have a part of."""
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def _opposite(pair: tuple[float, float] | None, height: float) -> float | None:
    """Momentum at a `height` of the learning rate: 0 lowest, first of the pair; 1 top, second."""
    return None if pair is None else pair[0] + (pair[1] - pair[0]) * height
