"""Schedules of the learning rate and the momentum: pure functions of the position in a fit.

A schedule maps a position, `step` optimiser steps out of `total`, to a factor of the top learning rate and to a
momentum. Step 0 is the first one; `total` is the end of the fit, so that the end value belongs to no optimiser step: a
rate of 0 would be one spent for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from assay.errors import PlanError
from assay.settings import Choice, by_name

Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Pair = tuple[Momentum, Momentum] | None
MomentumPair = Annotated[
    Pair,
    Field(description="Momentum at the lowest and at the highest learning rate; null leaves it alone."),
]


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

    def require_consistent(self) -> None:
        if self.cycle_epochs is not None and self.cycle_steps is not None:
            raise ValueError("cycle_epochs and cycle_steps both give the length of a cycle; keep one of them")


class Cosine(Choice):
    """A straight warm-up, if any, then half a cosine down."""

    kind: Literal["cosine"] = "cosine"
    warm_up: float | None = Field(None, ge=0, lt=1, description="Share of the fit on the way up; none by default.")
    warm_up_epochs: float | None = Field(default=None, ge=0, description="Epochs on the way up.")
    end: Share = Field(default=0.0, description="Last learning rate, as a share of the top.")

    def require_consistent(self) -> None:
        if self.warm_up is not None and self.warm_up_epochs is not None:
            raise ValueError("warm_up and warm_up_epochs both give the length of the warm-up; keep one of them")


class ReduceOnPlateau(Choice):
    """Lower the learning rate whenever the monitored metric has stopped improving."""

    kind: Literal["reduce_on_plateau"] = "reduce_on_plateau"
    factor: float = Field(default=0.1, gt=0, lt=1, description="What the learning rate is multiplied with.")
    patience: int = Field(default=2, ge=0, description="Epochs without a better metric before the rate is lowered.")
    least: Share = Field(default=0.0, description="Lowest learning rate, as a share of the top.")


AnySchedule = Constant | FlatCos | OneCycle | Cyclic | Cosine | ReduceOnPlateau
ScheduleSettings = Annotated[AnySchedule, Field(discriminator="kind"), by_name(AnySchedule)]
"""A schedule in a plan: its name, or a mapping with `kind` and what differs from the defaults."""


# The functions: a position, and the options of the settings of the same name.


class Position(NamedTuple):
    """A moment of a fit, in optimiser steps."""

    step: int
    total: int  # at least 1
    per_epoch: int
    metrics: Sequence[float] = ()  # the monitored one of every finished epoch; higher is better

    @property
    def progress(self) -> float:
        return self.step / self.total


class Rate(NamedTuple):
    """A factor of the top learning rate, and a momentum; None leaves the momentum as it is."""

    lr_factor: float
    momentum: float | None = None


def constant(at: Position) -> Rate:
    """Return the top learning rate."""
    return Rate(1.0)


def flat_cos(at: Position, *, flat: float, end: float) -> Rate:
    """Return the top learning rate, after `flat` half a cosine from 1 to `end` (fastai's `fit_flat_cos`)."""
    return Rate(_cosine(1.0, end, _share(at.progress - flat, 1 - flat)))


def one_cycle(at: Position, *, warm_up: float, div: float, final_div: float, momentum: Pair) -> Rate:
    """Return half a cosine up from 1/div, then one down to 1/final_div (Smith & Topin 2018, arXiv:1708.07120).

    Annealed by cosines as fastai and torch do it, where the paper has straight lines.
    """
    if at.progress < warm_up:
        risen = at.progress / warm_up
        return Rate(_cosine(1 / div, 1.0, risen), _opposite(momentum, _cosine(0.0, 1.0, risen)))
    fallen = _share(at.progress - warm_up, 1 - warm_up)
    return Rate(_cosine(1.0, 1 / final_div, fallen), _opposite(momentum, _cosine(1.0, 0.0, fallen)))


def cyclic(at: Position, *, base: float, cycle_epochs: float | None, cycle_steps: int | None, momentum: Pair) -> Rate:
    """Return a triangle wave that begins at `base` (Smith 2017, arXiv:1506.01186, "triangular")."""
    cycle = cycle_steps or max(2.0, (cycle_epochs or 2.0) * at.per_epoch)
    height = 1 - abs(2 * (at.step % cycle) / cycle - 1)
    return Rate(base + (1 - base) * height, _opposite(momentum, height))


def cosine(at: Position, *, warm_up: float | None, warm_up_epochs: float | None, end: float) -> Rate:
    """Return a warm-up in equal steps, the first above 0, then half a cosine (Loshchilov & Hutter 2017).

    Raises PlanError where the warm-up leaves no room for the cosine.
    """
    up = round((warm_up or 0.0) * at.total if warm_up_epochs is None else warm_up_epochs * at.per_epoch)
    if up >= at.total and warm_up_epochs is not None:
        raise PlanError(
            f"schedule: warm_up_epochs is {warm_up_epochs:g} and the fit ends after {at.total / at.per_epoch:g} "
            "epochs. Shorten the warm-up, or raise epochs."
        )
    if at.step < up:
        return Rate((at.step + 1) / (up + 1))
    return Rate(_cosine(1.0, end, _share(at.step - up, at.total - up)))


def reduce_on_plateau(at: Position, *, factor: float, patience: int, least: float) -> Rate:
    """Return 1, times `factor` for each time that more than `patience` epochs in a row were no better than the best.

    It falls to `least` at most. A metric that is not a number is never better.
    """
    share, best, waited = 1.0, -math.inf, 0
    for metric in at.metrics:
        if metric > best:
            best, waited = metric, 0
            continue
        waited += 1
        if waited > patience:
            share, waited = max(share * factor, least), 0
    return Rate(share)


SCHEDULES: dict[str, Callable[..., Rate]] = {
    "constant": constant,
    "flat_cos": flat_cos,
    "one_cycle": one_cycle,
    "cyclic": cyclic,
    "cosine": cosine,
    "reduce_on_plateau": reduce_on_plateau,
}
"""Kind -> (position, *, options of its settings) -> rate."""


def rate(
    settings: AnySchedule,
    step: int,
    *,
    total: int,
    per_epoch: int,
    history: Sequence[float] = (),
    higher_is_better: bool = True,
) -> Rate:
    """Return the rate of optimiser step `step` (from 0) of `total`; `per_epoch` of them make an epoch.

    `history` holds the monitored metric of every finished epoch; only `reduce_on_plateau` reads it.
    """
    if not 0 <= step <= total or per_epoch < 1:
        raise ValueError(f"optimiser step {step} of {total}, {per_epoch} an epoch, is no position in a fit")
    metrics = history if higher_is_better else [-metric for metric in history]
    options = settings.model_dump(exclude={"kind"})
    return SCHEDULES[settings.kind](Position(step, max(total, 1), per_epoch, metrics), **options)


def _cosine(start: float, end: float, position: float) -> float:
    """Return the point at `position`, from 0 to 1, of half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2


def _share(part: float, whole: float) -> float:
    """Return `part / whole`, held within 0 and 1; 0 where the whole is 0."""
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def _opposite(pair: Pair, height: float) -> float | None:
    """Return the momentum at a `height` of the learning rate: the first of the pair at 0, the second at 1."""
    return None if pair is None else pair[0] + (pair[1] - pair[0]) * height
