"""Kinds of steps, what goes from one step to the next, and what a step works with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import SerializationInfo, SerializeAsAny, model_serializer

from assay.errors import PlanError
from assay.files import RunFolder, StepFolder, StepName
from assay.images.cache import Cache, append_images
from assay.images.decode import Resize
from assay.images.streamed import StreamedImages
from assay.labels.edits import Edit
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.models.classifier import ModelSettings
from assay.progress import Progress
from assay.settings import Settings
from assay.training.devices import Hardware
from assay.training.processes import Processes


@dataclass(frozen=True)
class State:
    """The labels and the model so far: input of a step, and what it hands on."""

    samples: Samples  # as read, with the edits of a person and of the steps done
    model: Path | None  # a folder written by `TrainedModel.save`; None before the first step that makes one
    key: str  # hash of all that led here
    done: tuple[str, ...] = ()  # names of the steps whose edits the samples have
    soft: Mapping[str, Path] = field(default_factory=dict)  # head -> file of the soft targets of its pseudo-labels


@dataclass(frozen=True)
class Context:
    """Where a step works and with what; its result depends on no more of it than model, seed and number."""

    run: RunFolder
    folder: StepFolder
    name: StepName  # 02-fit
    number: int  # of the step within its list, part of the seed of its draws
    model: ModelSettings
    base: Path  # of relative paths in the plan
    seed: int
    device: str
    pinned: Hardware | None
    processes: Processes
    as_read: Samples  # before any edit
    ledger: Path
    images: Callable[[int, Resize], Cache]  # all images at a size, added ones too
    progress: Progress
    run_steps: Callable[[Sequence[Any], State, Context], State]
    left: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"val": (), "test": ()})
    """By part, the ids of the images that left it since a source of the plan was trained on them."""
    metric: str | None = None  # the headline that the plan asks for, in the lines of steps
    time_left: Callable[[], float] = lambda: math.inf  # seconds until the last step has to be over

    def for_step(self, number: int, kind: str) -> Context:
        """Return the context of step `number`, from 1, of a list: its name, its folder, and the number of its draws.

        Within each list that holds it the number is another: it is part of the seed.
        """
        name = StepName.at(number, kind, self.name)
        return replace(self, folder=StepFolder(self.folder.path / name.last), name=name, number=self._nested(number))

    def for_round(self, number: int) -> Context:
        """Return the context of one round of a repeated list of steps."""
        return self.for_part(f"round-{number}", number)

    def for_part(self, name: str, number: int) -> Context:
        """Return the context of one of several parts of a step, with a folder of that name within its folder."""
        folder = StepFolder(self.folder.path / name)
        return replace(self, folder=folder, name=self.name.part(name), number=self._nested(number))

    def _nested(self, number: int) -> int:
        return 100 * self.number + number


@dataclass(frozen=True)
class StepResult:
    """A model and edits of labels to hand on, and details for done.json.

    `edits` are proposals: those that a person undid or corrected are dropped. Edits by steps within this one are handed
    on if `hands_on_labels`: those of the steps `labels_of`, or of all. `soft` are the files of soft targets from here
    on; None keeps those of before.
    """

    model: Path | None
    details: Mapping[str, Any] | None = None  # JSON
    edits: Sequence[Edit] = ()
    hands_on_labels: bool = True
    labels_of: Sequence[str] | None = None
    soft: Mapping[str, Path] | None = None


# An entry of a plan's list of steps, and the kind of step that it names.


class StepPlan(Settings):
    """One entry of `steps`: the kind of step, and its settings. Written as one key: `fit: {epochs: 8}`."""

    kind: str
    settings: SerializeAsAny[Settings]

    @model_serializer
    def _as_one_key(self, info: SerializationInfo) -> dict[str, Any]:
        mode = "json" if info.mode_is_json() else "python"
        return {self.kind: self.settings.model_dump(mode=mode)}


class StepSettings(Settings):
    """Settings of a kind of step."""

    changes_labels: ClassVar[bool] = False
    """Whether the step proposes edits. Declared here and not on `Step`, since an ensemble refuses such members while a
    plan is parsed, and the list of kinds imports the ensemble."""


def steps_within(settings: Settings) -> tuple[StepPlan, ...]:
    """Return the steps that a step holds: its own list, and those of its members."""
    steps: tuple[StepPlan, ...] = getattr(settings, "steps", ())
    members: tuple[Settings, ...] = getattr(settings, "members", ())
    return (*steps, *(step for member in members for step in steps_within(member)))


def steps_below(settings: Settings) -> Iterator[StepPlan]:
    """Iterate over all steps that a step holds, at any depth, in order."""
    for step in steps_within(settings):
        yield step
        yield from steps_below(step.settings)


def kind_that_changes_labels(settings: Settings) -> str | None:
    """Return the kind of the first step, of those held at any depth, that changes labels; None where none does."""
    changing = (one.kind for one in steps_below(settings) if getattr(one.settings, "changes_labels", False))
    return next(changing, None)


@dataclass(frozen=True)
class StepList:
    """Steps to be run, on what, where, and how often."""

    steps: Sequence[StepPlan]
    state: State
    context: Context
    rounds: int = 1


@dataclass(frozen=True)
class Step:
    """A kind of step: its settings, its function, and what other folders need to know of it."""

    settings: type[StepSettings]
    run: Callable[[Any, State, Context], StepResult]
    purpose: str = ""  # one line, for the report
    report: tuple[str, ...] = ()  # settings that the report lists, the most telling first
    learns: bool = False  # from the labels so far; steps that it holds need not say so again
    needs_model: bool = False  # of a step before it
    edits: Callable[[Any], bool] = lambda settings: bool(settings.changes_labels)  # for a later step to learn from
    repairs: bool = False  # labels, or the weight of classes: an ablation leaves the step out
    on_every_process: bool = False  # else the main process runs it and the others wait
    computes: Callable[[Any], bool] = lambda settings: False  # by a network, on the hardware that a plan may pin
    check: Callable[[Any, LabelSpace], None] | None = None  # of its settings, before any step of its list is run
    checked_within: Callable[[Any], Sequence[StepPlan]] = steps_within  # steps it holds, for images of the same classes
    inner: Callable[[Any], Sequence[str]] = lambda settings: ()  # folders in it whose steps have keys of their own
    holds: Callable[[Any, State, Context], Iterable[StepList]] = lambda *given: ()  # steps that it runs, for a dry run


# Synthetic images, which steps add to those read.


def with_synthetic_images(context: Context, samples: Samples) -> Context:
    """Return the context whose images are those of these samples: those read, and those added since."""
    if samples.table["id"].equals(context.as_read.table["id"]):
        return context
    as_read = set(context.as_read.ids)
    rows = [row for row, image in enumerate(samples.ids) if image not in as_read]
    added = samples.take(np.array(rows, dtype=np.int64))
    if len(added) == 0:
        return context

    def images(size: int, resize: Resize) -> Cache:
        cache = context.images(size, resize)
        missing = [row for row, image in enumerate(added.ids) if image not in cache.rows]
        if not missing:
            return cache
        rest = added.take(np.array(missing, dtype=np.int64))
        require_cache(cache)
        return append_images(cache, rest.ids, rest.paths, size=size, folder=context.run.cache)

    return replace(context, images=images)


def require_cache(images: Cache) -> None:
    """Raise PlanError where there is none that images could be added to."""
    if isinstance(images, StreamedImages):
        raise PlanError("Synthetic images are added to a cache, and these images have none. Raise `cache.limit`.")
