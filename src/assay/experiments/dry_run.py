"""What a plan will do: its optimiser steps and rates, parameters, and the time and memory that its steps will take.

Time is reckoned from a rehearsal on few images: what a step did there as often as it will be done, an optimiser step
at the pace of a warm one, a pass over images by what a further image took, and what is done once as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from assay.errors import PlanError
from assay.experiments.peak import Point, largest_batch, needed
from assay.experiments.rehearsal import Rehearsal, Tried, shortened, thinned, walk
from assay.experiments.stopwatch import Event, pace, stages
from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.run.prepare import PreparedRun
from assay.steps.base import StepPlan
from assay.steps.fit_settings import FitSettings, sampling_plan
from assay.steps.generated_images import SynthesizeSettings
from assay.steps.repeat import RepeatSettings
from assay.training.sampling import split_batches

PREPARING, FEATURES = "images at ", "features"
RELABELS = "pseudo_label"


@dataclass(frozen=True)
class Length:
    """How long a fit is: epochs, optimiser steps of one, and images that one shows."""

    epochs: int
    per_epoch: int
    images: int

    @property
    def steps(self) -> int:
        """Optimiser steps of the fit."""
        return self.epochs * self.per_epoch


@dataclass(frozen=True)
class StepEstimate:
    """What is foreseen of a step; `rounds` times, where a step that holds it repeats it."""

    name: str
    kind: str
    seconds: float | None  # of one time, with the steps that it holds; None where it could not be tried
    memory: float | None  # MiB
    length: Length | None = None  # of a fit
    parameters: int | None = None
    trainable: int | None = None
    largest_batch: int | None = None
    at_most: bool = False
    problem: str = ""
    rounds: int = 1
    inner: tuple[StepEstimate, ...] = ()

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        found["inner"] = [one.to_json() for one in self.inner]
        found["seconds"], found["memory MiB"] = _rounded(self.seconds, 3), _rounded(found.pop("memory"), 1)
        if self.length is not None:
            found["length"] |= {"optimizer_steps": self.length.steps}
        return found

    def walk(self) -> Iterator[StepEstimate]:
        """The step and all that it holds, in order."""
        yield self
        for one in self.inner:
            yield from one.walk()


@dataclass(frozen=True)
class Counts:
    """Images of all the data, and of the sample rehearsed with."""

    prepared: float  # of all images, how many times those that were decoded
    labelled: tuple[int, int]
    training: tuple[int, int]
    validation: tuple[int, int]

    @staticmethod
    def of(everything: Samples, some: Samples, decoded: int) -> Counts:
        def sizes(part: str, *, known: bool = True) -> tuple[int, int]:
            found = [one.part(part) for one in (everything, some)]
            whole, sample = (len(labelled(one)) if known else len(one) for one in found)
            return whole, sample

        return Counts(len(everything) / decoded, sizes("train"), sizes("train", known=False), sizes("val"))


def estimate_steps(opened: PreparedRun, tried: Sequence[Tried], counts: Counts) -> tuple[StepEstimate, ...]:
    """What the steps that were rehearsed will take on all images."""
    return tuple(_foreseen(opened, one, counts) for one in tried)


def _foreseen(opened: PreparedRun, tried: Tried, counts: Counts) -> StepEstimate:
    inner = tuple(_foreseen(opened, one, counts) for one in tried.inner)
    times = _times(tried.step)
    inner = tuple(replace(one, rounds=times) for one in inner)
    settings: Any = tried.step.settings
    at_most = getattr(settings, "only_if_better", False) or any(one.at_most for one in inner)
    found = StepEstimate(tried.name, tried.step.kind, None, None, problem=tried.problem, inner=inner)
    if isinstance(settings, FitSettings):
        found = replace(found, length=length_of(opened, tried, counts))
        at_most = settings.early_stop is not None or _labels_are_added(tried)
    if tried.problem:
        return replace(found, at_most=at_most)
    own = _seconds(tried, found.length, counts)
    held = [one.seconds for one in inner]
    return replace(
        found,
        seconds=own + times * sum(one or 0.0 for one in held),
        memory=max([_memory(tried, counts), *(one.memory or 0.0 for one in inner)]),
        parameters=tried.sizes.parameters if tried.sizes else None,
        trainable=tried.sizes.trainable if tried.sizes else None,
        at_most=at_most,
    )


def _times(step: StepPlan) -> int:
    settings = step.settings
    if isinstance(settings, RepeatSettings):
        return settings.times
    return settings.seeds if isinstance(settings, SynthesizeSettings) else 1


def length_of(opened: PreparedRun, tried: Tried, counts: Counts) -> Length:
    """The epochs and optimiser steps of a fit on all images.

    After steps that answer unknown labels, as if they answered all; in a question of a tree, by its share of the
    sample.
    """
    settings = tried.step.settings
    assert isinstance(settings, FitSettings)
    everything = opened.state.samples
    if tried.state.samples.space == everything.space:
        train = labelled(everything.part("train"))
        images = sampling_plan(settings, train, seed=0).order.length
        if _labels_are_added(tried):
            images = round(images * counts.training[0] / max(len(train), 1))
    else:
        own = tried.shown or len(labelled(tried.state.samples.part("train")))
        images = round(own * counts.labelled[0] / max(counts.labelled[1], 1))
    size = settings.batch * settings.accumulate
    return Length(settings.epochs, len(split_batches(np.arange(images), size)), images)


def _labels_are_added(tried: Tried) -> bool:
    return any(RELABELS in name for name in tried.state.done)


def _seconds(tried: Tried, length: Length | None, counts: Counts) -> float:
    """Of the step itself, without those that it holds."""
    preparing = sum(one.seconds for one in stages(tried.events, PREPARING))
    seconds = tried.seconds + preparing * (counts.prepared - 1)
    if length is not None:
        return fit_seconds(tried, seconds, length, counts)
    if isinstance(tried.step.settings, SynthesizeSettings):
        learning = sum(one.seconds for one in stages(tried.events, tried.name))
        done = sum(one.images for one in stages(tried.events, tried.name))
        settings = tried.step.settings
        return seconds + learning * (settings.optimizer_steps * settings.batch / max(done, 1) - 1)
    return seconds + tried.grows[0] * _further(counts)


def fit_seconds(tried: Tried, seconds: float, length: Length, counts: Counts) -> float:
    """A fit of some length, from what it took when it was short: `seconds`."""
    found = pace(tried.events, tried.name)
    if found is None:
        return seconds
    validation = tried.answering * (counts.validation[0] - counts.validation[1])
    passes = stages(tried.events, FEATURES)
    done = sum(one.images for one in passes)
    views = getattr(tried.step.settings, "views", 1)
    wanted = views * counts.labelled[0] + counts.validation[0]
    looked_at = sum(one.seconds for one in passes) * (max(wanted / done, 1.0) - 1) if done else 0.0
    once = seconds - found.seconds
    return once + looked_at + length.steps * found.step + length.epochs * (found.epoch_end + validation)


def _memory(tried: Tried, counts: Counts) -> float:
    return tried.memory + tried.grows[1] * _further(counts)


def _further(counts: Counts) -> int:
    """Images of all the data beyond those of the sample."""
    return sum(whole - some for whole, some in (counts.training, counts.validation))


def preparing_seconds(events: Sequence[Event], counts: Counts, whole: float) -> float:
    """The seconds of reading and decoding all images, from those (`whole`) in which some were decoded."""
    return whole + sum(one.seconds for one in stages(events, PREPARING)) * (counts.prepared - 1)


def with_largest_batches(
    rehearsal: Rehearsal, steps: Sequence[StepEstimate], memory: float, *, said: str
) -> tuple[StepEstimate, ...]:
    """The same, with the largest batch of every fit that trains on images for which `memory` MiB suffice.

    Raises PlanError where a batch of one image is too large.
    """
    known = {one.name: one for one in walk(rehearsal.found)}

    def of(step: StepEstimate) -> StepEstimate:
        found = replace(step, inner=tuple(map(of, step.inner)))
        tried = known[step.name]
        settings = tried.step.settings
        if not isinstance(settings, FitSettings) or settings.freeze == "backbone" or tried.problem:
            return found
        points = measured_batches(rehearsal, tried, settings)
        assert step.length is not None
        most = largest_batch(points, memory, most=step.length.images)
        if most == 0:
            raise PlanError(
                f"--memory {said}: {step.name}: not even a batch of 1 fits, which needs some "
                f"{needed(points, 1):,.0f} MiB. Lower its size, freeze more, or give more memory."
            )
        return replace(found, largest_batch=most)

    return tuple(map(of, steps))


def measured_batches(rehearsal: Rehearsal, tried: Tried, settings: FitSettings) -> tuple[Point, Point]:
    """What a fit holds with its own batch, and with half of it, or twice where it is of one or two."""
    other = settings.batch // 2 if settings.batch > 2 else 2 * settings.batch
    first, second = (_held(rehearsal, tried, settings, batch) for batch in (settings.batch, other))
    return first, second


def _held(rehearsal: Rehearsal, tried: Tried, settings: FitSettings, batch: int) -> Point:
    """One optimiser step an epoch, in two epochs: in the second the optimiser has its own numbers beside the rest."""
    samples = thinned(tried.state.samples, train=batch, seed=tried.context.seed)
    batch = min(batch, len(labelled(samples.part("train"))))
    step = shortened(tried.step)
    changed = step.settings.model_copy(update={"batch": batch, "accumulate": 1})
    _, memory = rehearsal.again(tried, samples, step.model_copy(update={"settings": changed}))
    return batch, memory


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
