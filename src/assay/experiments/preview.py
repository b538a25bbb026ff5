"""plan: what a plan will do, before it is carried out, in images and in metrics; no run is left behind."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from assay.experiments.augmented_samples import write_sample_sheets
from assay.experiments.dry_run import Counts, StepEstimate, estimate_steps, preparing_seconds, with_largest_batches
from assay.experiments.rehearsal import FEW, FURTHER, Rehearsal, Tried, thinned, walk
from assay.experiments.stopwatch import Stopwatch
from assay.experiments.timeline import Span, fits, rates, spans
from assay.labels.samples import Samples
from assay.models.classifier import build_classifier
from assay.models.layer_table import Layer, layers
from assay.plan.defaults import DEFAULT_SIZE
from assay.plan.plan import LoadedPlan, Plan
from assay.progress import Progress
from assay.run.environment import lock
from assay.run.prepare import PreparedRun, prepare_run
from assay.steps import check_steps
from assay.steps.base import StepPlan, steps_below
from assay.steps.ensemble_members import first_input_size
from assay.steps.fit_settings import FitSettings
from assay.training.devices import SingleProcess, keep_freed_memory, pick_device


@dataclass(frozen=True)
class Preview:
    """What a plan will do."""

    steps: tuple[StepEstimate, ...]
    counts: Mapping[str, int]  # images by part
    preparing: float  # seconds of reading and decoding
    layers: tuple[Layer, ...]
    rates: pl.DataFrame  # of all fits, as `timeline.rates` gives them
    spans: tuple[Span, ...]
    images: tuple[Path, ...]  # sheets of augmented samples

    @property
    def seconds(self) -> float:
        """Of all, as far as they are known; the metrics and the report at the end are not in it."""
        return self.preparing + sum(step.seconds or 0.0 for step in self.steps)

    @property
    def memory(self) -> float | None:
        """The most MiB that a step holds."""
        known = [step.memory for step in self.steps if step.memory is not None]
        return max(known) if known else None

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": [step.to_json() for step in self.steps],
            "counts": dict(self.counts),
            "preparing seconds": round(self.preparing, 1),
            "seconds": round(self.seconds, 1),
            "memory MiB": None if self.memory is None else round(self.memory, 1),
            "layers": [layer.to_json() for layer in self.layers],
        }


def preview(
    loaded: LoadedPlan,
    out: Path,
    *,
    with_layers: bool = False,
    memory: tuple[str, float] | None = None,
    device: str | None = None,
    progress: Progress,
) -> Preview:
    """Rehearse a plan on few images, in a place that is thrown away, and write its images to `out`.

    `memory` is an amount as it was said, and in MiB. Raises AssayError for what would stop the run too, as far as it
    shows, and where not even a batch of one image fits into the memory.
    """
    keep_freed_memory()  # as a run does: it decides both time and memory
    with tempfile.TemporaryDirectory(prefix="assay-plan-") as scratch:
        timed = Stopwatch()
        began = time.perf_counter()
        opened = prepare_run(
            loaded,
            Path(scratch),
            together=SingleProcess(),
            device=pick_device(device),
            progress=timed,
            prepared=_sample,
        )
        seconds = time.perf_counter() - began
        check_steps(opened.plan.steps, opened.samples.space)
        progress.line(f"rehearsing on a few of {len(opened.samples):,} images")
        rehearsal = _rehearsal(opened)
        tried = rehearsal()
        counts = Counts.of(opened.state.samples, rehearsal.some, len(opened.prepared))
        steps = estimate_steps(opened, tried, counts)
        if memory is not None:
            progress.line(f"trying batches for {memory[0]}")
            steps = with_largest_batches(rehearsal, steps, memory[1], said=memory[0])
        with lock(out, option="--out"):  # which also says that what lies there is no data
            sheets = tuple(write_sample_sheets(opened, tried, out))
        return Preview(
            steps,
            {part: len(opened.samples.part(part)) for part in ("train", "val", "test")},
            preparing_seconds(timed.events, counts, seconds),
            tuple(_layers(opened)) if with_layers else (),
            *_timeline(steps, tried),
            sheets,
        )


def _sample(samples: Samples, plan: Plan) -> Samples:
    """The images to be decoded: the most that a rehearsal looks at."""
    return thinned(samples, train=FURTHER * _train(plan.steps), seed=plan.seed)


def _rehearsal(opened: PreparedRun) -> Rehearsal:
    readable, plan = set(opened.prepared.ids), opened.plan
    known = opened.state.samples
    decoded = known.take([row for row, name in enumerate(known.ids) if name in readable])
    size = _train(plan.steps)
    some, more = (thinned(decoded, train=train, seed=plan.seed) for train in (size, FURTHER * size))
    return Rehearsal(opened, some, more)


def _train(steps: Sequence[StepPlan]) -> int:
    """Labelled training images of a rehearsal: two optimiser steps of every fit."""
    every = [step.settings for top in steps for step in (top, *steps_below(top.settings))]
    return max([FEW, *(2 * one.batch * one.accumulate for one in every if isinstance(one, FitSettings))])


def _timeline(steps: Sequence[StepEstimate], tried: Sequence[Tried]) -> tuple[pl.DataFrame, tuple[Span, ...]]:
    found = fits(steps, {one.name: one.step for one in walk(tried)})
    return rates(found), tuple(spans(steps, found))


def _layers(opened: PreparedRun) -> Iterator[Layer]:
    """The layers of the network that the plan begins with, at the size of the first step that looks at images."""
    plan, context = opened.plan, opened.context
    size, _ = first_input_size(plan.steps, context.base) or (DEFAULT_SIZE, None)
    settings = plan.model.without_weights()
    network = build_classifier(settings, opened.samples.space, seed=plan.seed, base=context.base, size=size)
    yield from layers(network, size=size)
