"""What pictures with unknown labels add to every optimiser step: weak views are answered for, strong ones learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from assay.figures.metrics import probabilities_of
from assay.labels.space import Codes
from assay.models.deciding import Deciding
from assay.pixels.augment import Variation, augment
from assay.pixels.cache import Cache
from assay.training.checkpoint import Tensors
from assay.training.hardware import Hardware
from assay.training.machine import Machine
from assay.training.objective import Objective, Truth, counts, dense
from assay.training.order import Rows
from assay.training.sources import picture_keys
from assay.training.unlabelled import Judge, UnlabelledSettings, counted

_WEAK, _STRONG = 1, 2  # views of a picture; what a fit shows of it for its labels is view 0


@dataclass(frozen=True)
class Views:
    """Weakly and strongly augmented views of the pictures of a cache, drawn anew in every round over them."""

    ids: list[str]
    cache: Cache
    size: int
    weak: Variation | None
    strong: Variation
    seed: int
    step: int
    hardware: Hardware

    def shown(self, number: int, rows: Rows, *, strong: bool) -> Tensor:
        """One view (B, 3, size, size) of these pictures in a round."""
        names = [self.ids[row] for row in rows]
        view, settings = (_STRONG, self.strong) if strong else (_WEAK, self.weak)
        drawn = picture_keys(names, seed=self.seed, step=self.step, epoch=number, view=view)
        pixels = self.cache.gather(self.cache.rows_of(names)).to(self.hardware.device, non_blocking=True)
        return self.hardware.place(augment(pixels, drawn, size=self.size, settings=settings))


@dataclass
class Consistency:
    """The unlabelled side of a fit: which pictures come next, what is sure of them, and the losses that follow.

    All it remembers is the same in every process, since each is told what the others' pictures were answered.
    """

    network: nn.Module
    views: Views
    judges: Sequence[Judge]  # a head
    weights: Tensor  # (N, H) of the pictures
    objective: Objective
    deciding: Deciding  # a label is what the model would answer, so that class weights shift none
    settings: UnlabelledSettings
    batch: int  # pictures a forward pass, at most
    round: int = 0  # over the pictures, each in an order of its own
    taken: int = 0  # of this round
    shown: int = 0  # pictures since the epoch began
    sure: int = 0  # those of them with an answer to learn from
    used: list[np.ndarray] = field(init=False)  # a head: how many answers of each value (V,) they had

    def __post_init__(self) -> None:
        self._forget()

    def losses(self, count: int, forward: nn.Module, machine: Machine) -> Iterator[tuple[Tensor, list[str]]]:
        """The losses beside those of `count` labelled pictures, to be followed one by one, each with its pictures.

        Each is of at most `batch` strong views, and of those alone that have an answer to learn from: the others would
        add 0. The divisor is all unknown labels of the optimiser step, sure or not (Sohn et al. 2020, equation 4).
        """
        rows = self._next(min(self.settings.ratio * count, len(self.views.ids)))
        codes = self._chosen(rows, self._logits(rows, machine))
        masks = [torch.from_numpy(judge.unknown[rows]) for judge in self.judges]
        unknown = counts([Truth([], masks, self.weights[rows])]).to(machine.hardware.device)
        over = unknown / (machine.count * self.settings.weight)
        for places, share in self._parts(codes, machine):
            inputs = self.views.shown(self.round, rows[places], strong=True)
            pseudo = [torch.from_numpy(own[places]) for own in codes]
            truth = Truth(*dense(self.objective.space, pseudo), self.weights[rows[places]]).shared(share)
            with machine.hardware.autocast():
                logits = forward(inputs)
            yield self.objective(logits, [truth.to(inputs.device)], over).loss, self._names(rows[places])

    def order(self, number: int) -> Rows:
        """The pictures in the order of a round."""
        generator = np.random.default_rng([self.views.seed, self.views.step, number])
        return generator.permutation(len(self.views.ids))

    @property
    def above_threshold(self) -> float:
        """The share of the pictures shown in this epoch that had an answer to learn from."""
        return self.sure / max(self.shown, 1)

    def end_epoch(self) -> dict[str, float]:
        """How many answers of each value were learnt from in this epoch, and FlexMatch's thresholds as they stand."""
        figures: dict[str, float] = {}
        for judge, used in zip(self.judges, self.used, strict=True):
            figures |= dict(zip(judge.names(), used.tolist(), strict=True))
            if self.settings.method == "flexmatch":
                named = [f"threshold of {name}" for name in judge.names()]
                figures |= dict(zip(named, judge.thresholds().tolist(), strict=True))
        self._forget()
        return figures

    def state(self) -> Tensors:
        """All that it remembers."""
        places = torch.tensor([self.round, self.taken, self.shown, self.sure])
        used = {f"used.{i}": torch.from_numpy(own) for i, own in enumerate(self.used)}
        newest = {f"newest.{i}": torch.from_numpy(judge.newest) for i, judge in enumerate(self.judges)}
        return {"places": places, **used, **newest}

    def restore(self, state: Tensors) -> None:
        """Put back what `state` gave."""
        self.round, self.taken, self.shown, self.sure = state["places"].tolist()
        self.used = [state[f"used.{i}"].cpu().numpy() for i in range(len(self.judges))]
        for i, judge in enumerate(self.judges):
            judge.newest = state[f"newest.{i}"].cpu().numpy()

    def _forget(self) -> None:
        self.shown = self.sure = 0
        self.used = [np.zeros(len(judge.taught), np.int64) for judge in self.judges]

    def _next(self, count: int) -> Rows:
        """The next pictures, each once; what is left of a round that does not suffice is left out of it."""
        if self.taken + count > len(self.views.ids):
            self.round, self.taken = self.round + 1, 0
        rows = self.order(self.round)[self.taken : self.taken + count]
        self.taken += count
        return rows

    @torch.no_grad()
    def _logits(self, rows: Rows, machine: Machine) -> Tensor:
        """Logits (B, W) of the weak views, by the network as it answers: without dropout, and batch-norm held."""
        logits = torch.zeros(len(rows), self.objective.space.width)
        mine = np.arange(machine.rank, len(rows), machine.count)
        with answering(self.network):
            for first in range(0, len(mine), self.batch):
                places = mine[first : first + self.batch]
                inputs = self.views.shown(self.round, rows[places], strong=False)
                with machine.hardware.autocast():
                    answered = self.network(inputs)
                logits[places] = answered.float().cpu()
        return machine.sum(logits)

    def _chosen(self, rows: Rows, logits: Tensor) -> list[Codes]:
        """The answers to learn from, a head, -1 where there is none; they are counted."""
        space = self.objective.space
        probabilities = probabilities_of(space, self.deciding.logits(logits.numpy()))
        of_heads = zip(self.judges, space.slices, strict=True)
        codes = [judge.choose(rows, probabilities[:, columns]) for judge, columns in of_heads]
        newly = [counted(judge.head, own) for judge, own in zip(self.judges, codes, strict=True)]
        self.used = [used + more for used, more in zip(self.used, newly, strict=True)]
        self.shown += len(rows)
        self.sure += len(_with_answer(codes))
        return codes

    def _parts(self, codes: Sequence[Codes], machine: Machine) -> Iterator[tuple[Rows, Tensor]]:
        """The places of pictures with an answer, dealt out to the processes, and what each counts (B,).

        Gradients are brought together at every backward pass, so each process must make as many: where pictures do
        not come out even, some are shown again and count 0.
        """
        sure = _with_answer(codes)
        each = -(-len(sure) // machine.count)
        dealt = np.arange(each * machine.count)[machine.rank :: machine.count]
        for first in range(0, each, self.batch):
            part = dealt[first : first + self.batch]
            yield sure[part % len(sure)], torch.from_numpy(part < len(sure)).float()

    def _names(self, rows: Rows) -> list[str]:
        return [self.views.ids[row] for row in rows]


@contextmanager
def answering(network: nn.Module) -> Iterator[None]:
    """Within the block a network is in evaluation mode; then each part is as it was."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _with_answer(codes: Sequence[Codes]) -> Rows:
    """The places of pictures with an answer under any head."""
    known = [own >= 0 if own.ndim == 1 else (own >= 0).any(axis=1) for own in codes]
    return np.flatnonzero(np.any(known, axis=0)).astype(np.int64)
