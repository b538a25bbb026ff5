"""Two pictures made one, and how much of it is of the first: MixUp and CutMix.

MixUp (Zhang et al. 2018, "mixup: Beyond empirical risk minimization") is a weighted mean of all pixels;
CutMix (Yun et al. 2019, "CutMix: Regularization strategy to train strong classifiers with localizable
features") pastes a box of the partner. Either way a share lambda of a picture is its own.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from scipy.special import betaincinv
from torch import Tensor

from assay.pixels.draws import Keys, draws
from assay.settings import Settings

Alpha = Annotated[float, Field(gt=0)]


class Mix(Settings):
    """Mix every training picture with another of its batch, and its labels in the same shares.

    Where both ways are given, each picture goes one of them by even chance.
    """

    mixup: Alpha | None = Field(None, description="MixUp: a picture's share is drawn from Beta(mixup, mixup).")
    cutmix: Alpha | None = Field(
        None,
        description="CutMix: a picture's share is drawn from Beta(cutmix, cutmix), and a box of the rest pasted in.",
    )
    probability: float = Field(1.0, gt=0, le=1, description="Share of the pictures that are mixed at all.")

    @model_validator(mode="after")
    def _some(self) -> Mix:
        if self.mixup is None and self.cutmix is None:
            raise ValueError("mix has nothing to do; give mixup, cutmix or both, each with its alpha, such as 0.2")
        return self


class _Drawn(NamedTuple):
    """How each of (B,) pictures is mixed."""

    outside: npt.NDArray[np.float64]  # a picture's share of its pixels outside the box; inside it has none
    starts: npt.NDArray[np.int64]  # (2, B): left, top of the box; empty where nothing is pasted
    ends: npt.NDArray[np.int64]  # (2, B): right, bottom, not included


def shares(keys: Keys, *, size: int, settings: Mix) -> npt.NDArray[np.float32]:
    """The share (B,), 0 to 1, that `mix` leaves of each picture of size x size pixels: exact for a clipped box too."""
    drawn = _drawn(keys, size, settings)
    pasted: npt.NDArray[np.float64] = np.prod(drawn.ends - drawn.starts, axis=0) / size**2
    return (drawn.outside * (1 - pasted)).astype(np.float32)


def mix(pictures: Tensor, partners: Tensor, keys: Keys, *, settings: Mix) -> Tensor:
    """Mix pictures (B, 3, S, S) with partners of that shape, each as its key (B,) says, in shares of `shares`."""
    size = pictures.shape[-1]
    drawn = _drawn(keys, size, settings)
    pixels = np.arange(size)
    across, down = (drawn.starts[..., None] <= pixels) & (pixels < drawn.ends[..., None])  # (B, S) each
    inside = _beside(across, pictures)[:, None, None, :] & _beside(down, pictures)[:, None, :, None]
    outside = _beside(drawn.outside, pictures).to(pictures.dtype)[:, None, None, None]
    # lerp is exact at both ends: a picture that is not mixed stays as it was, bit for bit.
    return partners.lerp(pictures, outside.masked_fill(inside, 0.0))


def _beside(values: npt.NDArray[np.generic], pictures: Tensor) -> Tensor:
    return torch.from_numpy(values).to(pictures.device)


def _drawn(keys: Keys, size: int, settings: Mix) -> _Drawn:
    mixed, way, portion, *middle = draws(keys, 5).T
    cut = (way < 0.5) if settings.mixup and settings.cutmix else np.full(len(keys), settings.cutmix is not None)
    alpha = np.where(cut, settings.cutmix or 1.0, settings.mixup or 1.0)
    share = np.where(mixed < settings.probability, betaincinv(alpha, alpha, portion), 1.0)
    # A box of 1 - lambda of the area around a pixel of even chance, clipped at the border (Yun et al. 2019).
    side = np.where(cut, size * np.sqrt(1 - share), 0).astype(int)
    centres = (np.stack(middle) * size).astype(int)
    starts, ends = np.clip([centres - side // 2, centres + side // 2], 0, size)
    return _Drawn(np.where(cut, 1.0, share), starts, ends)
