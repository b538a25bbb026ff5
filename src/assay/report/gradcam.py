"""Activations of one image: the maps that layers give, the pooled features, and Grad-CAM."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assay.arrays import Floats, Pixels, Reals
from assay.errors import ModelError
from assay.messages import plain
from assay.models.backbones import blocks
from assay.models.classifier import Classifier

CHANNELS = 64  # of a layer that a grid shows
TILE = 56  # pixels that a small map is enlarged to
GAP = 2
ROWS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # of modules: looked into, since some are never run themselves
NEAREST = 6  # names that a message offers
RAMP = np.array(
    [(0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39),
     (252, 255, 164)],
    np.float64,
)  # fmt: skip
"""Dark to bright at even steps of lightness (matplotlib's inferno), distinct in grey too."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The output of a layer for one image, and how that is read as maps (C, h, w)."""

    name: str
    output: Tensor
    read: Callable[[Tensor], Tensor | None]

    @property
    def maps(self) -> Tensor:
        return self.like(self.output.detach())

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.maps.shape
        return channels, height, width

    def like(self, values: Tensor) -> Tensor:
        """Return values of the output's shape, a gradient, as maps (C, h, w)."""
        maps = self.read(values)
        assert maps is not None  # as it was when the layer was kept
        return maps


@dataclass(frozen=True, eq=False)
class LayerOutputs:
    """Outputs of a network for one image: the layers whose output is a map, features (F,), logits (W,)."""

    layers: tuple[Layer, ...]
    features: Tensor
    logits: Tensor

    def named(self, name: str) -> Layer:
        """Return the layer of a name. Raises ModelError with the names that are near it."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = [layer.name for layer in self.layers]
        near = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.4) or names[:: max(1, len(names) // NEAREST)]
        raise ModelError(
            f"layer {plain(name)}: the network has no such layer that gives a map. Layers of its {len(names)} are "
            f"{', '.join(near)}; without the option evenly spaced ones are shown."
        )

    def spaced(self, count: int) -> list[Layer]:
        """Return `count` layers at even steps, from the first to the last; all where there are no more."""
        numbers = np.unique(np.linspace(0, len(self.layers) - 1, min(count, len(self.layers))).round().astype(int))
        return [self.layers[number] for number in numbers]


@dataclass(frozen=True, eq=False)
class Heat:
    """Where one logit comes from: heat (S, S) from 0 to 1, all 0 where no place speaks for it."""

    values: Floats
    layer: str
    side: tuple[int, int]  # of the layer's map, before it was enlarged

    @property
    def hottest(self) -> tuple[float, float] | None:
        """Return the middle of the hottest pixel, across and down, as shares of the image; None where all is 0."""
        if not self.values.any():
            return None
        row, column = np.unravel_index(int(self.values.argmax()), self.values.shape)
        return (float(column) + 0.5) / self.values.shape[1], (float(row) + 0.5) / self.values.shape[0]


def capture_layers(classifier: Classifier, image: Tensor) -> LayerOutputs:
    """Run a classifier in evaluation mode on an image (3, S, S) in [0, 1], and return what its layers give.

    A layer is a block of the backbone (`models.backbones.blocks`) with the activation that follows it; its name is
    that of the module which gives its map. A map of 1 x 1 counts as none. Raises ModelError where no layer gives one.
    """
    recorder = _Recorder(classifier.backbone)
    with torch.enable_grad(), recorder:
        features = classifier.features(image[None].detach().requires_grad_(True))
        logits = classifier.classify(features)
    layers = tuple(recorder.layers.values())
    if not layers:
        raise ModelError(
            f"backbone {classifier.backbone_name}: none of its layers gives a map of more than one place at "
            f"{image.shape[1]} x {image.shape[2]} pixels. There is nothing to look at."
        )
    return LayerOutputs(layers, features[0], logits[0])


def grad_cam(outputs: LayerOutputs, target: int, *, size: int, layer: Layer | None = None) -> Heat:
    """Return where the logit number `target` comes from, in an image of `size` pixels: Grad-CAM.

    The maps of a layer, each weighted by the mean of the logit's gradient over it, summed, and what speaks against
    it left out; then enlarged bilinearly. Without `layer`: the last one whose map the logit depends on, which under a
    class token is not the last (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2).
    """
    gradients = torch.autograd.grad(
        outputs.logits[target], [one.output for one in outputs.layers], retain_graph=True, allow_unused=True
    )
    chosen, gradient = layer or outputs.layers[-1], None
    for one, values_of in zip(outputs.layers, gradients, strict=True):
        if values_of is not None and (layer is one or (layer is None and bool(one.like(values_of).any()))):
            chosen, gradient = one, one.like(values_of)
    if gradient is None:
        return Heat(np.zeros((size, size), np.float32), chosen.name, chosen.shape[1:])
    heat = (gradient.mean(dim=(1, 2))[:, None, None] * chosen.maps).sum(dim=0).clamp(min=0)
    enlarged = nn.functional.interpolate(heat[None, None], size=(size, size), mode="bilinear", align_corners=False)
    values: Floats = enlarged[0, 0].float().cpu().numpy()
    most = float(values.max())
    return Heat(values / most if most > 0 else values, chosen.name, chosen.shape[1:])


def overlaid(image: Pixels, heat: Floats) -> Pixels:
    """Return an image (S, S, 3) in grey under its heat (S, S): dark where cold, bright and coloured where hot."""
    grey = image.astype(np.float64).mean(axis=2, keepdims=True)
    shade = (0.25 + 0.35 * heat)[:, :, None]
    mixed = grey * (1 - shade) * 0.8 + coloured(heat).astype(np.float64) * (shade + 0.2)
    overlay: Pixels = np.rint(mixed.clip(0, 255)).astype(np.uint8)
    return overlay


def grid(layer: Layer, *, channels: int = CHANNELS) -> tuple[Pixels, list[int]]:
    """Return the maps of a layer side by side, and which channels they are.

    Of more than `channels` those that vary most over the image, in their own order. Each map goes from its own
    lowest value (dark) to its own highest (bright), enlarged by whole pixels where it is tiny.
    """
    maps = layer.maps.float().cpu().numpy()
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


class _Recorder:
    """Keeps, within the block, what every layer of a backbone gives."""

    def __init__(self, backbone: nn.Module) -> None:
        self.layers: dict[str, Layer] = {}
        self._backbone, self._handles = backbone, list[Any]()
        self._last: str | None = None  # of the layers, by name
        self._of_block: dict[int, str] = {}

    def __enter__(self) -> None:
        for name, module, block in _modules(self._backbone):
            self._handles.append(module.register_forward_hook(self._hook(name, block)))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str, block: int | None) -> Any:
        def keep(module: nn.Module, given: Any, output: Any) -> Tensor | None:
            read = partial(_maps, module=module, backbone=self._backbone)
            is_map = isinstance(output, Tensor) and read(output) is not None
            if block is None:
                self._follow(Layer("", output, read) if is_map else None)
            else:
                self._begin(block, Layer(name, output, read) if is_map else None)
            # Handed on as a copy: an activation that works in place must not change what was kept.
            return output.clone() if is_map else None

        return keep

    def _begin(self, block: int, layer: Layer | None) -> None:
        self._last = layer.name if layer else None
        if layer:
            self.layers.pop(self._of_block.get(block, ""), None)  # a block is known by the last of its modules
            self.layers[layer.name], self._of_block[block] = layer, layer.name

    def _follow(self, layer: Layer | None) -> None:
        """Count what has no parameters to the layer before it where it keeps the map's size; pooling does not."""
        before = self.layers.get(self._last or "")
        if before and layer and layer.shape == before.shape:
            self.layers[before.name] = replace(layer, name=before.name)


def _modules(backbone: nn.Module) -> list[tuple[str, nn.Module, int | None]]:
    """Return the modules that give the maps of blocks, with the number of the block, and those between them (None)."""
    block_of = {name: number for number, names in enumerate(blocks(backbone)) for name in names}
    modules: list[tuple[str, nn.Module, int | None]] = []

    def walk(module: nn.Module, name: str) -> None:
        held = {block_of[f"{name}.{inner}"] for inner, _ in module.named_parameters()} if name else set()
        if name and len(held) == 1 and type(module) not in ROWS:
            modules.append((name, module, held.pop()))
        elif name and not held and not list(module.children()):
            modules.append((name, module, None))
        else:
            for inner, child in module.named_children():
                walk(child, f"{name}.{inner}" if name else inner)

    walk(backbone, "")
    return modules


def _maps(output: Tensor, *, module: nn.Module, backbone: nn.Module) -> Tensor | None:
    """Return an output for one image as maps (C, h, w) of more than 1 x 1; None where it is none.

    Rows of tokens become a square without the tokens before them; some transformers hold channels last.
    """
    if not output.is_floating_point() or output.ndim < 3 or output.shape[0] != 1:
        return None
    maps = output[0]
    if output.ndim == 3:
        maps = maps[int(getattr(backbone, "num_prefix_tokens", 0)) :]
        side = math.isqrt(len(maps))
        maps = maps.T.reshape(-1, side, side) if side * side == len(maps) else maps[:0]
    elif not isinstance(module, nn.Conv2d) and "NHWC" in (getattr(one, "output_fmt", "") for one in (module, backbone)):
        maps = maps.permute(2, 0, 1)
    return maps if maps.ndim == 3 and maps.shape[1] * maps.shape[2] > 1 else None
