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
from assay.pixels.augment import Augment, augment, keys
from assay.pixels.cache import Cache
from assay.training.hardware import Hardware
from assay.training.loop import Batch, Rows
from assay.training.objective import counts, dense


class Known:
    """What is known of some pictures, row by row: targets, masks and weights of every head."""

    def __init__(self, samples: Samples) -> None:
        self.ids = samples.ids
        self.space: LabelSpace = samples.space
        self.codes = [torch.from_numpy(codes) for codes in samples.codes()]
        self.weights = torch.from_numpy(samples.weights())

    def of(self, rows: Rows, inputs: Tensor) -> Batch:
        """A batch of these rows, on the device of the inputs."""
        targets, masks = dense(self.space, [codes[rows] for codes in self.codes])
        device = inputs.device
        return Batch(
            inputs,
            [target.to(device) for target in targets],
            [mask.to(device) for mask in masks],
            self.weights[rows].to(device),
        )

    def counts(self, rows: Rows) -> Tensor:
        masks = [codes[rows] >= 0 for codes in self.codes]
        return counts(self.space, masks, self.weights[rows])


@dataclass(frozen=True)
class Pictures:
    """Pictures of a cache, augmented anew in every epoch."""

    known: Known
    cache: Cache
    size: int
    augment: Augment | None
    seed: int
    step: int
    hardware: Hardware

    @property
    def ids(self) -> list[str]:
        return self.known.ids

    def batch(self, epoch: int, rows: Rows) -> Batch:
        ids = [self.ids[row] for row in rows]
        drawn = picture_keys(ids, seed=self.seed, step=self.step, epoch=epoch, view=0)
        pixels = self.cache.gather(self.cache.rows_of(ids)).to(self.hardware.device, non_blocking=True)
        inputs = augment(pixels, drawn, size=self.size, settings=self.augment)
        return self.known.of(rows, self.hardware.place(inputs))

    def counts(self, rows: Rows) -> Tensor:
        return self.known.counts(rows).to(self.hardware.device)


@dataclass(frozen=True)
class Features:
    """Features of a frozen backbone; epochs take turns over their views."""

    known: Known
    views: Sequence[npt.NDArray[np.float32]]  # each (N, F), may be memory-mapped
    hardware: Hardware

    @property
    def ids(self) -> list[str]:
        return self.known.ids

    def batch(self, epoch: int, rows: Rows) -> Batch:
        features = torch.from_numpy(np.array(self.views[epoch % len(self.views)][rows]))
        return self.known.of(rows, self.hardware.place(features))

    def counts(self, rows: Rows) -> Tensor:
        return self.known.counts(rows).to(self.hardware.device)


def picture_keys(ids: Sequence[str], *, seed: int, step: int, epoch: int, view: int) -> npt.NDArray[np.uint64]:
    """The key (B,) of each picture's random draws; it depends on the picture's id, not on its row."""
    pictures = np.array([zlib.crc32(name.encode()) for name in ids], dtype=np.int64)
    return keys(seed=seed, step=step, epoch=epoch, pictures=pictures, occurrence=0, view=view)
