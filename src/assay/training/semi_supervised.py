"""Which answers to unknown labels a model may learn from while it trains: FixMatch and FlexMatch, for any head.

FixMatch (Sohn et al. 2020, "FixMatch: Simplifying semi-supervised learning with consistency and confidence") takes the
answer for a weakly changed image, where it is sure enough, as the label of the strongly changed one. FlexMatch (Zhang
et al. 2021, "FlexMatch: Boosting semi-supervised learning with curriculum pseudo labeling") has a threshold for each
class, lower while few images are sure of it.

The values of a head are its classes; those of a multi-label head absent and present of each tag. They stand in a flat
array (V,): K, or 2 K.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from assay.arrays import Bools, Doubles, Ints, Reals
from assay.images.augment import Erase, RandAugment, Variation, augment
from assay.images.cache import Cache
from assay.labels.space import Codes, Head
from assay.metrics.metrics import probabilities_of
from assay.models.decision_rule import DecisionRule
from assay.settings import Settings
from assay.training.checkpoint import Tensors
from assay.training.devices import Hardware, Machine
from assay.training.objective import Objective, Targets, counts, dense
from assay.training.sources import augmentation_keys

STRONG = {"rand_augment": RandAugment(n=2, magnitude="random"), "erase": Erase(probability=1.0, area=(0.02, 0.25))}
"""What a strong view has beyond a weak one: two operations of any strength, and a patch of up to a quarter."""


class UnlabelledSettings(Settings):
    """Learn from training images with unknown labels too, by what the model itself is sure of."""

    method: Literal["fixmatch", "flexmatch"] = Field(
        "fixmatch", description="One threshold for all classes, or one for each by how far it is learnt."
    )
    threshold: float = Field(0.95, gt=0, lt=1, description="Probability from which an answer is learnt from.")
    ratio: int = Field(3, ge=1, description="Images with unknown labels for each labelled one.")
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="What their loss counts beside that of the labels.")
    weak: Variation | None = Field(None, description="What the model answers for; else the fit's own augment.")
    strong: Variation | None = Field(
        None, description="What it learns the answer for; else the weak one, RandAugment and random erasing."
    )

    def views(self, augment: Variation | None) -> tuple[Variation | None, Variation]:
        """The weak and the strong augmentation beside a fit's own."""
        weak = self.weak or augment
        return weak, self.strong or (weak or Variation()).model_copy(update=STRONG | {"some_of": None})


class SelectedValues(NamedTuple):
    """What a model says of the cells of one head, in the shape of codes: the value, and its probability."""

    codes: Codes
    confidence: Doubles


def best_values(head: Head, probabilities: Reals) -> SelectedValues:
    """Of (B, K) the most probable class, the first of equals; a tag is present from one half up."""
    if head.kind == "multiclass":
        codes = probabilities.argmax(axis=1).astype(np.int64)
        return SelectedValues(codes, np.take_along_axis(probabilities, codes[:, None], axis=1)[:, 0].astype(np.float64))
    present = probabilities.astype(np.float64)
    return SelectedValues((present >= 0.5).astype(np.int64), np.maximum(present, 1 - present))


def value_probabilities(head: Head, codes: Codes) -> Ints:
    """The places of codes among the values of a head, in their shape; none of them may be unknown."""
    return codes if head.kind == "multiclass" else codes + 2 * np.arange(head.size)


def value_counts(head: Head, codes: Codes) -> Ints:
    """How many of the codes have each value (V,); unknown ones none."""
    places = value_probabilities(head, codes)[codes >= 0]
    return np.bincount(places, minlength=head.size * (1 if head.kind == "multiclass" else 2)).astype(np.int64)


def learnable_values(head: Head, codes: Codes) -> Bools:
    """Which values (V,) the known codes can teach: classes that occur beside others, tags both absent and present."""
    occurs = value_counts(head, codes) > 0
    if head.kind == "multiclass":
        return occurs & (np.count_nonzero(occurs) > 1)
    return np.repeat(occurs.reshape(-1, 2).all(axis=1), 2)


def flexible(sure: Ints, waiting: Ints, *, threshold: float, shares: Reals) -> Doubles:
    """FlexMatch's thresholds (Q, V) of the values of Q questions (Zhang et al. 2021, equations 6 to 12).

    `sure` (Q, V) images were last sure of each value, `waiting` (Q,) of none yet. A value is learnt as far as its
    count goes beside the largest one, or beside those waiting while they are more; the threshold follows by the convex
    x / (2 - x), and so begins at 0. `shares` (Q, V) say how often each value is to be expected: the formula as
    published takes all for equally frequent, which the two values of a tag are far from.
    """
    even = sure / (shares * sure.shape[1])
    learnt = even / np.maximum(np.maximum(even.max(axis=1), waiting), 1)[:, None]
    scaled: Doubles = threshold * learnt / (2 - learnt)
    return scaled


class PseudoLabelSelector:
    """Chooses the answers of one head to learn from, and remembers what FlexMatch's thresholds rest on.

    `known` are the codes of the labelled training images; `codes` (N,) or (N, K) those of the N images of which
    something is unknown: a known label of theirs is never answered. Nor is a value that the known labels do not teach.
    """

    def __init__(self, head: Head, known: Codes, codes: Codes, settings: UnlabelledSettings) -> None:
        self.head, self.settings = head, settings
        self.unknown: Bools = codes < 0
        self.taught = learnable_values(head, known)
        self.shares = _shares(head, known)
        self.newest = np.full(codes.shape, -1, np.int16)  # the value each cell was last sure of; -1: none yet

    def choose(self, rows: Ints, probabilities: Reals) -> Codes:
        """The answers to learn from for these images, each once, in the shape of codes; -1 where there is none."""
        codes, confidence = best_values(self.head, probabilities)
        places = value_probabilities(self.head, codes)
        able = self.unknown[rows] & self.taught[places]
        chosen = np.where(able & (confidence >= self.thresholds()[places]), codes, -1)
        if self.settings.method == "flexmatch":
            above = able & (confidence >= self.settings.threshold)
            self.newest[rows] = np.where(above, codes, self.newest[rows])
        return chosen

    def thresholds(self) -> Doubles:
        """Of each value (V,), as they stand."""
        if self.settings.method == "fixmatch":
            return np.full(len(self.taught), self.settings.threshold)
        sure = value_counts(self.head, self.newest.astype(np.int64)).reshape(self.shares.shape)
        cells = np.count_nonzero(self.unknown, axis=0).reshape(-1)  # (Q,): one question, or one for each tag
        waiting = cells - sure.sum(axis=1)
        return flexible(sure, waiting, threshold=self.settings.threshold, shares=self.shares).reshape(-1)

    def names(self) -> list[str]:
        """What the values (V,) are called in metrics."""
        if self.head.kind == "multiclass":
            return [f"{self.head.name}/{name}" for name in self.head.classes]
        return [f"{self.head.name}/{name} {state}" for name in self.head.classes for state in ("absent", "present")]


def _shares(head: Head, known: Codes) -> Doubles:
    """How often each value is to be expected (Q, V): classes equally, as published; tags as among the known labels."""
    if head.kind == "multiclass":
        return np.full((1, head.size), 1 / head.size)
    counts = value_counts(head, known).reshape(-1, 2)
    lacking = (counts == 0).any(axis=1, keepdims=True)  # not taught, so that no share of it counts
    whole = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.where(lacking, 0.5, counts / whole)


# What images with unknown labels add to every optimiser step: weak views are answered for, strong ones learnt.

_WEAK, _STRONG = 1, 2  # views of an image; what a fit shows of it for its labels is view 0


@dataclass(frozen=True)
class Views:
    """Weakly and strongly augmented views of the images of a cache, drawn anew in every round over them."""

    ids: list[str]
    cache: Cache
    size: int
    weak: Variation | None
    strong: Variation
    seed: int
    step: int
    hardware: Hardware

    def shown(self, number: int, rows: Ints, *, strong: bool) -> Tensor:
        """One view (B, 3, size, size) of these images in a round."""
        names = [self.ids[row] for row in rows]
        view, settings = (_STRONG, self.strong) if strong else (_WEAK, self.weak)
        drawn = augmentation_keys(names, seed=self.seed, step=self.step, epoch=number, view=view)
        pixels = self.cache.gather(self.cache.rows_of(names)).to(self.hardware.device, non_blocking=True)
        return self.hardware.to_device(augment(pixels, drawn, size=self.size, settings=settings))


@dataclass
class Consistency:
    """The unlabelled side of a fit: which images come next, what is sure of them, and the losses that follow.

    All it remembers is the same in every process, since each is told what the others' images were answered.
    """

    network: nn.Module
    views: Views
    judges: Sequence[PseudoLabelSelector]  # a head
    weights: Tensor  # (N, H) of the images
    objective: Objective
    deciding: DecisionRule  # a label is what the model would answer, so that class weights shift none
    settings: UnlabelledSettings
    batch: int  # images a forward pass, at most
    round: int = 0  # over the images, each in an order of its own
    taken: int = 0  # of this round
    shown: int = 0  # images since the epoch began
    sure: int = 0  # those of them with an answer to learn from
    used: list[np.ndarray] = field(init=False)  # a head: how many answers of each value (V,) they had

    def __post_init__(self) -> None:
        self._forget()

    def losses(self, count: int, forward: nn.Module, machine: Machine) -> Iterator[tuple[Tensor, list[str]]]:
        """The losses beside those of `count` labelled images, to be followed one by one, each with its images.

        Each is of at most `batch` strong views, and of those alone that have an answer to learn from: the others would
        add 0. The divisor is all unknown labels of the optimiser step, sure or not (Sohn et al. 2020, equation 4).
        """
        rows = self._next(min(self.settings.ratio * count, len(self.views.ids)))
        codes = self._chosen(rows, self._logits(rows, machine))
        masks = [torch.from_numpy(judge.unknown[rows]) for judge in self.judges]
        unknown = counts([Targets([], masks, self.weights[rows])]).to(machine.hardware.device)
        over = unknown / (machine.count * self.settings.weight)
        for places, share in self._parts(codes, machine):
            inputs = self.views.shown(self.round, rows[places], strong=True)
            pseudo = [torch.from_numpy(own[places]) for own in codes]
            truth = Targets(*dense(self.objective.space, pseudo), self.weights[rows[places]]).shared(share)
            with machine.hardware.autocast():
                logits = forward(inputs)
            yield self.objective(logits, [truth.to(inputs.device)], over).loss, self._names(rows[places])

    def order(self, number: int) -> Ints:
        """The images in the order of a round."""
        generator = np.random.default_rng([self.views.seed, self.views.step, number])
        return generator.permutation(len(self.views.ids))

    @property
    def above_threshold(self) -> float:
        """The share of the images shown in this epoch that had an answer to learn from."""
        return self.sure / max(self.shown, 1)

    def end_epoch(self) -> dict[str, float]:
        """How many answers of each value were learnt from in this epoch, and FlexMatch's thresholds as they stand."""
        metrics: dict[str, float] = {}
        for judge, used in zip(self.judges, self.used, strict=True):
            metrics |= dict(zip(judge.names(), used.tolist(), strict=True))
            if self.settings.method == "flexmatch":
                named = [f"threshold of {name}" for name in judge.names()]
                metrics |= dict(zip(named, judge.thresholds().tolist(), strict=True))
        self._forget()
        return metrics

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

    def _next(self, count: int) -> Ints:
        """The next images, each once; what is left of a round that does not suffice is left out of it."""
        if self.taken + count > len(self.views.ids):
            self.round, self.taken = self.round + 1, 0
        rows = self.order(self.round)[self.taken : self.taken + count]
        self.taken += count
        return rows

    @torch.no_grad()
    def _logits(self, rows: Ints, machine: Machine) -> Tensor:
        """Logits (B, W) of the weak views, by the network as it answers: without dropout, and batch-norm held."""
        logits = torch.zeros(len(rows), self.objective.space.width)
        mine = np.arange(machine.rank, len(rows), machine.count)
        with predicting(self.network):
            for first in range(0, len(mine), self.batch):
                places = mine[first : first + self.batch]
                inputs = self.views.shown(self.round, rows[places], strong=False)
                with machine.hardware.autocast():
                    answered = self.network(inputs)
                logits[places] = answered.float().cpu()
        return machine.sum(logits)

    def _chosen(self, rows: Ints, logits: Tensor) -> list[Codes]:
        """The answers to learn from, a head, -1 where there is none; they are counted."""
        space = self.objective.space
        probabilities = probabilities_of(space, self.deciding.logits(logits.numpy()))
        of_heads = zip(self.judges, space.slices, strict=True)
        codes = [judge.choose(rows, probabilities[:, columns]) for judge, columns in of_heads]
        newly = [value_counts(judge.head, own) for judge, own in zip(self.judges, codes, strict=True)]
        self.used = [used + more for used, more in zip(self.used, newly, strict=True)]
        self.shown += len(rows)
        self.sure += len(_with_prediction(codes))
        return codes

    def _parts(self, codes: Sequence[Codes], machine: Machine) -> Iterator[tuple[Ints, Tensor]]:
        """The places of images with an answer, dealt out to the processes, and what each counts (B,).

        Gradients are brought together at every backward pass, so each process must make as many: where images do
        not come out even, some are shown again and count 0.
        """
        sure = _with_prediction(codes)
        each = -(-len(sure) // machine.count)
        dealt = np.arange(each * machine.count)[machine.rank :: machine.count]
        for first in range(0, each, self.batch):
            part = dealt[first : first + self.batch]
            yield sure[part % len(sure)], torch.from_numpy(part < len(sure)).float()

    def _names(self, rows: Ints) -> list[str]:
        return [self.views.ids[row] for row in rows]


@contextmanager
def predicting(network: nn.Module) -> Iterator[None]:
    """Within the block a network is in evaluation mode; then each part is as it was."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _with_prediction(codes: Sequence[Codes]) -> Ints:
    """The places of images with an answer under any head."""
    known = [own >= 0 if own.ndim == 1 else (own >= 0).any(axis=1) for own in codes]
    return np.flatnonzero(np.any(known, axis=0)).astype(np.int64)
