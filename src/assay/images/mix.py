"""MixUp and CutMix: images mixed with a partner, and the share that remains of each.

MixUp (Zhang et al. 2018, "mixup: Beyond empirical risk minimization") is a weighted mean of all pixels;
CutMix (Yun et al. 2019, "CutMix: Regularization strategy to train strong classifiers with localizable
features") pastes a box of the partner. Either way a share lambda of an image remains.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator
from scipy.special import betainc, betaincinv
from torch import Tensor

from assay.arrays import Doubles, Floats, Ints, Keys
from assay.images.counter_rng import uniform
from assay.settings import Settings, require_rising

Alpha = Annotated[float, Field(gt=0)]
Area = Annotated[float, Field(gt=0, le=1)]


class Mix(Settings):
    """Mix every training image with another of its batch, and its labels in the same shares.

    Where both ways are given, each image takes one of them with even chance.
    """

    mixup: Alpha | None = Field(None, description="MixUp: an image's share is drawn from Beta(mixup, mixup).")
    cutmix: Alpha | None = Field(
        None,
        description="CutMix: an image's share is drawn from Beta(cutmix, cutmix), and a box of the rest pasted in.",
    )
    probability: float = Field(1.0, gt=0, le=1, description="Chance of each image to be mixed at all.")
    share: float | None = Field(
        None, gt=0, le=1, description="Instead, the share of the images of every batch that is mixed."
    )
    patch: tuple[Area, Area] | None = Field(
        None, description="Least and most share of the area that CutMix pastes; such a box lies wholly in the image."
    )

    _rising = field_validator("patch")(require_rising)

    def require_consistent(self) -> None:
        if self.mixup is None and self.cutmix is None:
            raise ValueError("mix has nothing to do; give mixup, cutmix or both, each with its alpha, such as 0.2")
        if self.patch is not None and self.cutmix is None:
            raise ValueError("patch bounds the box that cutmix pastes, and there is no cutmix; give it, or drop patch")
        if self.share is not None and self.probability < 1:
            raise ValueError("share and probability both say how many images are mixed; give one of them")


class _Drawn(NamedTuple):
    """The mixing of (B,) images."""

    outside: Doubles  # weight of the image outside the box; inside it is 0
    starts: Ints  # (2, B): left, top of the box; empty where nothing is pasted
    ends: Ints  # (2, B): right, bottom, not included


def shares(keys: Keys, *, size: int, settings: Mix) -> Floats:
    """Return the share (B,), 0 to 1, that `mix` leaves of each image of size x size pixels, clipped boxes included."""
    drawn = _drawn(keys, size, settings)
    pasted: Doubles = np.prod(drawn.ends - drawn.starts, axis=0) / size**2
    return (drawn.outside * (1 - pasted)).astype(np.float32)


def mix(images: Tensor, partners: Tensor, keys: Keys, *, settings: Mix) -> Tensor:
    """Return images (B, 3, S, S) mixed with partners of that shape by their keys (B,), in the shares of `shares`."""
    size = images.shape[-1]
    drawn = _drawn(keys, size, settings)
    pixels = np.arange(size)
    across, down = (drawn.starts[..., None] <= pixels) & (pixels < drawn.ends[..., None])  # (B, S) each
    inside = _beside(across, images)[:, None, None, :] & _beside(down, images)[:, None, :, None]
    outside = _beside(drawn.outside, images).to(images.dtype)[:, None, None, None]
    # lerp is exact at both ends: an image that is not mixed stays as it was, bit for bit.
    return partners.lerp(images, outside.masked_fill(inside, 0.0))


def _beside(values: npt.NDArray[np.generic], images: Tensor) -> Tensor:
    return torch.from_numpy(values).to(images.device)


def _drawn(keys: Keys, size: int, settings: Mix) -> _Drawn:
    mixed, way, portion, *middle = uniform(keys, 5).T
    cut = (way < 0.5) if settings.mixup and settings.cutmix else np.full(len(keys), settings.cutmix is not None)
    alpha = np.where(cut, settings.cutmix or 1.0, settings.mixup or 1.0)
    if settings.patch is not None:  # the part of the same distribution that lies within the bounds
        least, most = settings.patch
        low, high = betainc(alpha, alpha, 1 - most), betainc(alpha, alpha, 1 - least)
        portion = np.where(cut, low + portion * (high - low), portion)
    share = np.where(mixed < settings.probability, betaincinv(alpha, alpha, portion), 1.0)
    starts, ends = _boxes(np.where(cut, 1 - share, 0), np.stack(middle), size, settings.patch)
    return _Drawn(np.where(cut, 1.0, share), starts, ends)


def _boxes(areas: Doubles, draws: Doubles, size: int, bounds: tuple[float, float] | None) -> tuple[Ints, Ints]:
    """Return starts and ends (2, B) of boxes of these shares of the area (B,), positioned by draws (2, B) in [0, 1).

    They lie around a uniformly drawn pixel and are clipped at the border (Yun et al. 2019), so that most are smaller
    than drawn; within bounds, nothing is clipped.
    """
    sides = size * np.sqrt(areas)
    if bounds is None:
        sides = sides.astype(int)
        centres = (draws * size).astype(int)
        starts, ends = np.clip([centres - sides // 2, centres + sides // 2], 0, size)
        return starts, ends
    least, most = np.ceil(size * np.sqrt(bounds[0]) - 1e-9), np.floor(size * np.sqrt(bounds[1]) + 1e-9)
    if least > most:  # no box of whole pixels lies between them: the nearest one there is
        least, most = 1, size
    sides = np.where(areas > 0, np.clip(np.rint(sides), least, most), 0).astype(int)
    starts = (draws * (size - sides + 1)).astype(int)
    return starts, starts + sides
