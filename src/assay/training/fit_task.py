"""The input of a fit (task and config) and its state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from assay.arrays import Ints
from assay.models.weights import Tensors
from assay.training.objective import Objective, Targets
from assay.training.processes import Machine
from assay.training.sampling import Order
from assay.training.schedules import AnySchedule


@dataclass(frozen=True)
class Batch:
    """The images of one forward pass and their targets."""

    inputs: Tensor  # (B, ...)
    known: tuple[Targets, ...]  # one; of mixed images two, in their shares


class Source(Protocol):
    """The training images, or their features, by row; a source may mix each with its partner."""

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the images, in the order of their rows."""

    def expect(self, epoch: int, batches: Iterable[tuple[Ints, Ints]]) -> None:
        """Take note of the rows and partners of the batches to come: what is decoded as needed is decoded ahead."""

    def batch(self, epoch: int, rows: Ints, partners: Ints) -> Batch:
        """Return the inputs and targets of these rows (B,) in an epoch."""

    def counts(self, epoch: int, rows: Ints, partners: Ints) -> Tensor:
        """Return the summed weight (H,) of the known labels of that batch."""


class Unlabelled(Protocol):
    """Images with unknown labels, from which every optimiser step learns too."""

    @property
    def above_threshold(self) -> float:
        """The share of this epoch's images that had a pseudo-label."""

    def losses(self, count: int, forward: nn.Module, machine: Machine) -> Iterator[tuple[Tensor, list[str]]]:
        """Yield the losses that accompany `count` labelled images, each with the ids of its images."""

    def end_epoch(self) -> dict[str, float]:
        """Return the metrics of the epoch and begin the next."""

    def state(self) -> Tensors:
        """Return the tensors of a checkpoint."""

    def restore(self, state: Tensors) -> None:
        """Continue from the tensors of a checkpoint."""

    def select_all(self) -> None:
        """Give every image a pseudo-label from now on: the slowest case, to be timed."""

    def rewind(self) -> None:
        """Begin the first round over the images again."""


@dataclass(frozen=True)
class FitTask:
    """The network, the images it is trained on, and how it is evaluated and saved."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    source: Source
    order: Order  # of the source's images
    objective: Objective
    to_training_mode: Callable[[], None]
    # rows (M,), logits (M, W) -> part -> metric -> value
    evaluate: Callable[[Ints, Tensor], dict[str, dict[str, float]]]
    save: Callable[[Literal["best", "last"]], None]  # the network as it is
    unlabelled: Unlabelled | None = None
    mixed: float = 1.0  # share of an optimiser step's images that have another one for a partner


@dataclass(frozen=True)
class FitConfig:
    """Length and rate of a fit."""

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
    limit: TimeLimit | None = None  # without one, all epochs are trained
    save_every: float = 20.0  # seconds

    @property
    def step_size(self) -> int:
        """Images an optimiser step, at most."""
        return self.batch * self.accumulate


@dataclass
class FitState:
    """The position of a fit; all of it is in the checkpoint."""

    epoch: int = 0
    batch: int = 0  # optimiser steps done in this epoch
    sums: list[float] = field(default_factory=list)  # a head, of this epoch: what its losses add up to
    counts: list[float] = field(default_factory=list)  # and over how much
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    total: int = 0  # optimiser steps of the whole fit, as far as is known; 0 before the first

    @staticmethod
    def of(heads: int) -> FitState:
        """Return the state of a fit that begins."""
        return FitState(sums=[0.0] * heads, counts=[0.0] * heads)

    def add(self, sums: list[float], counts: list[float]) -> None:
        """Add the loss sums and counts (H,) of a forward pass."""
        self.sums = [total + value for total, value in zip(self.sums, sums, strict=True)]
        self.counts = [total + value for total, value in zip(self.counts, counts, strict=True)]

    def clear_losses(self) -> None:
        """Begin the sums of an epoch."""
        self.sums, self.counts = [0.0] * len(self.sums), [0.0] * len(self.counts)


MOST_LOGITS = 1 << 25
"""Numbers of the mean logits of an epoch, 134 MB; of more images and classes, a random part of the images."""


@dataclass(frozen=True)
class EpochLogits:
    """Mean logits of training images over one epoch, each image counted once however often it was drawn."""

    sums: Tensor  # (n, W) of logits so far
    times: Tensor  # (n,) logits added
    images: Ints  # (n,) in order: all of the N images, or a random part of very many
    count: int  # N

    @staticmethod
    def empty(count: int, width: int) -> EpochLogits:
        kept = min(count, max(1, MOST_LOGITS // max(width, 1)))
        return EpochLogits.of(torch.zeros(kept, width), torch.zeros(kept), count)

    @staticmethod
    def of(sums: Tensor, times: Tensor, count: int) -> EpochLogits:
        """Return sums over the images that are kept of `count`, the same ones each time."""
        every = len(times) == count
        kept = np.arange(count) if every else np.random.default_rng(0).choice(count, len(times), replace=False)
        return EpochLogits(sums, times, np.sort(kept), count)

    def add(self, rows: Ints, logits: Tensor) -> None:
        """Add logits (B, W) of rows (B,), among which an image may be repeated."""
        images, logits = rows % self.count, logits.detach().float().cpu()
        if len(self.images) < self.count:
            at = np.minimum(np.searchsorted(self.images, images), len(self.images) - 1)
            kept = self.images[at] == images
            images, logits = at[kept], logits[torch.from_numpy(kept)]
        self.sums.index_add_(0, torch.from_numpy(images), logits)
        self.times.index_add_(0, torch.from_numpy(images), torch.ones(len(images)))

    def means(self, total: Callable[[Tensor], Tensor]) -> tuple[Ints, Tensor]:
        """Return those of the images that were drawn in the epoch (M,), and their mean logits (M, W).

        `total` adds up the tensors of several processes.
        """
        sums, times = total(self.sums.clone()), total(self.times.clone())
        drawn = times > 0
        return self.images[drawn.numpy()], sums[drawn] / times[drawn, None]

    def clear(self) -> None:
        """Remove all logits."""
        self.sums.zero_()
        self.times.zero_()


# A fit that has to be over in time.


@dataclass(frozen=True)
class TimeLimit:
    """When a fit has to be over, its last validation included: at `end` by `clock`, sooner where its run has less."""

    end: float
    validated: int = 0  # images of a validation
    run_left: Callable[[], float] = lambda: math.inf  # seconds
    clock: Callable[[], float] = time.monotonic

    def left(self, before: float) -> float:
        """Return the seconds left, where `before` were spent by earlier processes."""
        return min(self.end - before - self.clock(), self.run_left())


VALIDATION = 0.4  # of the seconds of training on an image: a forward pass, until a validation has been timed
MEMORY = 30  # optimiser steps over which their mean time is taken


class Pace:
    """The optimiser steps for which the time of a fit suffices, by how long those so far took.

    `left` gives the seconds left; `most` are the steps where time plays no part.
    """

    def __init__(self, left: Callable[[], float], *, most: int, per_epoch: int, validation_steps: float) -> None:
        """`validation_steps` is the length of a validation in optimiser steps, until one has been timed."""
        self._left, self._most, self._per_epoch = left, most, per_epoch
        self._validation_steps, self._validation = validation_steps, 0.0
        self._step, self._steps = 0.0, -1  # the first step, which compiles and reads, is no measure
        self._at = left()

    def total(self, done: int, before: int) -> int:
        """Return the steps of the whole fit, after one more step, `done` in all; `before` is what was returned last."""
        self._steps += 1
        lap = self._lap()
        if not self._steps:
            return before if self._at > 0 else done
        self._step += (lap - self._step) / min(self._steps, MEMORY)
        validation = self._validation or self._validation_steps * self._step
        steps = (self._at - validation) / max(self._step, 1e-9)
        between = (done + max(steps, 0)) // self._per_epoch - done // self._per_epoch  # epochs that end before the last
        return min(self._most, max(done, done + int(steps - between * validation / max(self._step, 1e-9))))

    def validated(self) -> None:
        """Take the time since the last step as that of a validation."""
        self._validation = self._lap()

    def _lap(self) -> float:
        before, self._at = self._at, self._left()
        return before - self._at
