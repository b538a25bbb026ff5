"""Geometry of augmentation: one matrix an image, and one resampling.

A matrix (3, 3) maps a position in the result to one in the source. Both are squares from -1 to 1, edge to edge, so
matrices do not depend on pixels. The image is cropped and mirrored first and then turned, so the matrices are
multiplied in that order: `crop @ mirror @ affine`. `draws` are uniform in [0, 1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from assay.arrays import Doubles

Frame = tuple[float, float, float, float]
"""A fixed view (a, b, c, d): the result at (x, y) is the source at (a x + c, b y + d)."""

WHOLE: Frame = (1.0, 1.0, 0.0, 0.0)

COARSEST = 1.5  # source pixels a result pixel, above which bilinear sampling would skip some and alias


def crop(draws: Doubles, *, area: tuple[float, float], ratio: tuple[float, float]) -> Doubles:
    """Return matrices of random boxes from 4 draws an image: area, proportions, horizontal and vertical position.

    Szegedy et al. 2015, "Going deeper with convolutions": the share is uniform, the logarithm of the
    proportions (width to height) too. Where a box does not fit, the usual code draws again; here the
    proportions are clipped until it does, and the share stays as drawn.
    """
    share = _between(draws[:, 0], *area)
    width, height = box(share, draws[:, 1], ratio=ratio)
    left, top = draws[:, 2] * (1 - width), draws[:, 3] * (1 - height)
    return _matrices(width, 0, 2 * left + width - 1, 0, height, 2 * top + height - 1)


def box(share: Doubles, draw: Doubles, *, ratio: tuple[float, float]) -> tuple[Doubles, Doubles]:
    """Return width and height, in shares of the side, of boxes with these shares of the area."""
    proportions = np.exp(_between(draw, *np.log(ratio)))
    proportions = np.clip(proportions, share, 1 / share)  # exactly where width and height are at most 1
    return np.sqrt(share * proportions), np.sqrt(share / proportions)


def mirror(draws: Doubles, *, across: bool, down: bool) -> Doubles:
    """Return matrices that mirror half of the images in each direction, from 2 draws an image."""
    x = np.where(across & (draws[:, 0] < 0.5), -1.0, 1.0)
    y = np.where(down & (draws[:, 1] < 0.5), -1.0, 1.0)
    return _matrices(x, 0, 0, 0, y, 0)


def affine(draws: Doubles, *, rotate: float, scale: tuple[float, float], shear: float, shift: float) -> Doubles:
    """Return matrices that shear, enlarge and turn about the centre, then shift, from 5 draws an image.

    `rotate` and `shear` are maxima in degrees either way, `shift` is one in shares of the side.
    """
    angle = np.deg2rad(_between(draws[:, 0], -rotate, rotate))
    enlarge = 1 / _between(draws[:, 1], *scale)
    slant = np.tan(np.deg2rad(_between(draws[:, 2], -shear, shear)))
    right, down = (_between(draws[:, column], -shift, shift) for column in (3, 4))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = _matrices(cos * enlarge, sin * enlarge, 0, -sin * enlarge, cos * enlarge, 0)
    return sheared(slant) @ turn @ shifted(right, down)


def rotated(degrees: Doubles) -> Doubles:
    """Return matrices that turn images clockwise about their centre by degrees (B,)."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return _matrices(cos, sin, 0, -sin, cos, 0)


def sheared(across: Doubles | float = 0.0, down: Doubles | float = 0.0) -> Doubles:
    """Return matrices that slant verticals (`across`) and horizontals (`down`), by tangents of the angle."""
    return _matrices(1, across, 0, down, 1, 0)


def shifted(right: Doubles | float = 0.0, down: Doubles | float = 0.0) -> Doubles:
    """Return matrices that move images by shares of their side."""
    return _matrices(1, 0, -2 * right, 0, 1, -2 * down)


def scaled(across: Doubles | float = 1.0, down: Doubles | float = 1.0) -> Doubles:
    """Return matrices that enlarge images about their centre by factors (B,)."""
    return _matrices(1 / across, 0, 0, 0, 1 / down, 0)


def framed(batch: Tensor, frame: Frame, size: int) -> Tensor:
    """Return uint8 (B, 3, S, S) through a frame, as float32 (B, 3, size, size), 0 to 255.

    A frame that only mirrors moves whole pixels of the plain image, without resampling.
    """
    across, down, right, below = frame
    if (abs(across), abs(down), right, below) == WHOLE:
        mirrored = [axis for axis, factor in ((3, across), (2, down)) if factor < 0]
        return plain(batch, size).float().flip(mirrored)
    beyond = max(abs(across) + abs(right), abs(down) + abs(below)) > 1 + 1e-9
    matrices = np.broadcast_to(_matrices(across, 0, right, 0, down, below), (len(batch), 3, 3))
    return sample(batch, matrices, size=size, reflect=beyond)


def sample(batch: Tensor, matrices: Doubles, *, size: int, reflect: bool) -> Tensor:
    """Resample uint8 (B, 3, S, S) bilinearly to float32 (B, 3, size, size), 0 to 255.

    The image is reflected at its edges: a model could learn from streaks of repeated edges or from black corners.
    `reflect=False` is faster, and the same where no position lies outside.
    """
    if batch.shape[-1] > COARSEST * size:  # as if it had been cached for this size
        batch = plain(batch, round(1.25 * size))
    grid = _grid(torch.from_numpy(matrices[:, :2].astype(np.float32)).to(batch.device), size)
    mode = "reflection" if reflect else "border"
    return grid_sample(batch.float(), grid, mode="bilinear", padding_mode=mode, align_corners=False)


def plain(batch: Tensor, size: int) -> Tensor:
    """Return uint8 (B, 3, S, S) resized without aliasing; the same tensor where S is `size` already."""
    if batch.shape[-1] == size:
        return batch
    if batch.device.type != "cpu":  # torch resizes bytes on processors only
        return interpolate(batch.float(), (size, size), mode="bilinear", antialias=True).round().byte()
    # Bytes with channels last: 1.3 ms for 32 images from 160 to 128, where floats took 4.5.
    batch = batch.contiguous(memory_format=torch.channels_last)
    return interpolate(batch, (size, size), mode="bilinear", antialias=True)


def _grid(matrices: Tensor, size: int) -> Tensor:
    """Return the source position (x, y) of every pixel, (B, size, size, 2), from matrices (B, 2, 3).

    Like `affine_grid` in an eighth of its time, with rounding that does not depend on the batch.
    """
    centres = (torch.arange(size, device=matrices.device) * 2 + 1) / size - 1
    grid = matrices.new_empty(len(matrices), size, size, 2)
    for axis in (0, 1):
        across, down, start = matrices[:, axis, :, None].unbind(1)  # (B, 1) each
        columns, rows = across * centres, down * centres + start  # (B, size)
        torch.add(rows[:, :, None], columns[:, None, :], out=grid[..., axis])
    return grid


def _between(draw: Doubles, low: float, high: float) -> Doubles:
    return low + (high - low) * draw


def _matrices(*entries: Doubles | float) -> Doubles:
    """Return matrices (B, 3, 3) from the six entries of their two upper rows."""
    filled = np.stack(np.broadcast_arrays(*map(np.atleast_1d, entries)), axis=-1)
    matrices = np.zeros((len(filled), 3, 3))
    matrices[:, :2] = filled.reshape(-1, 2, 3)
    matrices[:, 2, 2] = 1
    return matrices
