"""What every module of a network gives for one image, by name, and the layers that are shown of it."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assay.errors import ModelError
from assay.messages import plain
from assay.models.backbones import blocks, stages
from assay.models.classifier import Classifier, plain_views

ROWS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # of modules: looked into, since some are never run themselves
PREFIX = "backbone."  # of most names in a classifier, left out where they are shown
NEAREST = 6  # names that a message offers
STAGES = 12  # that are shown without asking


@dataclass(frozen=True, eq=False)
class Layer:
    """The output of a module for one image; `read` returns it as maps (C, h, w), or None where it is no map."""

    name: str
    kind: str
    output: Tensor
    read: Callable[[Tensor], Tensor | None]

    @property
    def is_map(self) -> bool:
        return self.read(self.output.detach()) is not None

    @property
    def values(self) -> Tensor:
        """The maps (C, h, w), else a series (F,), else the rows and columns of whatever it is (..., h, w)."""
        values = self.output.detach()
        maps = self.read(values)
        if maps is not None:
            return maps
        values = values.squeeze()
        return values.reshape(-1) if values.ndim < 2 else values.reshape(-1, *values.shape[-2:])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def maps_of(self, gradient: Tensor) -> Tensor:
        """Return a gradient of the output's shape as maps (C, h, w)."""
        maps = self.read(gradient)
        assert maps is not None  # as the output is a map
        return maps


@dataclass(frozen=True, eq=False)
class LayerOutputs:
    """Outputs of a network for one image.

    modules: of every module that was run, by name, in the order in which they end; of one that is run again the
    further outputs are `NAME#2` and so on. layers: the maps of the blocks. overview: stem and stages. features: (F,);
    logits: (W,).
    """

    modules: Mapping[str, Layer]
    layers: tuple[Layer, ...]
    overview: tuple[Layer, ...]
    features: Tensor
    logits: Tensor

    def named(self, name: str) -> Layer:
        """Return the output of a module, named with or without `backbone.`. Raises ModelError with near names."""
        for full in (name, PREFIX + name):
            if full in self.modules:
                return self.modules[full]
        names = [layer.name for layer in self.modules.values()]
        near = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}?" if near else f"its first are {', '.join(names[:NEAREST])}."
        raise ModelError(
            f"layer {plain(name)}: no module of that name gives a value for an image; {meant} "
            f"`assay explain RUN` without an image lists all {len(names):,}."
        )

    def map_named(self, name: str) -> Layer:
        """Return the output of a module that is a map, for Grad-CAM. Raises ModelError."""
        layer = self.named(name)
        if not layer.is_map:
            raise ModelError(
                f"layer {plain(name)}: it gives no map, so Grad-CAM has no places to weigh there. "
                f"The last layers with a map are {', '.join(one.name for one in self.layers[-NEAREST:])}."
            )
        return layer

    def spaced(self, count: int) -> list[Layer]:
        """Return the maps of `count` blocks at even steps, from the first to the last; all where there are no more."""
        return _spaced(self.layers, count)


def capture_layers(classifier: Classifier, image: Tensor) -> LayerOutputs:
    """Run a classifier in evaluation mode on an image (3, S, S) in [0, 1], and return what its modules give.

    Raises ModelError where no block gives a map of more than 1 x 1.
    """
    recorder = _Recorder(classifier)
    with torch.enable_grad(), plain_views([classifier]), recorder:
        features = classifier.features(image[None].detach().requires_grad_(True))
        logits = classifier.classify(features)
    modules, backbone = recorder.modules, classifier.backbone
    by_block = _block_layers(modules, backbone)
    layers = tuple(by_block.values())
    if not layers:
        raise ModelError(
            f"backbone {classifier.backbone_name}: none of its layers gives a map of more than one place at "
            f"{image.shape[1]} x {image.shape[2]} pixels. There is nothing to look at."
        )
    overview = tuple({layer.name: layer for layer in _overview(modules, by_block, backbone)}.values())
    return LayerOutputs(modules, layers, overview, features[0], logits[0])


class _Recorder:
    """Keeps, within the block, what every module of a classifier gives."""

    def __init__(self, classifier: Classifier) -> None:
        self.modules: dict[str, Layer] = {}
        self._classifier, self._handles = classifier, list[Any]()
        self._runs = Counter[str]()

    def __enter__(self) -> None:
        for name, module in self._classifier.named_modules():
            if not name:
                continue
            fused = _activation_within(module)
            if fused is not None:
                self._handles.append(fused.register_forward_pre_hook(partial(self._before, name, module)))
            self._handles.append(module.register_forward_hook(partial(self._after, name, fused is not None)))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, name: str, module: nn.Module, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Keep a norm's output before the activation within it, which may work in place."""
        self._keep(name, module, given[0], remark=" before its activation")
        return (given[0].clone(), *given[1:])

    def _after(self, name: str, kept: bool, module: nn.Module, _: Any, output: Any) -> Tensor | None:
        first = output
        while isinstance(first, list | tuple) and first:
            first = first[0]
        if isinstance(first, Tensor) and first.is_floating_point() and not kept:
            self._keep(name, module, first)
        # Handed on as a copy: what works in place must not change what was kept.
        return output.clone() if isinstance(output, Tensor) else None

    def _keep(self, name: str, module: nn.Module, output: Tensor, *, remark: str = "") -> None:
        self._runs[name] += 1
        name += f"#{self._runs[name]}" if self._runs[name] > 1 else ""
        read = partial(_maps, module=module, backbone=self._classifier.backbone)
        self.modules[name] = Layer(name.removeprefix(PREFIX), type(module).__name__ + remark, output, read)


def _activation_within(module: nn.Module) -> nn.Module | None:
    """Return the activation of a norm that has one within, as timm's `BatchNormAct2d`."""
    held = next(module.parameters(recurse=False), next(module.buffers(recurse=False), None))
    inside = getattr(module, "act", None)
    return inside if held is not None and "Norm" in type(module).__name__ and isinstance(inside, nn.Module) else None


def _block_layers(modules: Mapping[str, Layer], backbone: nn.Module) -> dict[int, Layer]:
    """Return the last map of every block, with the activation that follows it where the map keeps its size."""
    numbers = dict(_blocks_of(backbone))
    last: int | None = None
    layers: dict[int, Layer] = {}  # in the order in which blocks end
    for name, layer in modules.items():
        number = numbers.get(name)
        if number is not None:
            last = number if layer.is_map else None
            if layer.is_map:
                layers.pop(number, None)
                layers[number] = layer
        elif name in numbers and last is not None and layer.shape == layers[last].shape:  # pooling does not keep it
            layers[last] = layer
    return layers


def _blocks_of(backbone: nn.Module) -> Iterator[tuple[str, int | None]]:
    """Yield names of modules: those that give the maps of blocks, with the block's number, and those between (None)."""
    block_of = {name: number for number, names in enumerate(blocks(backbone)) for name in names}

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, int | None]]:
        held = {block_of[f"{name}.{inner}"] for inner, _ in module.named_parameters()} if name else set()
        if name and len(held) == 1 and type(module) not in ROWS:
            yield PREFIX + name, held.pop()
            if _activation_within(module):
                yield f"{PREFIX}{name}.act", None
        elif name and not held and not list(module.children()):
            yield PREFIX + name, None
        else:
            for inner, child in module.named_children():
                yield from walk(child, f"{name}.{inner}" if name else inner)

    return walk(backbone, "")


def _overview(modules: Mapping[str, Layer], layers: Mapping[int, Layer], backbone: nn.Module) -> Iterator[Layer]:
    """Yield the first convolution, norm, activation and pooling of the stem, each stage, and the last map."""
    parts = stages(backbone)
    stage_of = {name: number for number, stage in enumerate(parts) for name in stage.parameters}
    yield from _stem(modules, {name for name, number in stage_of.items() if number == 0}, backbone)
    last = {stage_of[blocks(backbone)[number][0]]: layer for number, layer in layers.items()}  # of each stage
    named = []
    for number, stage in enumerate(parts[1:], 1):
        layer = modules.get(PREFIX + stage.name)
        if layer is not None and layer.is_map and list(backbone.get_submodule(stage.name).children()):
            named.append(layer)
        elif number in last:
            named.append(last[number])
    yield from _spaced(named, STAGES)
    end = [*layers.values()][-1]
    if not named or not _same(named[-1], end):
        yield end


def _stem(modules: Mapping[str, Layer], parameters: set[str], backbone: nn.Module) -> Iterator[Layer]:
    """Yield the first of each kind among the modules that run before the second stage."""
    kinds: set[str] = set()
    before: Layer | None = None
    for full, layer in modules.items():
        name = layer.name.partition("#")[0]
        module = backbone.get_submodule(name) if full.startswith(PREFIX) else None
        direct = [f"{name}.{inner}" for inner, _ in module.named_parameters(recurse=False)] if module else []
        if module is None or any(parameter not in parameters for parameter in direct):
            return
        whole = not direct and bool(list(module.children()))
        if whole or not layer.is_map or isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
            continue
        kind = _kind(module)
        if kind not in kinds and not (before is not None and _same(before, layer)):
            kinds.add(kind)
            yield layer
        before = layer


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    return next((kind for kind in ("Norm", "Pool") if kind in type(module).__name__), "activation")


def _same(one: Layer, other: Layer) -> bool:
    """Return whether two layers give the same values, as before and after noise in evaluation."""
    return one.output.shape == other.output.shape and torch.equal(one.output, other.output)


def _spaced(layers: Sequence[Layer], count: int) -> list[Layer]:
    numbers = np.unique(np.linspace(0, len(layers) - 1, min(count, len(layers))).round().astype(int))
    return [layers[number] for number in numbers]


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
