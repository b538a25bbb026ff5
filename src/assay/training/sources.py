"""What a network is trained on: images drawn anew every epoch, or features computed once."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.arrays import Floats, Ints, Keys
from assay.images.augment import Augment, augment, image_keys
from assay.images.cache import Cache
from assay.images.mix import Mix, mix, shares
from assay.labels.samples import Samples
from assay.labels.space import Codes, LabelSpace
from assay.training.devices import Hardware
from assay.training.fit_task import Batch
from assay.training.objective import Targets, counts, dense
from assay.training.sampling import Order, partners, split_batches

_MIXING = -1  # the view whose draws mix images: no view that is shown has this number


class LabelTensors:
    """What is known of some images, row by row: targets, masks and weights of every head."""

    def __init__(self, samples: Samples, soft: Sequence[Floats | None] | None = None) -> None:
        """`soft` are targets (N, K) a head that take the place of labels, NaN where they do not; None: of no head."""
        self.ids = samples.ids
        self.space: LabelSpace = samples.space
        self.codes = [torch.from_numpy(codes) for codes in samples.codes()]
        self.weights = torch.from_numpy(samples.weights())
        own = [None] * len(self.space) if soft is None else soft
        self.soft = [None if targets is None else torch.from_numpy(targets) for targets in own]

    def of(self, rows: Ints) -> Targets:
        """What is known of the images of these rows, on the CPU."""
        rows = rows % len(self.ids)  # shown again or not
        targets, masks = dense(self.space, [codes[rows] for codes in self.codes])
        pairs = zip(targets, self.soft, strict=True)
        targets = [hard if soft is None else torch.where(soft[rows].isnan(), hard, soft[rows]) for hard, soft in pairs]
        return Targets(targets, masks, self.weights[rows])


@dataclass(frozen=True)
class ImageSource:
    """Images of a cache, augmented and mixed anew in every epoch."""

    known: LabelTensors
    cache: Cache
    size: int
    augment: Augment | None
    seed: int
    step: int
    hardware: Hardware
    mix: Mix | None = None
    chosen: Ints | None = None  # (N,): the settings that each image is augmented by

    @property
    def ids(self) -> list[str]:
        return self.known.ids

    def batch(self, epoch: int, rows: Ints, partners: Ints) -> Batch:
        inputs = self._shown(epoch, rows) if self.mix is None else self._mixed(epoch, rows, partners, self.mix)
        inputs = self.hardware.to_device(inputs)
        return Batch(inputs, tuple(truth.to(inputs.device) for truth in self._truths(epoch, rows, partners)))

    def counts(self, epoch: int, rows: Ints, partners: Ints) -> Tensor:
        return counts(self._truths(epoch, rows, partners)).to(self.hardware.device)

    def _truths(self, epoch: int, rows: Ints, partners: Ints) -> tuple[Targets, ...]:
        if self.mix is None:
            return (self.known.of(rows),)
        share = torch.from_numpy(self.shares(epoch, rows, self.mix))
        return self.known.of(rows).shared(share), self.known.of(partners).shared(1 - share)

    def shares(self, epoch: int, rows: Ints, settings: Mix) -> Floats:
        """The share (B,) of a mixed image that is its own; the rest is its partner's."""
        return shares(self._keys(epoch, rows, _MIXING), size=self.size, settings=settings)

    def _shown(self, epoch: int, rows: Ints) -> Tensor:
        images = rows % len(self.ids)
        pixels = self.cache.gather(self.cache.rows_of([self.ids[image] for image in images]))
        pixels = pixels.to(self.hardware.device, non_blocking=True)
        chosen = None if self.chosen is None else self.chosen[images]
        return augment(pixels, self._keys(epoch, rows, 0), size=self.size, settings=self.augment, chosen=chosen)

    def _mixed(self, epoch: int, rows: Ints, partners: Ints, settings: Mix) -> Tensor:
        # Most partners are rows of the batch too; each image is read and augmented once.
        distinct, places = np.unique(np.concatenate([rows, partners]), return_inverse=True)
        images = self._shown(epoch, distinct)
        own, other = images[places[: len(rows)]], images[places[len(rows) :]]
        return mix(own, other, self._keys(epoch, rows, _MIXING), settings=settings)

    def _keys(self, epoch: int, rows: Ints, view: int) -> Keys:
        again, images = np.divmod(rows, len(self.ids))
        names = [self.ids[image] for image in images]
        return augmentation_keys(names, seed=self.seed, step=self.step, epoch=epoch, occurrence=again, view=view)


@dataclass(frozen=True)
class FeatureSource:
    """Features of a frozen backbone; epochs, and showings within one, take turns over their views."""

    known: LabelTensors
    views: Sequence[Floats]  # each (N, F), may be memory-mapped
    hardware: Hardware

    @property
    def ids(self) -> list[str]:
        return self.known.ids

    def batch(self, epoch: int, rows: Ints, partners: Ints) -> Batch:
        again, images = np.divmod(rows, len(self.ids))
        turn = (epoch + again) % len(self.views)
        features = np.empty((len(rows), self.views[0].shape[1]), np.float32)
        for number in np.unique(turn):
            features[turn == number] = self.views[number][images[turn == number]]
        inputs = self.hardware.to_device(torch.from_numpy(features))
        return Batch(inputs, (self.known.of(rows).to(self.hardware.device),))

    def counts(self, epoch: int, rows: Ints, partners: Ints) -> Tensor:
        return counts([self.known.of(rows)]).to(self.hardware.device)


def augmentation_keys(
    ids: Sequence[str], *, seed: int, step: int, epoch: int, view: int, occurrence: Ints | int = 0
) -> Keys:
    """The key (B,) of each image's random draws; it depends on the image's id, not on its row.

    `occurrence`, one for all or (B,), tells the showings of one image in an epoch apart.
    """
    images = np.array([zlib.crc32(name.encode()) for name in ids], dtype=np.int64)
    return image_keys(seed=seed, step=step, epoch=epoch, images=images, occurrence=occurrence, view=view)


# What was mixed in a fit, by class: found again from the draws, which depend on nothing but their place.

ByClass = dict[str, dict[str, dict[str, Any]]]


def mix_counts(
    source: ImageSource,
    settings: Mix,
    space: LabelSpace,
    codes: Sequence[Codes],
    order: Order,
    *,
    step: int,
    epochs: int,
) -> ByClass:
    """Head -> class -> how often its images were shown, how many of these were mixed, and their mean own share.

    `codes` (N,) or (N, K) a head of the source's images, `step` the images an optimiser step. The own share of a
    class of which nothing was mixed is None. An image of several tags counts for each of them.
    """
    sums = [np.zeros((3, head.size)) for head in space]  # shown, mixed, own share
    for epoch in range(epochs):
        steps = split_batches(order.rows(epoch), step)
        rows = np.concatenate(steps)
        others = np.concatenate([partners(own, settings.share or 1.0) for own in steps])
        share = source.shares(epoch, rows, settings).astype(np.float64)
        mixed = (others != rows) & (share < 1)
        counted = np.stack([np.ones(len(rows)), mixed, share * mixed])  # (3, shown)
        for place, (head, known) in enumerate(zip(space, codes, strict=True)):
            labels = known[rows % len(known)]
            if head.kind == "multiclass":
                seen = labels >= 0
                sums[place] += [np.bincount(labels[seen], values[seen], minlength=head.size) for values in counted]
            else:
                sums[place] += counted @ (labels == 1)
    return {
        head.name: {
            name: {"shown": int(shown), "mixed": int(number), "own share": float(own / number) if number else None}
            for name, (shown, number, own) in zip(head.classes, total.T, strict=True)
        }
        for head, total in zip(space, sums, strict=True)
    }


def mix_lines(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The same in a line a head: the classes of which the smallest and the largest share was mixed, and how far."""
    lines = []
    for head, classes in found.items():
        shares = {name: own["mixed"] / own["shown"] for name, own in classes.items() if own["shown"]}
        kept = {name: own["own share"] for name, own in classes.items() if own["mixed"]}
        if not kept:
            lines.append(f"{head}: nothing was mixed")
            continue
        least, most = min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])
        low, high = min(kept, key=lambda name: kept[name]), max(kept, key=lambda name: kept[name])
        lines.append(
            f"{head}: mixed were {100 * shares[least]:.0f} % ({least}) to {100 * shares[most]:.0f} % ({most}) of the "
            f"images of a class; of their own they kept {kept[low]:.2f} ({low}) to {kept[high]:.2f} ({high})"
        )
    return lines
