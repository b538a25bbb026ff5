"""lr: a learning-rate range test (Smith 2017, "Cyclical learning rates for training neural networks", section 3.3).

The rate rises from optimiser step to optimiser step until the loss does; where it fell fastest is a good top rate.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy.ndimage import gaussian_filter1d

from assay.arrays import Doubles, Ints
from assay.errors import DivergedError, PlanError
from assay.experiments.shared_steps import copy_person_edits, share_steps
from assay.files import RunFolder, StepName
from assay.plan.plan import LoadedPlan, Plan, anchored
from assay.progress import Progress
from assay.run.prepare import prepare_run
from assay.run.runner import run_steps
from assay.steps.base import StepPlan
from assay.steps.fit import PreparedFit, prepared_fit
from assay.steps.fit_settings import FitSettings
from assay.steps.repeat import RepeatSettings
from assay.training.devices import keep_freed_memory, pick_device
from assay.training.fit_task import EpochLogits, FitState
from assay.training.loop import optimizer_step
from assay.training.optimizers import set_rate
from assay.training.processes import SingleProcess
from assay.training.sampling import split_batches

MIN_STEPS = 20  # of the optimiser: a curve of fewer shows nothing
DIVERGED = 4.0  # times the lowest loss so far, both as running means
DECAY = 0.9  # of the running mean of losses
BANDWIDTH = 0.04  # of the curve: the standard deviation of the Gaussian that it is smoothed by
SIGNIFICANT = 5.0  # standard errors that the loss must fall by
MAX_RATIO = 10.0  # of what two rules suggest: beyond, they do not agree


@dataclass(frozen=True)
class Bounds:
    """Lowest and highest rate, and the optimiser steps between them."""

    lowest: float = 1e-6
    highest: float = 1.0
    steps: int = 100

    def require(self) -> None:
        """Raise PlanError for bounds that bound nothing."""
        if not 0 < self.lowest < self.highest < float("inf"):
            raise PlanError(
                f"--lowest {self.lowest:g} --highest {self.highest:g}: the rate rises from the one to the other. "
                "Give two numbers above 0, the lower one first."
            )
        if self.steps < MIN_STEPS:
            raise PlanError(
                f"--optimizer-steps {self.steps}: a curve of so few shows nothing. Give at least {MIN_STEPS}."
            )

    def rates(self) -> list[float]:
        """Return the rate of every optimiser step, spaced evenly in the logarithm."""
        rates: list[float] = np.geomspace(self.lowest, self.highest, self.steps).tolist()
        return rates


@dataclass(frozen=True)
class Suggestion:
    """A learning rate, or None, and the reason; the loss falls fastest at `steepest` and is least at `lowest`."""

    lr: float | None
    steepest: float | None
    lowest: float | None
    reason: str

    @property
    def check(self) -> float | None:
        """A tenth of the rate at the lowest loss: another rule for the same thing."""
        return None if self.lowest is None else self.lowest / 10


@dataclass(frozen=True)
class RangeTest:
    """A range test of one step, and what it suggests."""

    name: StepName
    key: str  # of the fit in the plan: steps.1.fit
    settings: FitSettings
    curve: pl.DataFrame  # lr, loss, smoothed
    diverged: bool
    suggestion: Suggestion
    images: int  # that the fit trains on
    batch: int  # of them in an optimiser step

    @property
    def basis(self) -> str:
        """What the curve rests on; where that is few different batches, what follows from it."""
        steps, batches = len(self.curve), math.ceil(self.images / self.batch)
        text = f"{steps} optimiser steps of {self.batch} on {self.images:,} training images"
        if batches >= MIN_STEPS:
            return text
        times = round(steps * self.batch / self.images)
        return (
            f"{text}: {batches} {'batch' if batches == 1 else 'batches'} an epoch, so each image about {times} times. "
            "This is little to go by: other images may suggest another rate."
        )

    @property
    def change(self) -> str | None:
        """The value for --set."""
        lr = self.suggestion.lr
        if lr is None:
            return None
        if self.settings.discriminative is None:
            return f"{self.key}.lr={lr:.2g}"
        low, high = self.settings.discriminative
        return f"{self.key}.discriminative=[{low / high * lr:.2g}, {lr:.2g}]"

    def to_json(self) -> dict[str, object]:
        suggestion = self.suggestion
        return {
            "step": self.name,
            "lr": suggestion.lr,
            "steepest": suggestion.steepest,
            "lowest loss at": suggestion.lowest,
            "a tenth of that": suggestion.check,
            "reason": suggestion.reason,
            "the plan's": top_of(self.settings),
            "set": self.change,
            "diverged": self.diverged,
            "images": self.images,
            "batch": self.batch,
            "basis": self.basis,
            "curve": self.curve.to_dicts(),
        }


def run_range_test(
    loaded: LoadedPlan,
    *,
    run: Path,
    bounds: Bounds,
    step: int | None = None,
    device: str | None = None,
    progress: Progress,
) -> RangeTest:
    """Run a range test of a fit of a plan: the first one, or step number `step`, counted from 0.

    The steps before it are run in a temporary folder; those that `run` has are taken from there.
    Raises AssayError.
    """
    bounds.require()
    if loaded.plan.steps:
        find_fit(loaded.plan, step)  # before anything is read
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="assay-lr-") as scratch:
        folder = Path(scratch)
        if loaded.plan.steps:
            _share(folder, anchored(loaded), run)
        prepared = prepare_run(loaded, folder, together=SingleProcess(), device=pick_device(device), progress=progress)
        plan, context = prepared.plan, prepared.context
        _share(folder, plan, run)  # the plan has its steps now
        index = find_fit(plan, step)
        state = run_steps(plan.steps[:index], prepared.state, context)
        settings, repeated = _fit_of(plan.steps[index]), plan.steps[index].kind == "repeat"
        assert settings is not None
        here, key = context.for_step(index + 1, plan.steps[index].kind), f"steps.{index}.fit"
        if repeated:
            here, key = here.for_round(1).for_step(1, "fit"), f"steps.{index}.repeat.steps.0.fit"
        with prepared_fit(settings, state, here) as fit:
            progress.begin(f"{here.name}, rates", bounds.steps)
            losses, diverged = climb(fit, bounds.rates(), progress)
            progress.end()
            images, batch = len(fit.task.source.ids), fit.config.step_size
    rates = bounds.rates()[: len(losses)]
    suggestion = suggest(rates, losses, diverged=diverged)
    curve = pl.DataFrame({"lr": rates, "loss": losses, "smoothed": smoothed(losses)})
    return RangeTest(here.name, key, settings, curve, diverged, suggestion, images, batch)


def find_fit(plan: Plan, step: int | None) -> int:
    """Return the index of the fit among the steps, from 0, or of the `repeat` that begins with it.

    Raises PlanError where there is none.
    """
    fits = [index for index, one in enumerate(plan.steps) if _fit_of(one) is not None]
    if not fits:
        raise PlanError(
            "lr: none of the plan's steps is a fit, and only a fit has a learning rate. Add one, or try a fit that is "
            "within another step in a plan of its own."
        )
    if step is None:
        return fits[0]
    if step not in fits:
        there = ", ".join(f"{index} ({StepName.at(index + 1, plan.steps[index].kind)})" for index in fits)
        known = f"is {plan.steps[step].kind}, and no fit" if 0 <= step < len(plan.steps) else "is not there"
        raise PlanError(f"--step {step}: steps.{step} {known}. The fits, counted from 0, are: {there}.")
    return step


def _fit_of(step: StepPlan) -> FitSettings | None:
    settings = step.settings
    if isinstance(settings, RepeatSettings):
        settings = settings.steps[0].settings
    return settings if isinstance(settings, FitSettings) else None


def top_of(settings: FitSettings) -> float:
    """Return the top learning rate of a fit, that of its head."""
    return settings.lr if settings.discriminative is None else settings.discriminative[1]


def _share(folder: Path, plan: Plan, run: Path) -> None:
    """Take over what a run has of the steps before the fit: the same labels, images and models."""
    if RunFolder(run).samples.exists():
        copy_person_edits(folder, run)
        share_steps(folder, plan, [run])


def climb(fit: PreparedFit, rates: list[float], progress: Progress) -> tuple[list[float], bool]:
    """Take an optimiser step at each of these rates, as training takes them.

    Returns the losses until they rise too far, and whether they did.
    """
    job, course, machine = fit.task, fit.config, fit.machine
    top = max(group["top_lr"] for group in job.optimizer.param_groups)
    logits = EpochLogits.empty(len(job.source.ids), course.width)
    forward = machine.wrap(job.network)
    losses: list[float] = []
    mean = lowest = 0.0
    with torch.random.fork_rng(devices=machine.seeded_devices):
        job.to_training_mode()
        for done, (lr, (epoch, rows)) in enumerate(zip(rates, _batches(fit), strict=False)):
            set_rate(job.optimizer, lr / top)
            torch.manual_seed(course.seed + done)  # for dropout
            fit_state = replace(FitState.of(len(job.objective.losses)), epoch=epoch, batch=done)
            try:
                optimizer_step(job, course, fit_state, machine, forward, rows, logits)
            except DivergedError:
                return losses, True
            both = torch.tensor([fit_state.sums, fit_state.counts], dtype=torch.float64)
            losses.append(float(job.objective.mean(both[0], both[1])))
            progress.advance(1, {"lr": lr, "loss": losses[-1]})
            mean = DECAY * mean + (1 - DECAY) * losses[-1]
            now = mean / (1 - DECAY ** (done + 1))  # without the 0 that it began with (Kingma & Ba 2015, section 3)
            lowest = now if done == 0 else min(lowest, now)
            if done >= MIN_STEPS // 2 and now > DIVERGED * lowest:
                return losses, True
    return losses, False


def _batches(fit: PreparedFit) -> Iterator[tuple[int, Ints]]:
    """Yield the epoch and the rows of one optimiser step after the other, without end."""
    for epoch in itertools.count():
        for rows in split_batches(fit.task.order.rows(epoch), fit.config.step_size):
            yield epoch, rows


def smoothed(losses: list[float]) -> Doubles:
    """Return the losses (N,) smoothed by a Gaussian, which moves nothing along the curve."""
    return np.asarray(gaussian_filter1d(np.array(losses, np.float64), _bandwidth(len(losses)), mode="reflect"))


def suggest(rates: list[float], losses: list[float], *, diverged: bool) -> Suggestion:
    """Return the rate at which the smoothed loss falls fastest before it is lowest; none where it does not fall.

    A fall counts if it is larger than what chance does to the smoothed curve.
    """
    if len(losses) < MIN_STEPS // 2:
        return _none(f"the loss rose too far after {len(losses)} optimiser steps, too few to judge by: lower --lowest")
    curve, width = smoothed(losses), _bandwidth(len(losses))
    bottom = int(curve.argmin())
    if curve[: bottom + 1].max() - curve[bottom] < SIGNIFICANT * _error(losses, bottom, width):
        return _none(
            "at no rate does the loss fall by more than chance: the model may know these labels already, or more "
            "--optimizer-steps may show it"
        )
    begins = min(round(width), bottom)  # smoothing by reflection makes the curve flat at its end
    slope = np.gradient(curve, np.log10(rates))
    steepest = rates[begins + int(slope[begins : bottom + 1].argmin())]
    if bottom >= len(losses) - 1 - round(width) and not diverged:
        return _none("the loss still falls at the highest rate: raise --highest", steepest)
    lowest = rates[bottom]
    reason = f"the loss falls fastest at {steepest:.2g}; a tenth of the rate at the lowest loss is {lowest / 10:.2g}"
    ratio = max(steepest / (lowest / 10), (lowest / 10) / steepest)
    if ratio > MAX_RATIO:
        reason += f", {ratio:.0f} times apart: look at the curve before you trust either"
    return Suggestion(steepest, steepest, lowest, reason)


def _none(reason: str, steepest: float | None = None) -> Suggestion:
    return Suggestion(None, steepest, None, reason)


def _error(losses: list[float], bottom: int, width: float) -> float:
    """Return the standard error of a difference of two points of the smoothed curve, up to where it is lowest."""
    before = losses[: max(bottom + 1, MIN_STEPS // 2)]
    noise = float(np.std(np.diff(before))) / np.sqrt(2)  # of one loss, whatever the curve does
    return float(noise / np.sqrt(2 * np.sqrt(np.pi) * width) * np.sqrt(2))


def _bandwidth(count: int) -> float:
    return max(1.0, BANDWIDTH * count)
