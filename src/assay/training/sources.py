"""Sources of training batches: images augmented anew every epoch, or features and activations computed once."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.arrays import Floats, Ints, Keys, RowTable
from assay.images.augment import Augment, augment, image_keys
from assay.images.cache import Cache
from assay.images.mix import Mix, mix, shares
from assay.labels.samples import Samples
from assay.labels.space import Codes, LabelSpace
from assay.training.devices import Hardware
from assay.training.fit_task import Batch
from assay.training.objective import Targets, counts, dense
from assay.training.sampling import Order, partners, split_batches

_MIXING = -1  # the view number of the draws for mixing; views of images count from 0


class LabelTensors:
    """Targets, masks and weights of every head, by row."""

    def __init__(
        self,
        samples: Samples,
        soft: Sequence[Floats | None] | None = None,
        *,
        class_weights: Sequence[Floats] | None = None,
    ) -> None:
        """`soft` are targets (N, K) a head that replace the labels, NaN where they do not; None for no head.

        `class_weights` (K,) a head: an image counts by that of its target under multi-class heads, so that a mean over
        images is one over their summed weights.
        """
        self.ids: Sequence[str] = samples.names
        self.space: LabelSpace = samples.space
        self.codes = [torch.from_numpy(codes) for codes in samples.codes()]
        self.weights = torch.from_numpy(samples.weights())
        by_head = [None] * len(self.space) if soft is None else soft
        self.soft = [None if targets is None else torch.from_numpy(targets) for targets in by_head]
        self.class_weights = None if class_weights is None else [torch.from_numpy(one) for one in class_weights]

    @cached_property
    def numbers(self) -> Ints:
        """A number (N,) of each id, for random draws."""
        return id_numbers(self.ids)

    def of(self, rows: Ints) -> Targets:
        """Return the targets of these rows, on the CPU."""
        rows = rows % len(self.ids)  # repeated or not
        targets, masks = dense(self.space, [codes[rows] for codes in self.codes])
        pairs = zip(targets, self.soft, strict=True)
        targets = [hard if soft is None else torch.where(soft[rows].isnan(), hard, soft[rows]) for hard, soft in pairs]
        weights = self.weights[rows]
        if self.class_weights is not None:
            by_target = [
                (target * of_head).sum(dim=1) if head.multiclass else torch.ones(len(rows))
                for head, target, of_head in zip(self.space, targets, self.class_weights, strict=True)
            ]
            weights = weights * torch.stack(by_target, dim=1)
        return Targets(targets, masks, weights)


@dataclass(frozen=True, kw_only=True)
class MixingSource(ABC):
    """Inputs of a network by row, mixed with their partners anew in every epoch."""

    known: LabelTensors
    hardware: Hardware
    seed: int = 0
    step: int = 0
    mix: Mix | None = None

    @property
    @abstractmethod
    def side(self) -> int:
        """Width and height of what is mixed."""

    @abstractmethod
    def inputs(self, epoch: int, rows: Ints) -> Tensor:
        """Return the inputs (B, ...) of rows in an epoch, unmixed."""

    @property
    def ids(self) -> Sequence[str]:
        return self.known.ids

    def expect(self, epoch: int, batches: Iterable[tuple[Ints, Ints]]) -> None:
        """Take note of the rows and partners of the batches to come in an epoch."""
        del epoch, batches  # what is stored is there already

    def batch(self, epoch: int, rows: Ints, partners: Ints) -> Batch:
        inputs = self.inputs(epoch, rows) if self.mix is None else self._mixed(epoch, rows, partners, self.mix)
        inputs = self.hardware.to_device(inputs)
        return Batch(inputs, tuple(targets.to(inputs.device) for targets in self._targets(epoch, rows, partners)))

    def counts(self, epoch: int, rows: Ints, partners: Ints) -> Tensor:
        return counts(self._targets(epoch, rows, partners)).to(self.hardware.device)

    def _targets(self, epoch: int, rows: Ints, partners: Ints) -> tuple[Targets, ...]:
        if self.mix is None:
            return (self.known.of(rows),)
        share = torch.from_numpy(self.shares(epoch, rows, self.mix))
        return self.known.of(rows).shared(share), self.known.of(partners).shared(1 - share)

    def shares(self, epoch: int, rows: Ints, settings: Mix) -> Floats:
        """Return the share (B,) of each image in its mix; the rest is its partner's."""
        return shares(self.keys(epoch, rows, _MIXING), size=self.side, settings=settings)

    def _mixed(self, epoch: int, rows: Ints, partners: Ints, settings: Mix) -> Tensor:
        # Most partners are rows of the batch too; each image is read and augmented once.
        distinct, inverse = np.unique(np.concatenate([rows, partners]), return_inverse=True)
        inputs = self.inputs(epoch, distinct)
        maps = inputs if self.side > 1 else inputs.reshape(len(inputs), -1, 1, 1)
        first, second = maps[inverse[: len(rows)]], maps[inverse[len(rows) :]]
        mixed = mix(first, second, self.keys(epoch, rows, _MIXING), settings=settings)
        return mixed.reshape(len(rows), *inputs.shape[1:])

    def keys(self, epoch: int, rows: Ints, view: int) -> Keys:
        """Return the key (B,) of the random draws of each row for a view."""
        again, images = np.divmod(rows, len(self.ids))
        numbers = self.known.numbers[images]
        return image_keys(seed=self.seed, step=self.step, epoch=epoch, images=numbers, occurrence=again, view=view)


@dataclass(frozen=True, kw_only=True)
class ImageSource(MixingSource):
    """Images of a cache, augmented and mixed anew in every epoch."""

    cache: Cache
    size: int
    augment: Augment | None
    chosen: Ints | None = None  # (N,) index of the settings that each image is augmented by

    @property
    def side(self) -> int:
        return self.size

    def expect(self, epoch: int, batches: Iterable[tuple[Ints, Ints]]) -> None:
        if self.mix is None:
            self.cache.expect(self._in_cache(rows) for rows, _ in batches)
        else:
            self.cache.expect(self._in_cache(np.unique(np.concatenate(both))) for both in batches)

    def _in_cache(self, rows: Ints) -> Ints:
        return self._cached[rows % len(self._cached)]

    @cached_property
    def _cached(self) -> Ints:
        """The row (N,) of each image in the cache."""
        return self.cache.rows_of(self.ids)

    def inputs(self, epoch: int, rows: Ints) -> Tensor:
        images = rows % len(self.ids)
        pixels = self.cache.gather(self._in_cache(rows))
        pixels = pixels.to(self.hardware.device, non_blocking=True)
        chosen = None if self.chosen is None else self.chosen[images]
        return augment(pixels, self.keys(epoch, rows, 0), size=self.size, settings=self.augment, chosen=chosen)


@dataclass(frozen=True, kw_only=True)
class StoredSource(MixingSource):
    """Features or activations, computed once a view of the images; each image takes its views in turn.

    MixUp and CutMix of activations are those of images; of what is no map there is MixUp alone (manifold mixup,
    Verma et al. 2019, "Manifold mixup: Better representations by interpolating hidden states").
    """

    views: Sequence[RowTable]  # each (N, ...)
    map_side: int = 1  # of maps (C, S, S), else 1

    @property
    def side(self) -> int:
        return self.map_side

    def inputs(self, epoch: int, rows: Ints) -> Tensor:
        again, images = np.divmod(rows, len(self.ids))
        # Images begin at different views, so that no epoch has the plain views alone.
        turn = (epoch + again + self.known.numbers[images]) % len(self.views)
        inputs = np.empty((len(rows), *self.views[0].shape[1:]), np.float32)
        for number in np.unique(turn):
            inputs[turn == number] = self.views[number][images[turn == number]]
        return torch.from_numpy(inputs)


def augmentation_keys(
    ids: Sequence[str], *, seed: int, step: int, epoch: int, view: int, occurrence: Ints | int = 0
) -> Keys:
    """Return the key (B,) of each image's random draws, by its id and not by its row.

    `occurrence`, one for all or (B,), is the number of the image's repeat in the epoch.
    """
    images = id_numbers(ids)
    return image_keys(seed=seed, step=step, epoch=epoch, images=images, occurrence=occurrence, view=view)


def id_numbers(ids: Sequence[str]) -> Ints:
    """Return a number (N,) for each id, whatever its row."""
    return np.fromiter((zlib.crc32(name.encode()) for name in ids), np.int64, len(ids))


# How images were mixed in a fit, by class: recomputed from the draws, which depend on their keys alone.

ByClass = dict[str, dict[str, dict[str, object]]]


def mix_counts(
    source: MixingSource,
    settings: Mix,
    space: LabelSpace,
    codes: Sequence[Codes],
    order: Order,
    *,
    step: int,
    epochs: int,
) -> ByClass:
    """Return head -> class -> draws of its images, how many of these were mixed, and their mean share.

    `codes` are (N,) or (N, K) a head, `step` the images an optimiser step. The share of a class without mixed images
    is None. An image of several tags counts for each of them.
    """
    sums = [np.zeros((3, head.size)) for head in space]  # draws, mixed draws, shares of mixed draws
    for epoch in range(epochs):
        steps = split_batches(order.rows(epoch), step)
        rows = np.concatenate(steps)
        others = np.concatenate([partners(batch, settings.share or 1.0) for batch in steps])
        share = source.shares(epoch, rows, settings).astype(np.float64)
        mixed = (others != rows) & (share < 1)
        counted = np.stack([np.ones(len(rows)), mixed, share * mixed])  # (3, draws)
        for index, (head, known) in enumerate(zip(space, codes, strict=True)):
            labels = known[rows % len(known)]
            if head.multiclass:
                labelled = labels >= 0
                sums[index] += [np.bincount(labels[labelled], values[labelled], head.size) for values in counted]
            else:
                sums[index] += counted @ (labels == 1)
    return {
        head.name: {
            name: {"shown": int(draws), "mixed": int(number), "own share": float(share / number) if number else None}
            for name, (draws, number, share) in zip(head.classes, total.T, strict=True)
        }
        for head, total in zip(space, sums, strict=True)
    }


def mix_lines(counts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return a line a head: the classes with the smallest and largest part mixed, and with the extreme shares kept."""
    lines = []
    for head, classes in counts.items():
        mixed = {name: row["mixed"] / row["shown"] for name, row in classes.items() if row["shown"]}
        kept = {name: row["own share"] for name, row in classes.items() if row["mixed"]}
        if not kept:
            lines.append(f"{head}: nothing was mixed")
            continue
        least, most = min(mixed, key=mixed.__getitem__), max(mixed, key=mixed.__getitem__)
        low, high = min(kept, key=kept.__getitem__), max(kept, key=kept.__getitem__)
        lines.append(
            f"{head}: mixed were {100 * mixed[least]:.0f} % ({least}) to {100 * mixed[most]:.0f} % ({most}) of the "
            f"images of a class; of their own they kept {kept[low]:.2f} ({low}) to {kept[high]:.2f} ({high})"
        )
    return lines
