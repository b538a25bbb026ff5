"""Last layers that are not linear in the features: class means, kernel machines, and several heads side by side.

The numbers of a layer are buffers, and so in model.safetensors; `describe` gives the rest, `build` reads it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Required, TypedDict

import torch
from torch import Tensor, nn

from assay.errors import ModelError


class LayerJson(TypedDict, total=False):
    """The layer of a head as JSON, without its numbers."""

    kind: Required[str]
    outputs: Required[int]
    paired: bool  # of class means
    support: int  # support vectors of a kernel machine


class NearestMean(nn.Module):
    """Cosine similarity to the mean of each class (nearest class mean, Kang et al. 2020), as logits (B, K).

    `paired`: means are those without a tag, then those with it; the logit is the difference of the two similarities.
    """

    centre: Tensor
    spread: Tensor
    means: Tensor
    slope: Tensor
    levels: Tensor

    def __init__(self, features: int, outputs: int, *, paired: bool) -> None:
        super().__init__()
        self.outputs, self.paired = outputs, paired
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("means", torch.zeros(outputs * (2 if paired else 1), features))  # of length 1
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("levels", torch.zeros(outputs))

    def similarities(self, features: Tensor) -> Tensor:
        """Return the similarities (B, K) of features (B, F), from -1 to 1, or differences of two of them."""
        directions = nn.functional.normalize((features - self.centre) / self.spread, dim=1)
        cosines = directions @ self.means.T
        return cosines[:, self.outputs :] - cosines[:, : self.outputs] if self.paired else cosines

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, K) of features (B, F)."""
        return self.slope * self.similarities(features) + self.levels

    def describe(self) -> LayerJson:
        """Return the description that rebuilds the layer, without its buffers."""
        return {"kind": "nearest_mean", "outputs": self.outputs, "paired": self.paired}


class KernelMachine(nn.Module):
    """One support vector machine a class on radial basis functions, and its Platt scaling: logits (B, K).

    It computes in float64 on the CPU, as scikit-learn did when it was fitted, wherever the rest of the network is.
    """

    centre: Tensor
    spread: Tensor
    support: Tensor
    dual: Tensor
    gamma: Tensor
    intercepts: Tensor
    slopes: Tensor
    levels: Tensor

    def __init__(self, features: int, outputs: int, *, support: int) -> None:
        super().__init__()
        self.outputs = outputs
        double = torch.float64
        self.register_buffer("centre", torch.zeros(features, dtype=double))
        self.register_buffer("spread", torch.ones(features, dtype=double))
        self.register_buffer("support", torch.zeros(support, features))  # features, as they came
        self.register_buffer("dual", torch.zeros(outputs, support, dtype=double))
        self.register_buffer("gamma", torch.ones((), dtype=double))
        self.register_buffer("intercepts", torch.zeros(outputs, dtype=double))
        self.register_buffer("slopes", torch.ones(outputs, dtype=double))
        self.register_buffer("levels", torch.zeros(outputs, dtype=double))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KernelMachine:
        # Stays where it is: in float32 the kernel's small differences are lost, and some devices have no float64.
        return self

    def decisions(self, features: Tensor) -> Tensor:
        """Return scikit-learn's decision function of each machine (B, K) on features (B, F), in float64."""
        x, support = self._standard(features), self._standard(self.support)
        distances = (x**2).sum(1, keepdim=True) + (support**2).sum(1) - 2 * x @ support.T  # squared
        return torch.exp(-self.gamma * distances.clamp(min=0)) @ self.dual.T + self.intercepts

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, K) of features (B, F), of their type and on their device."""
        return (self.slopes * self.decisions(features) + self.levels).to(features)

    def _standard(self, features: Tensor) -> Tensor:
        return (features.to("cpu", torch.float64) - self.centre) / self.spread

    def describe(self) -> LayerJson:
        """Return the description that rebuilds the layer, without its buffers."""
        return {"kind": "kernel", "outputs": self.outputs, "support": len(self.support)}


class JoinedLayers(nn.Module):
    """A layer a head, its logits side by side: (B, width)."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, width) of features (B, F)."""
        return torch.cat([part(features) for part in self.parts], dim=1)


def joined(layers: Sequence[nn.Module]) -> nn.Module:
    """Return one layer made of the layers of all heads, in order: linear where all of them are."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linear) < len(layers):
        return JoinedLayers(layers)
    return linear_layer(torch.cat([one.weight for one in linear]), torch.cat([one.bias for one in linear]))


def split(layer: nn.Module, sizes: Sequence[int]) -> list[nn.Module]:
    """Return the layer of each head, given their numbers of classes; the inverse of `joined`."""
    if isinstance(layer, JoinedLayers):
        return list(layer.parts)
    assert isinstance(layer, nn.Linear)
    parts = zip(torch.split(layer.weight, list(sizes)), torch.split(layer.bias, list(sizes)), strict=True)
    return [linear_layer(weight, bias) for weight, bias in parts]


def widened(layer: nn.Module, positions: Sequence[int], levels: Tensor) -> nn.Module:
    """Return a layer for more classes: its own at `positions`, each of the others with its level (K,) as the logit."""
    chosen, fixed = list(positions), levels.clone()
    fixed[chosen] = 0.0
    wider: nn.Linear | NearestMean | KernelMachine
    if isinstance(layer, nn.Linear):
        wider = linear_layer(layer.weight.new_zeros(len(levels), layer.in_features), fixed)
    else:
        assert isinstance(layer, NearestMean | KernelMachine)
        wider = (
            NearestMean(len(layer.centre), len(levels), paired=layer.paired)
            if isinstance(layer, NearestMean)
            else KernelMachine(len(layer.centre), len(levels), support=len(layer.support))
        )
        wider.levels.copy_(fixed)
    ours, theirs = layer.state_dict(), wider.state_dict()
    for name, value in theirs.items():
        if value.shape == ours[name].shape:
            value.copy_(ours[name])
        elif name == "means" and isinstance(layer, NearestMean):
            sides = 2 if layer.paired else 1
            value.view(sides, len(levels), -1)[:, chosen] = ours[name].view(sides, layer.outputs, -1)
        else:
            value[chosen] = ours[name].to(value)
    return wider


def linear_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear layer with this weight (K, F) and bias (K,), in float32."""
    layer = nn.Linear(weight.shape[1], len(weight), device="meta").to_empty(device="cpu")  # nothing is drawn
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def describe(layer: nn.Module) -> list[LayerJson] | None:
    """Return the description of a last layer, an entry a head; None for a linear one."""
    if not isinstance(layer, JoinedLayers):
        return None
    return [
        {"kind": "linear", "outputs": part.out_features} if isinstance(part, nn.Linear) else part.describe()  # type: ignore[operator]
        for part in layer.parts
    ]


def build(described: Sequence[LayerJson], features: int) -> nn.Module:
    """Return the layer on `features` inputs that `describe` described. Raises ModelError for an unknown kind."""
    return JoinedLayers([_part(entry, features) for entry in described])


KINDS: dict[str, Callable[[LayerJson, int], nn.Module]] = {
    "linear": lambda entry, features: nn.Linear(features, entry["outputs"]),
    "nearest_mean": lambda entry, features: NearestMean(features, entry["outputs"], paired=entry["paired"]),
    "kernel": lambda entry, features: KernelMachine(features, entry["outputs"], support=entry["support"]),
}
"""Builders of the layer of a head, by its kind, from its description and the number of features."""


def _part(entry: LayerJson, features: int) -> nn.Module:
    if entry["kind"] in KINDS:
        return KINDS[entry["kind"]](entry, features)
    raise ModelError(
        f"the model has a head of kind {entry['kind']!r}, which is not known here. Use the version that trained it."
    )
