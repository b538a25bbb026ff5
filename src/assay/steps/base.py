"""What goes from step to step, and what a step may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field, SerializationInfo, SerializeAsAny, model_serializer, model_validator

from assay.files import RunFolder, StepFolder, StepName, whole
from assay.images.cache import Cache, append_images
from assay.images.decode import Resize
from assay.labels.edits import Edit
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.metrics.metrics import higher_is_better
from assay.models.classifier import ModelSettings
from assay.progress import Progress
from assay.settings import Settings
from assay.training.devices import Hardware, Processes


@dataclass(frozen=True)
class State:
    """What a step is given, and what it hands on."""

    samples: Samples  # as read, with the edits of a person and of the steps done
    model: Path | None  # a folder written by `Saved.save`; None before the first step
    key: str  # of all that led here
    done: tuple[str, ...] = ()  # names of the steps whose edits the samples have
    soft: Mapping[str, Path] = field(default_factory=dict)  # by head, the file of the soft targets of its pseudo-labels


@dataclass(frozen=True)
class Context:
    """Where a step works and with what; only the model, the seed and the number decide the outcome."""

    run: RunFolder
    folder: StepFolder
    name: StepName  # 02-fit
    number: int  # of the step within its list; draws of different steps differ by it
    model: ModelSettings
    base: Path  # what paths in the plan are relative to
    seed: int
    device: str
    pinned: Hardware | None
    processes: Processes
    as_read: Samples  # before any edit
    ledger: Path  # of the run
    images: Callable[[int, Resize], Cache]  # of a size; they hold all images, added ones too
    progress: Progress
    run_steps: Callable[[Sequence[Any], State, Context], State]
    left: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"val": (), "test": ()})
    """By part, the ids of the images that a source of the plan was trained on, and which left it."""

    def for_round(self, number: int) -> Context:
        """The same, for one round of a repeated list of steps."""
        return self.for_part(f"round-{number}", number)

    def for_part(self, name: str, number: int) -> Context:
        """The same, for one of several parts of a step, in a folder of its own."""
        folder, draws = StepFolder(self.folder.path / name), 100 * self.number + number
        return replace(self, folder=folder, name=self.name.part(name), number=draws)


@dataclass(frozen=True)
class StepList:
    """Steps to be carried out, on what, where, and how often."""

    steps: Sequence[StepPlan]
    state: State
    context: Context
    rounds: int = 1


@dataclass(frozen=True)
class Step:
    """A kind of step: its settings, and how it is carried out."""

    settings: type[Settings]
    run: Callable[[Any, State, Context], StepResult]
    on_every_process: bool = False  # else the main process runs it and the others wait
    relabels: bool = False  # whether it may propose edits
    computes: Callable[[Any], bool] = lambda settings: False  # by a network, on the hardware that a plan may pin
    check: Callable[[Any, LabelSpace], None] | None = None  # of its settings, before any step of its list is run
    inner: Callable[[Any], Sequence[str]] = lambda settings: ()  # folders in it whose steps have keys of their own
    holds: Callable[[Any, State, Context], Iterable[StepList]] = lambda *given: ()  # steps that it carries out


@dataclass(frozen=True)
class StepResult:
    """What a step made: the state to hand on, and metrics for its done.json.

    `edits` are proposed: what a person undid or corrected is left out of them. `hands_on_labels` is false where
    what the steps under this one did to labels ends with it; `labels_of` names those steps under it whose labels are
    handed on, where it is not all of them. `soft` are the soft targets from here on; None: those of before.
    """

    model: Path | None
    details: dict[str, Any] | None = None
    edits: Sequence[Edit] = ()
    hands_on_labels: bool = True
    labels_of: Sequence[str] | None = None
    soft: Mapping[str, Path] | None = None


# A step as a plan says it, and the step that holds others.


class StepPlan(Settings):
    """One entry of `steps`: the kind of step, and its settings. Written as one key: `fit: {epochs: 8}`."""

    kind: str
    settings: SerializeAsAny[Settings]

    @model_serializer
    def _as_one_key(self, info: SerializationInfo) -> dict[str, Any]:
        mode = "json" if info.mode_is_json() else "python"
        return {self.kind: self.settings.model_dump(mode=mode)}


class RepeatSettings(Settings):
    """Carry out the same steps several times, each round from what the last one left."""

    times: int = Field(ge=1, description="Rounds.")
    steps: tuple[StepPlan, ...] = Field(min_length=1, description="The steps of a round, in order.")
    only_if_better: bool = Field(
        False, description="End with the first round that does not better validation, and hand on what was before it."
    )
    metric: str | None = Field(
        None, description="The validation metric that tells; default: accuracy, or micro F1 where all heads are tags."
    )

    @model_validator(mode="after")
    def _comparable(self) -> RepeatSettings:
        if self.metric is not None:
            if not self.only_if_better:
                raise ValueError("metric tells whether a round is better; set only_if_better: true, or drop metric")
            higher_is_better(self.metric)
        return self


def steps_within(settings: Settings) -> tuple[StepPlan, ...]:
    """The steps that a step holds: its own list, and those of its members."""
    own: tuple[StepPlan, ...] = getattr(settings, "steps", ())
    members: tuple[Settings, ...] = getattr(settings, "members", ())
    return (*own, *(step for member in members for step in steps_within(member)))


def steps_below(settings: Settings) -> Iterator[StepPlan]:
    """All steps that a step holds, at any depth, in order."""
    for step in steps_within(settings):
        yield step
        yield from steps_below(step.settings)


# Images that steps added to those read, seen like any other by whatever asks for images.


def with_synthetic_images(context: Context, samples: Samples) -> Context:
    """The same context, whose images are those of these samples: those read, and those added since."""
    known = set(context.as_read.ids)
    added = samples.take(np.array([row for row, name in enumerate(samples.ids) if name not in known], dtype=np.int64))
    if len(added) == 0:
        return context

    def images(size: int, resize: Resize) -> Cache:
        cache = context.images(size, resize)
        missing = [row for row, name in enumerate(added.ids) if name not in cache.rows]
        rest = added.take(np.array(missing, dtype=np.int64))
        if len(rest) == 0:
            return cache
        return append_images(cache, rest.ids, rest.paths, size=size, folder=context.run.cache)

    return replace(context, images=images)


# The metrics of every epoch, a row a metric.

HISTORY_COLUMNS = {
    "step": pl.String,
    "epoch": pl.Int64,
    "part": pl.String,
    "name": pl.String,
    "value": pl.Float64,
    "best": pl.Boolean,
}


def write_history(path: Path, step: str, epochs: list[dict[str, Any]]) -> None:
    """Write a fit's history as CSV; `best` is true in the epoch that validation chose."""
    best = max((row["epoch"] for row in epochs if row["best"]), default=0)
    rows = [
        (step, row["epoch"], part, name, value, row["epoch"] == best)
        for row in epochs
        for part, metrics in [
            ("training", row["training"] | {"lr": row["lr"], "seconds": row["seconds"]}),
            ("validation", row["validation"]),
            ("unlabelled", row.get("unlabelled", {})),
        ]
        for name, value in metrics.items()
    ]
    with whole(path) as beside:
        pl.DataFrame(rows, schema=HISTORY_COLUMNS, orient="row").write_csv(beside)


def read_history(path: Path) -> pl.DataFrame:
    """Read what `write_history` wrote."""
    return pl.read_csv(path, schema_overrides=HISTORY_COLUMNS)
