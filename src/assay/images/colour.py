"""Brightness, contrast, saturation and hue of an image: all as one affine map of its colours, or one at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from assay.arrays import Doubles

GREY = np.array([0.299, 0.587, 0.114])  # how bright red, green and blue look (ITU-R BT.601)
_YIQ = np.array([GREY, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


def jitter(
    images: Tensor, draws: Doubles, *, brightness: float, contrast: float, saturation: float, hue: float
) -> Tensor:
    """Return (B, 3, H, W) in [0, 1] with the colours of each image varied by its 4 draws in [0, 1).

    Brightness, contrast and saturation are multiplied by 1 - x to 1 + x, at least 0; the hue is turned by up
    to `hue` of a full circle either way. One after another in this order, as in torchvision, but clipped
    only at the end, so that values beyond white after one step can return in a later one. Hue is a rotation
    about the grey axis (in YIQ), which unlike that of HSV keeps the brightness.
    """
    bright, contrasting, saturating = (
        np.maximum(0, 1 + amount * (2 * draws[:, column] - 1))
        for column, amount in enumerate((brightness, contrast, saturation))
    )
    colours = _turned(hue * (2 * draws[:, 3] - 1)) @ _saturation(saturating)  # (B, 3, 3)
    # Contrast c about an image's grey mean m: c b x + (1 - c) b m, with b the brightness. The colours after
    # it leave greys as they are, so they pass that shift unchanged.
    linear = colours * (contrasting * bright)[:, None, None]
    about_grey = (1 - contrasting) * bright
    return _apply(images, linear, about_grey)


def brightened(images: Tensor, factors: Doubles) -> Tensor:
    """Return (B, 3, H, W) times factors (B,), clipped to [0, 1]. As ImageEnhance.Brightness of Pillow."""
    return images.mul(_beside(factors, images)[:, None, None, None]).clamp_(0, 1)


def contrasted(images: Tensor, factors: Doubles) -> Tensor:
    """Scale the distances from each image's grey mean by its factor (B,). As ImageEnhance.Contrast of Pillow."""
    return _apply(images, factors[:, None, None] * np.eye(3), 1 - factors)


def saturated(images: Tensor, factors: Doubles) -> Tensor:
    """Scale the distances of pixels from their greys by the factor (B,). As ImageEnhance.Color of Pillow."""
    return _apply(images, _saturation(factors), np.zeros(len(factors)))


def _apply(images: Tensor, linear: Doubles, about_grey: Doubles) -> Tensor:
    """Multiply the colours by (B, 3, 3), add (B,) times the image's grey mean, and clip."""
    flat = images.flatten(2)  # (B, 3, H W)
    shift = (flat.mean(2) * _beside(GREY, flat)).sum(1) * _beside(about_grey, flat)  # (B,)
    shift = shift[:, None, None].expand(-1, 3, 1)
    return torch.baddbmm(shift, _beside(linear, flat), flat).clamp_(0, 1).view_as(images)


def _beside(numbers: Doubles, tensor: Tensor) -> Tensor:
    return torch.from_numpy(numbers.astype(np.float32)).to(tensor.device)


def _saturation(factors: Doubles) -> Doubles:
    """Return matrices (B, 3, 3) on colours: factor 0 gives greys, 1 the identity."""
    kept = factors[:, None, None]
    return np.asarray(kept * np.eye(3) + (1 - kept) * GREY)


def _turned(turns: Doubles) -> Doubles:
    """Return matrices (B, 3, 3) that turn hues by a share of the circle, from red towards green."""
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    rotation = np.zeros((len(turns), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1], rotation[:, 1, 2] = cos, sin
    rotation[:, 2, 1], rotation[:, 2, 2] = -sin, cos
    return np.asarray(_RGB @ rotation @ _YIQ)
