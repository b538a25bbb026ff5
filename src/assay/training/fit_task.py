"""What a fit is told: what is trained, on what, for how long; and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from assay.arrays import Ints
from assay.training.checkpoint import Tensors
from assay.training.devices import Machine
from assay.training.objective import Objective, Targets
from assay.training.sampling import Order
from assay.training.schedules import AnySchedule


@dataclass(frozen=True)
class Batch:
    """What a network is shown at once, and what is known of it."""

    inputs: Tensor  # (B, ...)
    known: tuple[Targets, ...]  # one; of mixed images two, in their shares


class Source(Protocol):
    """The training images (or their features), by row; a source may mix each with its partner."""

    @property
    def ids(self) -> list[str]:
        """The images, in the order of their rows."""

    def batch(self, epoch: int, rows: Ints, partners: Ints) -> Batch:
        """What the network is shown of these rows in this epoch."""

    def counts(self, epoch: int, rows: Ints, partners: Ints) -> Tensor:
        """The weight (H,) of what is known of that batch."""


class Unlabelled(Protocol):
    """Images with unknown labels, from which every optimiser step learns too."""

    @property
    def above_threshold(self) -> float:
        """The share of those shown in this epoch that had an answer to learn from."""

    def losses(self, count: int, forward: nn.Module, machine: Machine) -> Iterator[tuple[Tensor, list[str]]]:
        """What they add beside `count` labelled images: losses to follow one by one, each with its images."""

    def end_epoch(self) -> dict[str, float]:
        """Metrics of the epoch, which is over."""

    def state(self) -> Tensors:
        """What goes into a checkpoint."""

    def restore(self, state: Tensors) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class FitTask:
    """What is trained, on what, and how it is judged."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    source: Source
    order: Order  # of the source's images
    objective: Objective
    to_training_mode: Callable[[], None]
    evaluate: Callable[[Ints, Tensor], dict[str, dict[str, float]]]  # images shown, logits -> part -> metric -> value
    save: Callable[[Literal["best", "last"]], None]  # the network as it is
    unlabelled: Unlabelled | None = None
    mixed: float = 1.0  # share of an optimiser step's images that have another one for a partner


@dataclass(frozen=True)
class FitConfig:
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
        """Images an optimiser step, at most."""
        return self.batch * self.accumulate


@dataclass
class FitState:
    """How far a fit has come; all of it is in the checkpoint."""

    epoch: int = 0
    batch: int = 0  # optimiser steps done in this epoch
    sums: list[float] = field(default_factory=list)  # a head, of this epoch: what its losses add up to
    counts: list[float] = field(default_factory=list)  # and over how much
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0


# What a network said of the training images in an epoch, each counted once however often it was shown.


@dataclass(frozen=True)
class EpochLogits:
    """By image, the sum (N, W) of its logits in this epoch so far, and how many were added (N,)."""

    sums: Tensor
    times: Tensor

    @staticmethod
    def nothing(count: int, width: int) -> EpochLogits:
        return EpochLogits(torch.zeros(count, width), torch.zeros(count))

    def add(self, rows: Ints, logits: Tensor) -> None:
        """Take in logits (B, W) of images, of which one may come twice."""
        images = torch.from_numpy(rows % len(self.times))
        self.sums.index_add_(0, images, logits.detach().float().cpu())
        self.times.index_add_(0, images, torch.ones(len(rows)))

    def means(self, total: Callable[[Tensor], Tensor] = lambda own: own) -> tuple[Ints, Tensor]:
        """The images that were shown (M,), and the mean (M, W) of what was said of each.

        `total` adds up what several processes hold.
        """
        sums, times = total(self.sums.clone()), total(self.times.clone())
        shown = times > 0
        return shown.nonzero()[:, 0].numpy(), sums[shown] / times[shown, None]

    def forget(self) -> None:
        """Begin anew."""
        self.sums.zero_()
        self.times.zero_()
