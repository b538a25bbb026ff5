"""Semi-supervised training on unknown labels: FixMatch and FlexMatch, for any head.

FixMatch (Sohn et al. 2020, "FixMatch: Simplifying semi-supervised learning with consistency and confidence") takes the
prediction for a weakly augmented image, where it is confident, as the label of the strongly augmented one. FlexMatch
(Zhang et al. 2021, "FlexMatch: Boosting semi-supervised learning with curriculum pseudo labeling") has a threshold for
each class, lower while few images are confident of it.

The values of a head are its classes; those of a multi-label head absent and present of each tag. Arrays over values are
flat: (V,), V being K or 2 K.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from assay.arrays import Bools, Doubles, Ints, Reals, RowTable
from assay.images.augment import Erase, RandAugment, Variation, augment
from assay.images.cache import Cache
from assay.labels.space import Codes, Head
from assay.metrics.metrics import probabilities_of
from assay.models.backbones import evaluating
from assay.models.decision_rule import DecisionRule
from assay.models.weights import Tensors
from assay.settings import Settings
from assay.training.devices import Hardware
from assay.training.objective import Objective, Targets, counts, dense
from assay.training.processes import Machine
from assay.training.sources import augmentation_keys

STRONG = {"rand_augment": RandAugment(n=2, magnitude="random"), "erase": Erase(probability=1.0, area=(0.02, 0.25))}
"""The augmentations that a strong view adds: two operations of any strength, and a patch of up to a quarter."""


Foreign = Annotated[
    Literal["leave", "label"],
    Field(description="What becomes of images that are unlike the labelled ones, and may be of no class."),
]


class UnlabelledSettings(Settings):
    """Train on images with unknown labels too, with confident predictions of the model as pseudo-labels."""

    method: Literal["fixmatch", "flexmatch"] = Field(
        "fixmatch", description="One threshold for all classes, or one for each by its learning status."
    )
    threshold: float = Field(
        0.95, gt=0, lt=1, description="Probability from which a prediction becomes a pseudo-label."
    )
    ratio: int = Field(3, ge=1, description="Images with unknown labels for each labelled one.")
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="Weight of their loss; that of the labels is 1.")
    foreign: Foreign = "leave"
    weak: Variation | None = Field(
        None, description="Augmentation of the views that are predicted; by default that of the fit."
    )
    strong: Variation | None = Field(
        None,
        description="Augmentation of the views trained on; by default the weak one, RandAugment, random erasing.",
    )

    def views(self, augment: Variation | None) -> tuple[Variation | None, Variation]:
        """Return the weak and the strong augmentation, by default from that of the fit."""
        weak = self.weak or augment
        return weak, self.strong or (weak or Variation()).model_copy(update=STRONG | {"some_of": None})


class SelectedValues(NamedTuple):
    """The most probable value of each cell of one head, in the shape of codes, and its probability."""

    codes: Codes
    confidence: Doubles


def best_values(head: Head, probabilities: Reals) -> SelectedValues:
    """Return, for (B, K), the most probable class, the first of equals; a tag is present from one half up."""
    exact = probabilities.astype(np.float64)
    confidence = exact.max(axis=1) if head.multiclass else np.maximum(exact, 1 - exact)
    return SelectedValues(head.decide(probabilities), confidence)


def value_index(head: Head, codes: Codes) -> Ints:
    """Return the index of each code among the values (V,) of a head; none may be unknown."""
    return codes if head.multiclass else codes + 2 * np.arange(head.size)


def value_counts(head: Head, codes: Codes) -> Ints:
    """Return how many of the known codes have each value (V,)."""
    index = value_index(head, codes)[codes >= 0]
    return np.bincount(index, minlength=head.cells * head.values).astype(np.int64)


def learnable_values(head: Head, codes: Codes) -> Bools:
    """Return which values (V,) can be learnt from the codes: classes beside others, tags both absent and present."""
    occurs = value_counts(head, codes) > 0
    if head.multiclass:
        return occurs & (np.count_nonzero(occurs) > 1)
    return np.repeat(occurs.reshape(-1, 2).all(axis=1), 2)


def flexible(confident: Ints, waiting: Ints, *, threshold: float, shares: Reals) -> Doubles:
    """Return FlexMatch's thresholds (Q, V) of the values of Q questions (Zhang et al. 2021, equations 6 to 12).

    `confident` (Q, V) images were last confident of each value, `waiting` (Q,) of none yet. The learning status x of a
    value is its count over the largest one, or over those waiting while they are more; the threshold follows by the
    convex x / (2 - x), and so begins at 0. `shares` (Q, V) are the expected frequencies of the values: the published
    formula takes all for equally frequent, which the two values of a tag are far from.
    """
    even = confident / (shares * confident.shape[1])
    learnt = even / np.maximum(np.maximum(even.max(axis=1), waiting), 1)[:, None]
    scaled: Doubles = threshold * learnt / (2 - learnt)
    return scaled


class PseudoLabelSelector:
    """Selects the pseudo-labels of one head, and keeps the counts of FlexMatch's thresholds.

    `known` are the codes of the labelled training images; `codes` (N,) or (N, K) those of the N images with unknown
    labels. Known labels are never replaced, and values that the known labels do not teach are never selected.
    """

    def __init__(self, head: Head, known: Codes, codes: Codes, settings: UnlabelledSettings) -> None:
        self.head, self.settings = head, settings
        self.unknown: Bools = codes < 0
        self.learnable = learnable_values(head, known)
        self.shares = _shares(head, known)
        self.newest = np.full(codes.shape, -1, np.int16)  # the value each cell was last confident of; -1: none yet

    def choose(self, rows: Ints, probabilities: Reals) -> Codes:
        """Return the pseudo-labels of these images, each once, in the shape of codes; -1 where there is none."""
        codes, confidence = best_values(self.head, probabilities)
        index = value_index(self.head, codes)
        able = self.unknown[rows] & self.learnable[index]
        chosen = np.where(able & (confidence >= self.thresholds()[index]), codes, -1)
        if self.settings.method == "flexmatch":
            above = able & (confidence >= self.settings.threshold)
            self.newest[rows] = np.where(above, codes, self.newest[rows])
        return chosen

    def thresholds(self) -> Doubles:
        """Return the current threshold of each value (V,)."""
        if self.settings.method == "fixmatch":
            return np.full(len(self.learnable), self.settings.threshold)
        confident = value_counts(self.head, self.newest.astype(np.int64)).reshape(self.shares.shape)
        cells = np.count_nonzero(self.unknown, axis=0).reshape(-1)  # (Q,): one question, or one for each tag
        waiting = cells - confident.sum(axis=1)
        return flexible(confident, waiting, threshold=self.settings.threshold, shares=self.shares).reshape(-1)

    def names(self) -> list[str]:
        """Return the names of the values (V,) in metrics."""
        if self.head.multiclass:
            return [f"{self.head.name}/{name}" for name in self.head.classes]
        return [f"{self.head.name}/{name} {state}" for name in self.head.classes for state in ("absent", "present")]


def _shares(head: Head, known: Codes) -> Doubles:
    """Return the expected frequencies (Q, V): equal for classes, as published; of tags those among the known labels."""
    if head.multiclass:
        return np.full((1, head.size), 1 / head.size)
    counts = value_counts(head, known).reshape(-1, 2)
    lacking = (counts == 0).any(axis=1, keepdims=True)  # not learnable, so that its shares do not matter
    whole = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.where(lacking, 0.5, counts / whole)


# The images with unknown labels in every optimiser step: predictions for weak views are labels of strong ones.

_WEAK, _STRONG = 1, 2  # numbers of views; the view that a fit trains known labels on is 0


class UnlabelledViews(Protocol):
    """Weakly and strongly augmented views of images, by row, in rounds over all of them."""

    @property
    def ids(self) -> list[str]: ...

    @property
    def seed(self) -> int: ...

    @property
    def step(self) -> int: ...

    def images(self, number: int, rows: Ints, *, strong: bool) -> Tensor:
        """Return one view (B, ...) of these images in a round."""


@dataclass(frozen=True)
class StoredViews:
    """Activations of weakly and strongly augmented views, computed once; rounds take them in turn."""

    ids: list[str]
    weak: Sequence[RowTable]  # each (N, ...)
    strong: Sequence[RowTable]
    seed: int
    step: int
    hardware: Hardware

    def images(self, number: int, rows: Ints, *, strong: bool) -> Tensor:
        """Return the activations (B, ...) of one view of these images in a round."""
        views = self.strong if strong else self.weak
        return self.hardware.to_device(torch.from_numpy(views[number % len(views)][rows]))


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

    def images(self, number: int, rows: Ints, *, strong: bool) -> Tensor:
        """Return one view (B, 3, size, size) of these images in a round."""
        names = [self.ids[row] for row in rows]
        view, settings = (_STRONG, self.strong) if strong else (_WEAK, self.weak)
        drawn = augmentation_keys(names, seed=self.seed, step=self.step, epoch=number, view=view)
        pixels = self.cache.gather(self.cache.rows_of(names)).to(self.hardware.device, non_blocking=True)
        return self.hardware.to_device(augment(pixels, drawn, size=self.size, settings=settings))


@dataclass
class Consistency:
    """The unlabelled side of a fit: the next images, their pseudo-labels, and the losses.

    Its state is the same in every process, since logits are exchanged.
    """

    network: nn.Module
    views: UnlabelledViews
    selectors: Sequence[PseudoLabelSelector]  # a head
    weights: Tensor  # (N, H) of the images
    objective: Objective
    rule: DecisionRule  # pseudo-labels are its decisions, so that class weights shift none
    settings: UnlabelledSettings
    batch: int  # images a forward pass, at most
    round: int = 0  # over the images, in a new order each
    taken: int = 0  # images of this round
    drawn: int = 0  # images of this epoch
    confident: int = 0  # those of them with a pseudo-label
    used: list[Ints] = field(init=False)  # a head: pseudo-labels of each value (V,) in this epoch

    def __post_init__(self) -> None:
        self._begin_epoch()

    def losses(self, count: int, forward: nn.Module, machine: Machine) -> Iterator[tuple[Tensor, list[str]]]:
        """Yield the losses that accompany `count` labelled images, each with the ids of its images.

        Each is of at most `batch` strong views, of images with a pseudo-label only: the others would add 0. The
        divisor is all unknown labels of the optimiser step, pseudo-labelled or not (Sohn et al. 2020, equation 4).
        """
        rows = self._next(min(self.settings.ratio * count, len(self.views.ids)))
        codes = self._chosen(rows, self._logits(rows, machine))
        masks = [torch.from_numpy(selector.unknown[rows]) for selector in self.selectors]
        unknown = counts([Targets([], masks, self.weights[rows])]).to(machine.hardware.device)
        over = unknown / (machine.count * self.settings.weight)
        for part, share in self._parts(codes, machine):
            inputs = self.views.images(self.round, rows[part], strong=True)
            pseudo = [torch.from_numpy(by_head[part]) for by_head in codes]
            targets = Targets(*dense(self.objective.space, pseudo), self.weights[rows[part]]).shared(share)
            with machine.hardware.autocast():
                logits = forward(inputs)
            names = [self.views.ids[row] for row in rows[part]]
            yield self.objective(logits, [targets.to(inputs.device)], over).loss, names

    def order(self, number: int) -> Ints:
        """Return the images in the order of a round."""
        generator = np.random.default_rng([self.views.seed, self.views.step, number])
        return generator.permutation(len(self.views.ids))

    @property
    def above_threshold(self) -> float:
        """The share of this epoch's images that had a pseudo-label."""
        return self.confident / max(self.drawn, 1)

    def end_epoch(self) -> dict[str, float]:
        """Return the pseudo-labels of each value in this epoch, and FlexMatch's current thresholds; begin the next."""
        metrics: dict[str, float] = {}
        for selector, used in zip(self.selectors, self.used, strict=True):
            metrics |= dict(zip(selector.names(), used.tolist(), strict=True))
            if self.settings.method == "flexmatch":
                named = [f"threshold of {name}" for name in selector.names()]
                metrics |= dict(zip(named, selector.thresholds().tolist(), strict=True))
        self._begin_epoch()
        return metrics

    def state(self) -> Tensors:
        """Return the tensors of a checkpoint."""
        position = torch.tensor([self.round, self.taken, self.drawn, self.confident])
        used = {f"used.{i}": torch.from_numpy(counts) for i, counts in enumerate(self.used)}
        newest = {f"newest.{i}": torch.from_numpy(selector.newest) for i, selector in enumerate(self.selectors)}
        return {"places": position, **used, **newest}

    def restore(self, state: Tensors) -> None:
        """Restore the tensors from `state`."""
        self.round, self.taken, self.drawn, self.confident = state["places"].tolist()
        self.used = [state[f"used.{i}"].cpu().numpy() for i in range(len(self.selectors))]
        for i, selector in enumerate(self.selectors):
            selector.newest = state[f"newest.{i}"].cpu().numpy()

    def select_all(self) -> None:
        """Give every image a pseudo-label from now on: the slowest case, to be timed."""
        for selector in self.selectors:
            selector.settings = selector.settings.model_copy(update={"threshold": 1e-9})

    def rewind(self) -> None:
        """Begin the first round over the images again."""
        self.round = self.taken = 0

    def _begin_epoch(self) -> None:
        self.drawn = self.confident = 0
        self.used = [np.zeros(len(selector.learnable), np.int64) for selector in self.selectors]

    def _next(self, count: int) -> Ints:
        """Return the next images, each once; the rest of a round that does not suffice is skipped."""
        if self.taken + count > len(self.views.ids):
            self.round, self.taken = self.round + 1, 0
        rows = self.order(self.round)[self.taken : self.taken + count]
        self.taken += count
        return rows

    @torch.no_grad()
    def _logits(self, rows: Ints, machine: Machine) -> Tensor:
        """Return logits (B, W) of the weak views, in evaluation mode."""
        logits = torch.zeros(len(rows), self.objective.space.width)
        mine = np.arange(machine.rank, len(rows), machine.count)
        with evaluating(self.network):
            for first in range(0, len(mine), self.batch):
                part = mine[first : first + self.batch]
                inputs = self.views.images(self.round, rows[part], strong=False)
                with machine.hardware.autocast():
                    outputs = self.network(inputs)
                logits[part] = outputs.float().cpu()
        return machine.sum(logits)

    def _chosen(self, rows: Ints, logits: Tensor) -> list[Codes]:
        """Return the pseudo-labels, a head, -1 where there is none, and count them."""
        space = self.objective.space
        probabilities = probabilities_of(space, self.rule.logits(logits.numpy()))
        by_head = zip(self.selectors, space.slices, strict=True)
        codes = [selector.choose(rows, probabilities[:, columns]) for selector, columns in by_head]
        counted = zip(self.used, space, codes, strict=True)
        self.used = [used + value_counts(head, chosen) for used, head, chosen in counted]
        self.drawn += len(rows)
        self.confident += len(self._pseudo_labelled(codes))
        return codes

    def _parts(self, codes: Sequence[Codes], machine: Machine) -> Iterator[tuple[Ints, Tensor]]:
        """Yield batches of this process's images with a pseudo-label, by index, and the share that each counts (B,).

        Gradients are averaged in every backward pass, so that each process must make as many: where images do
        not divide evenly, some are repeated and count 0.
        """
        images = self._pseudo_labelled(codes)
        each = -(-len(images) // machine.count)
        dealt = np.arange(each * machine.count)[machine.rank :: machine.count]
        for first in range(0, each, self.batch):
            part = dealt[first : first + self.batch]
            yield images[part % len(images)], torch.from_numpy(part < len(images)).float()

    def _pseudo_labelled(self, codes: Sequence[Codes]) -> Ints:
        """Return the indices of images with a pseudo-label under any head."""
        known = [head.known(by_head) for head, by_head in zip(self.objective.space, codes, strict=True)]
        return np.flatnonzero(np.any(known, axis=0)).astype(np.int64)
