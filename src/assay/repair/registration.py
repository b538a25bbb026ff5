"""Pairs of small images laid over each other, and how well they then agree.

Lucas-Kanade in its inverse compositional form (Baker & Matthews 2004) on band-passed images, of all pairs of a block at
once: the affine map by which a window of one image becomes the other, whatever its gain and offset.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.arrays import Floats, Ints

COARSE, FINE, DETAIL = (0.6, 2.5), (0.5, 3.0), (1.0, 4.0)  # deviations of the Gaussians whose difference is a band
HALF = 2  # by which sides are divided for the coarse band: a quarter of the cost, and most pairs go no further
ROUNDS = 6  # of Gauss-Newton in each band
BLOCK = 256  # pairs at a time
STEP = 0.2  # of an entry of a map in a round, in halves of a side
DAMPING = 0.01  # against sliding along a single edge: added to the curvatures, as a share of their mean
DISAGREE = 0.65  # correlation of the coarse band up to which a pair is no copy
COVERED = 0.5  # of the template that must lie within the other image
LOCAL = 2.5  # deviation of the Gaussian of the local contrast


def agreement(
    images: Floats, pairs: Ints, maps: Floats, *, progress: Callable[[float], None] = lambda share: None
) -> tuple[Floats, Floats]:
    """Return correlations (P,) of pairs (P, 2) of grey images (N, S, S), the second laid over the first, and the maps.

    A map (2, 3) gives coordinates in the second image, from -1 to 1, by those in the first and 1; `maps` (P, 2, 3) are
    where to begin. The correlation is that of the fine band, its contrast evened out, or 0 where the coarse band
    disagrees already. `progress` is called with the share of the pairs that is done.
    """
    correlations, best = np.zeros(len(pairs), np.float32), maps.astype(np.float32)
    for start in range(0, len(pairs), BLOCK):
        progress(start / len(pairs))
        rows = np.arange(start, min(start + BLOCK, len(pairs)))
        template, other, warp = _of(images, pairs[rows], best[rows])
        half, other_half = (_band(F.avg_pool2d(part[:, None], HALF)[:, 0], *COARSE) for part in (template, other))
        warp, coarse = _registered(half, other_half, warp)
        agrees = coarse > DISAGREE
        if agrees.any():
            rows = rows[agrees.numpy()]
            correlations[rows], best[rows], _ = _agreed(template[agrees], other[agrees], warp[agrees], FINE)
    return correlations, best


def detailed_agreement(images: Floats, pairs: Ints, maps: Floats) -> tuple[Floats, Floats]:
    """Return correlations (P,) of pairs (P, 2) of larger images (N, S, S), and the lower contrast (P,) of each pair.

    `maps` (P, 2, 3) are nearly right. The contrast is the standard deviation of the band, in levels.
    """
    correlations, contrasts = np.zeros(len(pairs), np.float32), np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), BLOCK // 4):  # four times the pixels, the same memory
        rows = slice(start, start + BLOCK // 4)
        correlations[rows], _, contrasts[rows] = _agreed(*_of(images, pairs[rows], maps[rows]), DETAIL)
    return correlations, contrasts


def _of(images: Floats, pairs: Ints, maps: Floats) -> tuple[Tensor, Tensor, Tensor]:
    template, other = (torch.from_numpy(images[rows].astype(np.float32)) for rows in pairs.T)
    return template, other, torch.from_numpy(maps.astype(np.float32))


def _agreed(template: Tensor, other: Tensor, warp: Tensor, band: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the correlation (P,) of a band of images (P, S, S) after registration, its map, and the lower contrast."""
    template, other = _band(template, *band), _band(other, *band)
    warp, _ = _registered(template, other, warp)
    contrast = torch.minimum(template.std(dim=(1, 2)), other.std(dim=(1, 2)))
    return _correlation(_evened(template), _evened(other), warp), warp, contrast


def turned(images: Floats, degrees: float) -> Floats:
    """Return images (N, S, S) sampled on a grid that is turned, clockwise as seen."""
    warp = torch.from_numpy(turn(degrees)[:2].astype(np.float32)).expand(len(images), 2, 3)
    return np.asarray(_sample(torch.from_numpy(images), warp, _grid(images.shape[1]))[0].reshape(images.shape).numpy())


def turn(degrees: float) -> Floats:
    """Return the map (3, 3) of coordinates on a turned grid to those of the image."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], np.float32)


def _registered(template: Tensor, other: Tensor, warp: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best of the maps (P, 2, 3) of some rounds, and the correlation (P,) under it."""
    grid, descent, inverse = _descent(template)
    best, highest = warp.clone(), torch.full((len(warp),), -2.0)
    for left in reversed(range(ROUNDS + 1)):
        sampled, mask = _sample(other, warp, grid)
        difference = _normalised(sampled, mask)
        flat = _normalised(template.flatten(1), mask)
        agreed = torch.where(mask.mean(1) < COVERED, -1.0, (difference * flat).sum(1))
        better = agreed > highest
        best[better], highest[better] = warp[better], agreed[better]
        if left:
            error = (difference - flat)[:, :, None]
            change = (inverse @ (descent.transpose(1, 2) @ error))[:, :, 0].clamp(-STEP, STEP)
            moved = torch.eye(3).expand(len(warp), 3, 3).clone()
            moved[:, :2] += change.view(-1, 2, 3)
            linear = warp[:, :, :2] @ torch.linalg.inv(moved)[:, :2]  # (P, 2, 3)
            warp = linear + torch.cat([torch.zeros_like(warp[:, :, :2]), warp[:, :, 2:]], dim=2)
    return best, highest


def _descent(template: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the grid (S * S, 3), the derivatives (P, S * S, 6) by the entries of a map, and (P, 6, 6) to solve.

    Directions in which a change looks like one of gain or offset are taken off.
    """
    side, grid = template.shape[-1], _grid(template.shape[-1])
    slopes = torch.zeros(len(template), 2, side, side)
    slopes[:, 0, :, 1:-1] = (template[:, :, 2:] - template[:, :, :-2]) * side / 4
    slopes[:, 1, 1:-1] = (template[:, 2:] - template[:, :-2]) * side / 4
    descent = (slopes.flatten(2).transpose(1, 2)[..., None] * grid[:, None]).flatten(2)
    flat = template.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    length = centred.norm(dim=1)[:, None] + 1e-6
    unit = (centred / length)[:, :, None]
    descent = descent / length[:, :, None]
    descent = descent - descent.mean(1, keepdim=True)
    descent = descent - unit * (unit * descent).sum(1, keepdim=True)
    square = descent.transpose(1, 2) @ descent
    size = square.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    return grid, descent, torch.linalg.inv(square + (DAMPING * size + 1e-9) * torch.eye(6))


def _grid(side: int) -> Tensor:
    """Return the coordinates of the pixels, from -1 to 1, and 1: (S * S, 3)."""
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)], -1).reshape(-1, 3)


def _sample(images: Tensor, warp: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values (P, S * S) of images at the mapped grid, and where it lies within them, as 0 and 1."""
    points = (grid @ warp.transpose(1, 2)).view(len(images), images.shape[1], images.shape[2], 2)
    values = F.grid_sample(images[:, None], points, align_corners=False, padding_mode="border")
    return values.flatten(1), (points.abs() <= 1).all(-1).flatten(1).float()


def _normalised(values: Tensor, mask: Tensor) -> Tensor:
    """Return values (P, n) less their mean and of length 1 within the mask (P, n), 0 outside."""
    mean = (values * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    inside = (values - mean) * mask
    unit: Tensor = inside / (inside.norm(dim=1, keepdim=True) + 1e-6)
    return unit


def _correlation(template: Tensor, other: Tensor, warp: Tensor) -> Tensor:
    values, mask = _sample(other, warp, _grid(template.shape[-1]))
    products: Tensor = _normalised(values, mask) * _normalised(template.flatten(1), mask)
    return products.sum(dim=1)


def _band(images: Tensor, low: float, high: float) -> Tensor:
    return _blurred(images, low) - _blurred(images, high)


def _evened(band: Tensor) -> Tensor:
    """Return a band divided by its local contrast, which keeps one strong edge from deciding alone."""
    contrast = _blurred(band.square(), LOCAL).clamp(min=0).sqrt()
    return band / (contrast + 0.5 * band.std(dim=(1, 2), keepdim=True) + 0.5)


def _blurred(images: Tensor, deviation: float) -> Tensor:
    radius = round(3 * deviation)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1).float() ** 2) / (2 * deviation**2))
    kernel /= kernel.sum()
    padded = F.pad(images[:, None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]
