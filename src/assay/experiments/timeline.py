"""The learning rate and the momentum over a whole plan, optimiser step by optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from assay.experiments.dry_run import Length, StepEstimate
from assay.steps.base import StepPlan
from assay.steps.ensemble import EnsembleSettings
from assay.steps.fit_settings import FitSettings
from assay.steps.repeat import RepeatSettings
from assay.training.optimizers import AnyOptimizer, RmsProp, Sgd
from assay.training.schedules import rate

POINTS = 1_000  # of a fit, at the most
COLUMNS = {"fit": pl.String, "at": pl.Int64, "lr": pl.Float64, "low": pl.Float64, "momentum": pl.Float64}


@dataclass(frozen=True)
class Fit:
    """A fit of a plan: where its optimiser steps begin, counted on over the plan."""

    name: str
    begins: int
    settings: FitSettings
    length: Length


def fits(steps: Sequence[StepEstimate], plans: Mapping[str, StepPlan]) -> list[Fit]:
    """All fits in the order in which they are run, those of every round and member too; not those of mere trials."""
    found: list[Fit] = []
    begins = 0
    for name, step in _in_order(steps, plans):
        settings = plans[step.name].settings
        if isinstance(settings, FitSettings) and step.length is not None:
            found.append(Fit(name, begins, settings, step.length))
            begins += step.length.steps
    return found


def spans(steps: Sequence[StepEstimate], found: Sequence[Fit]) -> list[Span]:
    """From where to where the steps of a plan reach."""
    places, at = [], 0
    for step in steps:
        own = [fit for fit in found if fit.name == step.name or fit.name.startswith(f"{step.name}/")]
        ends = at + sum(fit.length.steps for fit in own)
        places.append(Span(step.name, at, ends))
        at = ends
    return places


def rates(found: Sequence[Fit]) -> pl.DataFrame:
    """The rates of all fits: fit, at, lr, low (of the first stage, where stages differ), momentum.

    `reduce_on_plateau` follows metrics, and stands as if each epoch were better than the last.
    """
    rows = [row for fit in found for row in _rates(fit)]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def _rates(fit: Fit) -> Iterator[tuple[str, int, float, float | None, float | None]]:
    settings, total = fit.settings, fit.length.steps
    low, top = settings.discriminative or (None, settings.lr)
    own = momentum_of(settings.optimizer)
    for step in np.unique(np.linspace(0, total - 1, min(total, POINTS)).round().astype(int)).tolist():
        now = rate(settings.schedule, step, total=total, per_epoch=fit.length.per_epoch)
        momentum = own if now.momentum is None else now.momentum
        yield fit.name, fit.begins + step, top * now.lr_factor, None if low is None else low * now.lr_factor, momentum


def momentum_of(optimizer: AnyOptimizer) -> float:
    """Momentum as schedules mean it: of SGD and RMSprop, and the first beta of Adam and its kin."""
    return optimizer.momentum if isinstance(optimizer, Sgd | RmsProp) else optimizer.betas[0]


def _in_order(steps: Sequence[StepEstimate], plans: Mapping[str, StepPlan]) -> Iterator[tuple[str, StepEstimate]]:
    for step in steps:
        settings = plans[step.name].settings
        if isinstance(settings, RepeatSettings):
            for number in range(1, settings.times + 1):
                for name, one in _in_order(step.inner, plans):
                    yield name.replace("/round-1/", f"/round-{number}/", 1) if step.name in name else name, one
        elif isinstance(settings, EnsembleSettings):
            yield from _in_order(step.inner, plans)
        else:
            yield step.name, step


@dataclass(frozen=True)
class Span:
    """A step of a plan, from one optimiser step to another; as short as none for one that takes none."""

    name: str
    begins: int
    ends: int
