"""What a network is trained on: pictures drawn anew every epoch, or features computed once."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.pixels.augment import Augment, Chosen, augment, keys
from assay.pixels.cache import Cache
from assay.pixels.draws import Keys
from assay.pixels.mix import Mix, mix, shares
from assay.training.hardware import Hardware
from assay.training.job import Batch
from assay.training.objective import Truth, counts, dense
from assay.training.order import Rows

_MIXING = -1  # the view whose draws mix pictures: no view that is shown has this number


class Known:
    """What is known of some pictures, row by row: targets, masks and weights of every head."""

    def __init__(self, samples: Samples, soft: Sequence[npt.NDArray[np.float32] | None] | None = None) -> None:
        """`soft` are targets (N, K) a head that take the place of labels, NaN where they do not; None: of no head."""
        self.ids = samples.ids
        self.space: LabelSpace = samples.space
        self.codes = [torch.from_numpy(codes) for codes in samples.codes()]
        self.weights = torch.from_numpy(samples.weights())
        own = [None] * len(self.space) if soft is None else soft
        self.soft = [None if targets is None else torch.from_numpy(targets) for targets in own]

    def of(self, rows: Rows) -> Truth:
        """What is known of the pictures of these rows, on the CPU."""
        rows = rows % len(self.ids)  # shown again or not
        targets, masks = dense(self.space, [codes[rows] for codes in self.codes])
        pairs = zip(targets, self.soft, strict=True)
        targets = [hard if soft is None else torch.where(soft[rows].isnan(), hard, soft[rows]) for hard, soft in pairs]
        return Truth(targets, masks, self.weights[rows])


@dataclass(frozen=True)
class Pictures:
    """Pictures of a cache, augmented and mixed anew in every epoch."""

    known: Known
    cache: Cache
    size: int
    augment: Augment | None
    seed: int
    step: int
    hardware: Hardware
    mix: Mix | None = None
    chosen: Chosen | None = None  # (N,): the settings that each picture is augmented by

    @property
    def ids(self) -> list[str]:
        return self.known.ids

    def batch(self, epoch: int, rows: Rows, partners: Rows) -> Batch:
        inputs = self._shown(epoch, rows) if self.mix is None else self._mixed(epoch, rows, partners, self.mix)
        inputs = self.hardware.place(inputs)
        return Batch(inputs, tuple(truth.to(inputs.device) for truth in self._truths(epoch, rows, partners)))

    def counts(self, epoch: int, rows: Rows, partners: Rows) -> Tensor:
        return counts(self._truths(epoch, rows, partners)).to(self.hardware.device)

    def _truths(self, epoch: int, rows: Rows, partners: Rows) -> tuple[Truth, ...]:
        if self.mix is None:
            return (self.known.of(rows),)
        share = torch.from_numpy(self.shares(epoch, rows, self.mix))
        return self.known.of(rows).shared(share), self.known.of(partners).shared(1 - share)

    def shares(self, epoch: int, rows: Rows, settings: Mix) -> npt.NDArray[np.float32]:
        """The share (B,) of a mixed picture that is its own; the rest is its partner's."""
        return shares(self._keys(epoch, rows, _MIXING), size=self.size, settings=settings)

    def _shown(self, epoch: int, rows: Rows) -> Tensor:
        pictures = rows % len(self.ids)
        pixels = self.cache.gather(self.cache.rows_of([self.ids[picture] for picture in pictures]))
        pixels = pixels.to(self.hardware.device, non_blocking=True)
        chosen = None if self.chosen is None else self.chosen[pictures]
        return augment(pixels, self._keys(epoch, rows, 0), size=self.size, settings=self.augment, chosen=chosen)

    def _mixed(self, epoch: int, rows: Rows, partners: Rows, settings: Mix) -> Tensor:
        # Most partners are rows of the batch too; each picture is read and augmented once.
        distinct, places = np.unique(np.concatenate([rows, partners]), return_inverse=True)
        pictures = self._shown(epoch, distinct)
        own, other = pictures[places[: len(rows)]], pictures[places[len(rows) :]]
        return mix(own, other, self._keys(epoch, rows, _MIXING), settings=settings)

    def _keys(self, epoch: int, rows: Rows, view: int) -> Keys:
        again, pictures = np.divmod(rows, len(self.ids))
        names = [self.ids[picture] for picture in pictures]
        return picture_keys(names, seed=self.seed, step=self.step, epoch=epoch, occurrence=again, view=view)


@dataclass(frozen=True)
class Features:
    """Features of a frozen backbone; epochs, and showings within one, take turns over their views."""

    known: Known
    views: Sequence[npt.NDArray[np.float32]]  # each (N, F), may be memory-mapped
    hardware: Hardware

    @property
    def ids(self) -> list[str]:
        return self.known.ids

    def batch(self, epoch: int, rows: Rows, partners: Rows) -> Batch:
        again, pictures = np.divmod(rows, len(self.ids))
        turn = (epoch + again) % len(self.views)
        features = np.empty((len(rows), self.views[0].shape[1]), np.float32)
        for number in np.unique(turn):
            features[turn == number] = self.views[number][pictures[turn == number]]
        inputs = self.hardware.place(torch.from_numpy(features))
        return Batch(inputs, (self.known.of(rows).to(self.hardware.device),))

    def counts(self, epoch: int, rows: Rows, partners: Rows) -> Tensor:
        return counts([self.known.of(rows)]).to(self.hardware.device)


def picture_keys(
    ids: Sequence[str], *, seed: int, step: int, epoch: int, view: int, occurrence: Rows | int = 0
) -> Keys:
    """The key (B,) of each picture's random draws; it depends on the picture's id, not on its row.

    `occurrence`, one for all or (B,), tells the showings of one picture in an epoch apart.
    """
    pictures = np.array([zlib.crc32(name.encode()) for name in ids], dtype=np.int64)
    return keys(seed=seed, step=step, epoch=epoch, pictures=pictures, occurrence=occurrence, view=view)
