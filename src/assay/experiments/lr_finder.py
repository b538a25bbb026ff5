"""lr: a learning-rate range test (Smith 2017, "Cyclical learning rates for training neural networks", section 3.3).

The rate rises from optimiser step to optimiser step until the loss does; where it fell fastest is a good top rate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.ndimage import gaussian_filter1d

from assay.arrays import Doubles, Ints
from assay.errors import DivergedError, PlanError
from assay.experiments.shared_steps import copy_person_edits, share_steps
from assay.files import StepName
from assay.plan.plan import LoadedPlan, Plan, anchored
from assay.progress import Progress
from assay.run.prepare import prepare_run
from assay.run.runner import run_steps
from assay.steps.base import Context, State
from assay.steps.fit import PreparedFit, prepared_fit
from assay.steps.fit_settings import FitSettings
from assay.training.devices import SingleProcess, keep_freed_memory, pick_device
from assay.training.fit_task import EpochLogits, FitState
from assay.training.loop import optimizer_step
from assay.training.optimizers import set_rate
from assay.training.sampling import split_batches

FEWEST = 20  # optimiser steps: a curve of fewer shows nothing
DIVERGED = 4.0  # times the lowest loss so far, both as running means
RUNNING = 0.9  # of the running mean, what the losses before weigh
WIDTH = 0.04  # of the curve, the standard deviation that it is smoothed by
SURE = 5.0  # standard errors that the loss must fall by
FAR = 10.0  # times: rules that are further apart do not agree


@dataclass(frozen=True)
class Bounds:
    """From which rate to which, in how many optimiser steps."""

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
        if self.steps < FEWEST:
            raise PlanError(f"--optimizer-steps {self.steps}: a curve of so few shows nothing. Give at least {FEWEST}.")

    def rates(self) -> list[float]:
        """The rate of every optimiser step, each as many times the one before."""
        rates: list[float] = np.geomspace(self.lowest, self.highest, self.steps).tolist()
        return rates


@dataclass(frozen=True)
class Suggestion:
    """A learning rate, or None and why; `steepest` is where the loss fell fastest, `lowest` where it was lowest."""

    lr: float | None
    steepest: float | None
    lowest: float | None
    said: str

    @property
    def check(self) -> float | None:
        """A tenth of the rate at the lowest loss: another rule for the same thing."""
        return None if self.lowest is None else self.lowest / 10


@dataclass(frozen=True)
class RangeTest:
    """A range test of one step, and what it suggests."""

    name: str  # 02-fit
    place: int
    settings: FitSettings
    curve: pl.DataFrame  # lr, loss, smoothed
    diverged: bool
    suggestion: Suggestion

    @property
    def change(self) -> str | None:
        """What to give to --set."""
        lr = self.suggestion.lr
        if lr is None:
            return None
        key = f"steps.{self.place}.fit"
        if self.settings.discriminative is None:
            return f"{key}.lr={lr:.2g}"
        low, high = self.settings.discriminative
        return f"{key}.discriminative=[{low / high * lr:.2g}, {lr:.2g}]"

    def to_json(self) -> dict[str, Any]:
        suggestion = self.suggestion
        return {
            "step": self.name,
            "lr": suggestion.lr,
            "steepest": suggestion.steepest,
            "lowest loss at": suggestion.lowest,
            "a tenth of that": suggestion.check,
            "said": suggestion.said,
            "the plan's": top_of(self.settings),
            "set": self.change,
            "diverged": self.diverged,
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
    """Try learning rates for a fit of a plan: the first one, or step number `step`, counted from 0.

    The steps before it are carried out in a place that is thrown away; those that `run` has are taken from there.
    Raises AssayError.
    """
    bounds.require()
    if loaded.plan.steps:
        find_fit(loaded.plan, step)  # before anything is read
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="assay-lr-") as scratch:
        folder = Path(scratch)
        if loaded.plan.steps:
            _take_over(folder, anchored(loaded), run)
        opened = prepare_run(loaded, folder, together=SingleProcess(), device=pick_device(device), progress=progress)
        plan = opened.plan
        _take_over(folder, plan, run)
        place = find_fit(plan, step)
        state = run_steps(plan.steps[:place], opened.state, opened.context)
        settings = plan.steps[place].settings
        assert isinstance(settings, FitSettings)
        name = f"{place + 1:02d}-fit"
        context = _within(opened.context, name, place + 1)
        losses, diverged = _climbed(settings, state, context, bounds)
    rates = bounds.rates()[: len(losses)]
    suggestion = suggest(rates, losses, diverged=diverged)
    curve = pl.DataFrame({"lr": rates, "loss": losses, "smoothed": smoothed(losses)})
    return RangeTest(name, place, settings, curve, diverged, suggestion)


def find_fit(plan: Plan, step: int | None) -> int:
    """Where the fit is among the steps, from 0. Raises PlanError where there is none."""
    fits = [place for place, one in enumerate(plan.steps) if isinstance(one.settings, FitSettings)]
    if not fits:
        raise PlanError(
            "lr: none of the plan's steps is a fit, and only a fit has a learning rate. Add one, or try a fit that is "
            "within another step in a plan of its own."
        )
    if step is None:
        return fits[0]
    if step not in fits:
        there = ", ".join(f"{place} ({place + 1:02d}-fit)" for place in fits)
        known = f"is {plan.steps[step].kind}, and no fit" if 0 <= step < len(plan.steps) else "is not there"
        raise PlanError(f"--step {step}: steps.{step} {known}. The fits, counted from 0, are: {there}.")
    return step


def top_of(settings: FitSettings) -> float:
    """The top learning rate of a fit, that of its head."""
    return settings.lr if settings.discriminative is None else settings.discriminative[1]


def _take_over(folder: Path, plan: Plan, run: Path) -> None:
    """What a run has of the steps before: the same labels, images and models."""
    if (run / "samples.parquet").exists():
        copy_person_edits(folder, run)
        share_steps(folder, plan, [run])


def _within(context: Context, name: str, number: int) -> Context:
    return replace(context, folder=context.run.step(name), name=StepName(name), number=number)


def _climbed(settings: FitSettings, state: State, context: Context, bounds: Bounds) -> tuple[list[float], bool]:
    """The loss of every optimiser step until it rises too far, and whether it did."""
    with prepared_fit(settings, state, context) as begun:
        context.progress.begin(f"{context.name}, rates", bounds.steps)
        found, diverged = climb(begun, bounds.rates(), context.progress)
        context.progress.end()
    return found, diverged


def climb(begun: PreparedFit, rates: list[float], progress: Progress) -> tuple[list[float], bool]:
    """Take an optimiser step at each of these rates, as training takes them, and give the losses."""
    job, course, machine = begun.task, begun.config, begun.machine
    top = max(group["top_lr"] for group in job.optimizer.param_groups)
    answered = EpochLogits.empty(len(job.source.ids), course.width)
    forward = machine.wrap(job.network)
    losses: list[float] = []
    mean = lowest = 0.0
    with torch.random.fork_rng(devices=machine.seeded_devices):
        job.to_training_mode()
        for done, (lr, (epoch, rows)) in enumerate(zip(rates, _showings(begun), strict=False)):
            set_rate(job.optimizer, lr / top)
            torch.manual_seed(course.seed + done)  # for dropout
            nothing = [0.0] * len(job.objective.losses)
            fit_state = FitState(epoch=epoch, batch=done, sums=list(nothing), counts=list(nothing))
            try:
                optimizer_step(job, course, fit_state, machine, forward, rows, answered)
            except DivergedError:
                return losses, True
            both = torch.tensor([fit_state.sums, fit_state.counts], dtype=torch.float64)
            losses.append(float(job.objective.mean(both[0], both[1])))
            progress.advance(1, {"lr": lr, "loss": losses[-1]})
            mean = RUNNING * mean + (1 - RUNNING) * losses[-1]
            now = mean / (1 - RUNNING ** (done + 1))  # without the 0 that it began with (Kingma & Ba 2015, section 3)
            lowest = now if done == 0 else min(lowest, now)
            if done >= FEWEST // 2 and now > DIVERGED * lowest:
                return losses, True
    return losses, False


def _showings(begun: PreparedFit) -> Iterator[tuple[int, Ints]]:
    """The rows of one optimiser step after the other, epoch after epoch."""
    for epoch in count():
        for rows in split_batches(begun.task.order.rows(epoch), begun.config.step_size):
            yield epoch, rows


def smoothed(losses: list[float]) -> Doubles:
    """The losses (N,) under a bell as wide as a share of the curve, so that nothing is moved along it."""
    found: Doubles = gaussian_filter1d(np.array(losses, np.float64), _bell(len(losses)), mode="reflect")
    return found


def suggest(rates: list[float], losses: list[float], *, diverged: bool) -> Suggestion:
    """The rate at which the smoothed loss falls fastest before it is lowest; none where it does not truly fall.

    A fall counts if it is larger than what chance does to a mean over the bell.
    """
    if len(losses) < FEWEST // 2:
        return _none(f"the loss rose too far after {len(losses)} optimiser steps, so nothing is seen: lower --lowest")
    curve, width = smoothed(losses), _bell(len(losses))
    bottom = int(curve.argmin())
    if curve[: bottom + 1].max() - curve[bottom] < SURE * _error(losses, bottom, width):
        return _none(
            "at no rate does the loss fall by more than chance: the model may know these labels already, or more "
            "--optimizer-steps may show it"
        )
    begins = min(round(width), bottom)  # within the bell of its end, the curve is flat by the way it is made
    slope = np.gradient(curve, np.log10(rates))
    steepest = rates[begins + int(slope[begins : bottom + 1].argmin())]
    if bottom >= len(losses) - 1 - round(width) and not diverged:
        return _none("the loss still falls at the highest rate: raise --highest", steepest)
    lowest = rates[bottom]
    said = f"the loss falls fastest at {steepest:.2g}; a tenth of the rate at the lowest loss is {lowest / 10:.2g}"
    apart = max(steepest / (lowest / 10), (lowest / 10) / steepest)
    if apart > FAR:
        said += f", {apart:.0f} times apart: look at the curve before you trust either"
    return Suggestion(steepest, steepest, lowest, said)


def _none(why: str, steepest: float | None = None) -> Suggestion:
    return Suggestion(None, steepest, None, why)


def _error(losses: list[float], bottom: int, width: float) -> float:
    """The standard error of a difference of two places of the smoothed curve, up to where it is lowest."""
    before = losses[: max(bottom + 1, FEWEST // 2)]
    noise = float(np.std(np.diff(before))) / np.sqrt(2)  # of one loss, whatever the curve does
    return float(noise / np.sqrt(2 * np.sqrt(np.pi) * width) * np.sqrt(2))


def _bell(count: int) -> float:
    return max(1.0, WIDTH * count)
