"""What a fit is told: what is trained, on what, for how long; and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from assay.training.checkpoint import Tensors
from assay.training.machine import Machine
from assay.training.objective import Objective, Truth
from assay.training.order import Order, Rows
from assay.training.schedules import AnySchedule


@dataclass(frozen=True)
class Batch:
    """What a network is shown at once, and what is known of it."""

    inputs: Tensor  # (B, ...)
    known: tuple[Truth, ...]  # one; of mixed pictures two, in their shares


class Source(Protocol):
    """The training pictures (or their features), by row; a source may mix each with its partner."""

    @property
    def ids(self) -> list[str]:
        """The pictures, in the order of their rows."""

    def batch(self, epoch: int, rows: Rows, partners: Rows) -> Batch:
        """What the network is shown of these rows in this epoch."""

    def counts(self, epoch: int, rows: Rows, partners: Rows) -> Tensor:
        """The weight (H,) of what is known of that batch."""


class Unlabelled(Protocol):
    """Pictures with unknown labels, from which every optimiser step learns too."""

    @property
    def above_threshold(self) -> float:
        """The share of those shown in this epoch that had an answer to learn from."""

    def losses(self, count: int, forward: nn.Module, machine: Machine) -> Iterator[tuple[Tensor, list[str]]]:
        """What they add beside `count` labelled pictures: losses to follow one by one, each with its pictures."""

    def end_epoch(self) -> dict[str, float]:
        """Figures of the epoch, which is over."""

    def state(self) -> Tensors:
        """What goes into a checkpoint."""

    def restore(self, state: Tensors) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and how it is judged."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    source: Source
    order: Order  # of the source's pictures
    objective: Objective
    to_training_mode: Callable[[], None]
    evaluate: Callable[[Rows, Tensor], dict[str, dict[str, float]]]  # pictures shown, logits -> part -> figure -> value
    save: Callable[[Literal["best", "last"]], None]  # the network as it is
    unlabelled: Unlabelled | None = None
    mixed: float = 1.0  # share of an optimiser step's pictures that have another one for a partner


@dataclass(frozen=True)
class Course:
    """How long and how fast."""

    epochs: int
    batch: int
    seed: int
    width: int  # of the logits
    schedule: AnySchedule
    monitor: str
    higher_is_better: bool
    accumulate: int = 1  # forward passes an optimiser step
    clip: float | None = None
    ema: float | None = None
    patience: int | None = None
    save_every: float = 20.0  # seconds

    @property
    def step_size(self) -> int:
        """Pictures an optimiser step, at most."""
        return self.batch * self.accumulate


@dataclass
class Progress:
    """How far a fit has come; all of it is in the checkpoint."""

    epoch: int = 0
    batch: int = 0  # optimiser steps done in this epoch
    sums: list[float] = field(default_factory=list)  # a head, of this epoch: what its losses add up to
    counts: list[float] = field(default_factory=list)  # and over how much
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
