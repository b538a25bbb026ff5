"""Grad-CAM of one image, and layers as images: maps side by side, a vector as a series."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from assay.arrays import Floats, Pixels, Reals
from assay.report.layer_outputs import Layer, LayerOutputs

CHANNELS = 64  # of a layer that a grid shows
TILE = 56  # pixels that a small map is enlarged to
GAP = 2
MIN_MAP = 7  # places a side of a map that Grad-CAM is drawn from: what ResNet-50 has at 224 pixels
BAR = np.array((11, 98, 168), np.uint8)
SERIES = (640, 320)  # width and height, in pixels, of a vector
RAMP = np.array(
    [(0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39),
     (252, 255, 164)],
    np.float64,
)  # fmt: skip
"""Dark to bright at even steps of lightness (matplotlib's inferno), distinct in grey too."""


@dataclass(frozen=True, eq=False)
class Heat:
    """Where one logit comes from: heat (S, S) from 0 to 1, all 0 where no place speaks for it."""

    values: Floats
    layer: str
    side: tuple[int, int]  # of the layer's map, before it was enlarged
    last: tuple[int, int]  # the same of the last layer

    @property
    def hottest(self) -> tuple[float, float] | None:
        """Return the middle of the hottest pixel, across and down, as shares of the image; None where all is 0."""
        if not self.values.any():
            return None
        row, column = np.unravel_index(int(self.values.argmax()), self.values.shape)
        return (float(column) + 0.5) / self.values.shape[1], (float(row) + 0.5) / self.values.shape[0]


def grad_cam(outputs: LayerOutputs, target: int, *, size: int, layer: Layer | None = None) -> Heat:
    """Return where the logit number `target` comes from, in an image of `size` pixels: Grad-CAM.

    The maps of a layer, each weighted by the mean of the logit's gradient over it, summed, and what speaks against
    it left out; then enlarged bilinearly. Without `layer`: the last one whose map the logit depends on, which under a
    class token is not the last (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2), and whose
    map has at least 7 x 7 places; where none has, the last of the finest.
    """
    candidates = [layer] if layer else [*outputs.layers]
    gradients = torch.autograd.grad(
        outputs.logits[target], [one.output for one in candidates], retain_graph=True, allow_unused=True
    )
    last = _side(outputs.layers[-1])
    usable = [
        (one, one.maps_of(values_of).mean(dim=(1, 2)))
        for one, values_of in zip(candidates, gradients, strict=True)
        if values_of is not None and (layer or bool(one.maps_of(values_of).any()))
    ]
    if not usable:
        chosen = candidates[-1]
        return Heat(np.zeros((size, size), np.float32), chosen.name, _side(chosen), last)
    finest = min(MIN_MAP, max(min(_side(one)) for one, _ in usable))
    chosen, weights = next(pair for pair in reversed(usable) if min(_side(pair[0])) >= finest)
    heat = (weights[:, None, None] * chosen.values).sum(dim=0).clamp(min=0)
    enlarged = nn.functional.interpolate(heat[None, None], size=(size, size), mode="bilinear", align_corners=False)
    values: Floats = enlarged[0, 0].float().cpu().numpy()
    most = float(values.max())
    return Heat(values / most if most > 0 else values, chosen.name, _side(chosen), last)


def _side(layer: Layer) -> tuple[int, int]:
    height, width = layer.shape[-2:]
    return height, width


def overlaid(image: Pixels, heat: Floats) -> Pixels:
    """Return an image (S, S, 3) in grey under its heat (S, S): dark where cold, bright and coloured where hot."""
    grey = image.astype(np.float64).mean(axis=2, keepdims=True)
    shade = (0.25 + 0.35 * heat)[:, :, None]
    mixed = grey * (1 - shade) * 0.8 + coloured(heat).astype(np.float64) * (shade + 0.2)
    overlay: Pixels = np.rint(mixed.clip(0, 255)).astype(np.uint8)
    return overlay


def pictured(layer: Layer) -> tuple[Pixels, list[int]]:
    """Return a layer as an image, and which of its channels that has; of a vector none."""
    values = layer.values.float().cpu().numpy()
    return (series(values), []) if values.ndim == 1 else grid(values)


def series(values: Reals) -> Pixels:
    """Return a vector (F,) as upright bars from 0, 640 x 320; where bars share a column, from lowest to highest."""
    width, height = SERIES
    values = np.nan_to_num(values)
    starts = np.arange(width) * len(values) // width
    tops, bottoms = (np.maximum.reduceat(values, starts).clip(min=0), np.minimum.reduceat(values, starts).clip(max=0))
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    levels = high - (np.arange(height)[:, None] + 0.5) / height * ((high - low) or 1.0)
    filled = (levels <= tops) & (levels >= bottoms)
    pixels: Pixels = np.where(filled[:, :, None], BAR, np.uint8(255))
    return pixels


def grid(maps: Reals, *, channels: int = CHANNELS) -> tuple[Pixels, list[int]]:
    """Return maps (C, h, w) side by side, and which channels they are.

    Of more than `channels` those that vary most over the image, in their own order. Each map goes from its own
    lowest value (dark) to its own highest (bright), enlarged by whole pixels where it is tiny.
    """
    spread = maps.std(axis=(1, 2))
    kept = np.sort(np.argsort(-spread, kind="stable")[:channels])
    low, high = (edge(maps[kept], axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    scaled = (maps[kept] - low) / np.where(high > low, high - low, 1)
    times = max(1, TILE // max(scaled.shape[1:]))
    tiles = coloured(scaled.repeat(times, axis=1).repeat(times, axis=2))
    return _side_by_side(tiles), kept.tolist()


def coloured(values: Reals) -> Pixels:
    """Return values in [0, 1] of any shape as colours (..., 3), dark to bright."""
    steps = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(values, steps, RAMP[:, channel]) for channel in range(3)]
    pixels: Pixels = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return pixels


def _side_by_side(tiles: Pixels) -> Pixels:
    """Return tiles (n, h, w, 3) in rows that are as long as there are rows, or a little longer."""
    count, height, width, _ = tiles.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * (height + GAP), (number % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet
