"""What goes from step to step, and what a step may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from assay.labels.edits import Edit
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.models.classifier import ModelSettings
from assay.pixels.cache import Cache
from assay.pixels.decode import Resize
from assay.progress import Watch
from assay.settings import Settings
from assay.training.hardware import Hardware
from assay.training.processes import Processes

TRIAL = "trial"
"""The folder within a step's for what it tries and does not hand on."""


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

    run: Path
    folder: Path  # of the step
    name: str  # of the step: 02-fit
    number: int  # of the step within its list; draws of different steps differ by it
    model: ModelSettings
    base: Path  # what paths in the plan are relative to
    seed: int
    device: str
    pinned: Hardware | None
    processes: Processes
    as_read: Samples  # before any edit
    ledger: Path  # of the run
    pictures: Callable[[int, Resize], Cache]  # of a size; they hold all pictures, added ones too
    watch: Watch
    run_steps: Callable[[Sequence[Any], State, Context], State]
    left: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"val": (), "test": ()})
    """By part, the ids of the images that a source of the plan was trained on, and which left it."""

    def for_round(self, number: int) -> Context:
        """The same, for one round of a repeated list of steps."""
        return self.for_part(f"round-{number}", number)

    def for_part(self, name: str, number: int) -> Context:
        """The same, for one of several parts of a step, in a folder of its own."""
        place, draws = self.folder / name, 100 * self.number + number
        return replace(self, folder=place, name=f"{self.name}/{name}", number=draws)


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


@dataclass(frozen=True)
class StepResult:
    """What a step made: the state to hand on, and figures for its done.json.

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
