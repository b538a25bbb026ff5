"""plan: what a plan will do, before it is carried out, in pictures and in figures; no run is left behind."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.default_plan import SIZE
from assay.evidence.charts import save
from assay.evidence.rates import over_plan
from assay.labels.samples import Samples
from assay.lock import lock
from assay.models.classifier import build_classifier
from assay.models.layer_table import Layer, layers
from assay.opening import Opened, open_plan
from assay.plan import LoadedPlan, Plan
from assay.progress import Watch
from assay.steps import STEPS
from assay.steps.fit_settings import FitSettings
from assay.steps.members import first_shown
from assay.steps.plans import StepPlan, steps_below
from assay.studies.foresight import Counts, Foreseen, foreseen, preparing_seconds, with_largest_batches
from assay.studies.rehearsal import FEW, FURTHER, Rehearsal, Tried, thinned, walk
from assay.studies.shown import write_sheets
from assay.studies.stopwatch import Stopwatch
from assay.studies.timeline import fits, rates, spans
from assay.training.hardware import keep_freed_memory, pick_device
from assay.training.processes import Alone

CHART = "schedule.png"


@dataclass(frozen=True)
class Preview:
    """What a plan will do."""

    steps: tuple[Foreseen, ...]
    counts: Mapping[str, int]  # pictures by part
    preparing: float  # seconds of reading and decoding
    layers: tuple[Layer, ...]
    pictures: tuple[Path, ...]

    @property
    def seconds(self) -> float:
        """Of all, as far as they are known; the figures and the report at the end are not in it."""
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
            "pictures": [str(path) for path in self.pictures],
        }


def preview(
    loaded: LoadedPlan,
    out: Path,
    *,
    with_layers: bool = False,
    memory: tuple[str, float] | None = None,
    device: str | None = None,
    watch: Watch,
) -> Preview:
    """Rehearse a plan on few pictures, in a place that is thrown away, and write its pictures to `out`.

    `memory` is an amount as it was said, and in MiB. Raises AssayError for what would stop the run too, as far as it
    shows, and where not even a batch of one picture fits into the memory.
    """
    keep_freed_memory()  # as a run does: it decides both time and memory
    with tempfile.TemporaryDirectory(prefix="assay-plan-") as scratch:
        timed = Stopwatch()
        began = time.perf_counter()
        opened = open_plan(
            loaded, Path(scratch), together=Alone(), device=pick_device(device), watch=timed, prepared=_sample
        )
        seconds = time.perf_counter() - began
        _check(opened.plan.steps, opened.samples)
        watch.line(f"rehearsing on a few of {len(opened.samples):,} pictures")
        rehearsal = _rehearsal(opened)
        tried = rehearsal()
        counts = Counts.of(opened.state.samples, rehearsal.some, len(opened.prepared))
        steps = foreseen(opened, tried, counts)
        if memory is not None:
            watch.line(f"trying batches for {memory[0]}")
            steps = with_largest_batches(rehearsal, steps, memory[1], said=memory[0])
        with lock(out, option="--out"):  # which also says that what lies there is no data
            drawn = (_chart(out, steps, tried), *write_sheets(opened, tried, out))
        return Preview(
            steps,
            {part: len(opened.samples.part(part)) for part in ("train", "val", "test")},
            preparing_seconds(timed.events, counts, seconds),
            tuple(_layers(opened)) if with_layers else (),
            drawn,
        )


def _sample(samples: Samples, plan: Plan) -> Samples:
    """The pictures to be decoded: the most that a rehearsal looks at."""
    return thinned(samples, train=FURTHER * _train(plan.steps), seed=plan.seed)


def _rehearsal(opened: Opened) -> Rehearsal:
    readable, plan = set(opened.prepared.ids), opened.plan
    known = opened.state.samples
    decoded = known.take([row for row, name in enumerate(known.ids) if name in readable])
    size = _train(plan.steps)
    some, more = (thinned(decoded, train=train, seed=plan.seed) for train in (size, FURTHER * size))
    return Rehearsal(opened, some, more)


def _train(steps: Sequence[StepPlan]) -> int:
    """Labelled training pictures of a rehearsal: two optimiser steps of every fit."""
    every = [step.settings for top in steps for step in (top, *steps_below(top.settings))]
    return max([FEW, *(2 * one.batch * one.accumulate for one in every if isinstance(one, FitSettings))])


def _check(steps: Sequence[StepPlan], samples: Samples) -> None:
    """Refuse what would be refused before anything is trained. Raises PlanError."""
    for step in steps:
        if check := STEPS[step.kind].check:
            check(step.settings, samples.space)


def _chart(out: Path, steps: Sequence[Foreseen], tried: Sequence[Tried]) -> Path:
    found = fits(steps, {one.name: one.step for one in walk(tried)})
    (path,) = save(over_plan(rates(found), spans(steps, found)), out / CHART)
    return path


def _layers(opened: Opened) -> Iterator[Layer]:
    """The layers of the network that the plan begins with, at the size of the first step that looks at pictures."""
    plan, context = opened.plan, opened.context
    size, _ = first_shown(plan.steps, context.base) or (SIZE, None)
    settings = plan.model.without_weights()
    network = build_classifier(settings, opened.samples.space, seed=plan.seed, base=context.base, size=size)
    yield from layers(network, size=size)
