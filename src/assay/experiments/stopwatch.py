"""When what happened: a watch that keeps the times of all it is told, and what they say of a fit's pace."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from assay.progress import NoProgress


@dataclass(frozen=True)
class Event:
    """Something that a watch was told, and when, in seconds from any beginning."""

    at: float
    kind: Literal["begin", "advance", "line", "end"]
    what: str = ""
    count: int = 0


class Stopwatch(NoProgress):
    """Keeps all events, and hands the lines on to nobody."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def begin(self, what: str, total: int) -> None:
        self.events.append(Event(time.perf_counter(), "begin", what, total))

    def advance(self, count: int, metrics: Mapping[str, float] | None = None) -> None:
        self.events.append(Event(time.perf_counter(), "advance", count=count))

    def line(self, text: str) -> None:
        self.events.append(Event(time.perf_counter(), "line", text))

    def end(self) -> None:
        self.events.append(Event(time.perf_counter(), "end"))


@dataclass(frozen=True)
class Stage:
    """A stage of work: how many images it was of, and its seconds."""

    what: str
    images: int
    seconds: float


@dataclass(frozen=True)
class Pace:
    """Of a fit: the seconds of an optimiser step once it is warm, of the end of an epoch, and how many there were."""

    step: float
    epoch_end: float
    steps: int
    epochs: int

    @property
    def seconds(self) -> float:
        """What all its steps and ends of epochs take at this pace."""
        return self.steps * self.step + self.epochs * self.epoch_end


def stages(events: Sequence[Event], name: str = "") -> list[Stage]:
    """The stages whose name begins with `name`, in the order of their ends; stages may nest."""
    found, open_ = [], []
    for event in events:
        if event.kind == "begin":
            open_.append(event)
        elif event.kind == "end" and open_:
            begun = open_.pop()
            if begun.what.startswith(name):
                found.append(Stage(begun.what, begun.count, event.at - begun.at))
    return found


def pace(events: Sequence[Event], name: str) -> Pace | None:
    """The pace of the fit `name`, of at least two epochs, whose optimiser steps advance the watch; None: there is none.

    The first step of an epoch follows a checkpoint and is left out, the very first one warms up besides; where an
    epoch has one step only, it is that of later epochs.
    """
    epochs = _epochs(events, name)
    if len(epochs) < 2:
        return None
    within = [after - before for steps, _ in epochs for before, after in pairwise(steps)]
    firsts = [steps[0] - over for (_, over), (steps, _) in pairwise(epochs)]
    step = median(within or firsts)
    ends = median(over - steps[-1] for steps, over in epochs)
    return Pace(step, ends + max(0.0, median(firsts) - step), sum(len(steps) for steps, _ in epochs), len(epochs))


def _epochs(events: Sequence[Event], name: str) -> list[tuple[list[float], float]]:
    """Of every epoch the times at which its optimiser steps ended, and its own end."""
    found: list[tuple[list[float], float]] = []
    steps: list[float] = []
    inside = False
    for event in events:
        if event.kind == "begin":
            inside = event.what == name
        elif inside and event.kind == "advance":
            steps.append(event.at)
        elif inside and event.kind == "line" and steps:
            found.append((steps, event.at))
            steps = []
    return found
