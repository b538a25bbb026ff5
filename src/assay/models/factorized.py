"""DenseNets for few pictures: 3 x 3 convolutions in two halves, and a little noise while they train."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import timm
import torch
from pydantic import Field
from timm.models.densenet import DenseLayer
from torch import Tensor, nn

from assay.errors import ModelError
from assay.settings import Settings

DENSENETS = ("densenet121", "densenet161", "densenet169", "densenet201", "densenet264d", "densenetblur121d")


class FactorizedOptions(Settings):
    """How a DenseNet is factorised, and the noise in it."""

    groups: int = Field(1, ge=1, description="Groups of each 1 x 3 and 3 x 1 convolution.")
    noise: float = Field(0.005, ge=0, description="Standard deviation of the noise added in training.")
    noisy: int = Field(6, ge=0, description="How many of the first convolutions get it; a 1 x 3 and its 3 x 1 are one.")


def factorized(name: str, options: FactorizedOptions) -> nn.Module:
    """A DenseNet of timm's, randomly drawn, whose dense layers end in 1 x 3 and then 3 x 1 convolutions.

    Both give as many channels as the network grows by a layer (32). Raises ModelError where `groups` do not
    divide the channels.
    """
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    for layer in network.modules():
        if isinstance(layer, DenseLayer):
            layer.conv2 = _pair(layer.conv2, options.groups, name=name)
    convolutions = list(_convolutions(network))  # a list: what they are wrapped in is a module too
    for number, (path, convolution) in enumerate(convolutions[: options.noisy] if options.noise else ()):
        noisy = nn.Sequential(OrderedDict(conv=convolution, noise=Noise(options.noise, number)))
        network.set_submodule(path, noisy)
    return network


class Noise(nn.Module):
    """Adds Gaussian noise of mean 0 in training; in evaluation it gives back what it was given.

    The noise is drawn by a generator of its own, seeded anew whenever the global one is: from the same seed and
    the layer's number. The global generator is read and never drawn from, so that dropout elsewhere draws what
    it would have drawn without, and what follows a checkpoint is what would have followed without it.
    """

    def __init__(self, deviation: float, number: int) -> None:
        super().__init__()
        self.deviation = deviation
        self.number = number
        self._seed: int | None = None
        self._generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Activations of any shape."""
        if not self.training:
            return x
        noise = torch.empty_like(x).normal_(0.0, self.deviation, generator=self._drawing(x.device))
        return x + noise

    def extra_repr(self) -> str:
        return f"deviation={self.deviation}"

    def _drawing(self, device: torch.device) -> torch.Generator:
        seed = torch.initial_seed()
        if self._generator is None or seed != self._seed or self._generator.device != device:
            mixed = np.random.SeedSequence([seed, self.number]).generate_state(1, np.uint64)[0]
            self._generator = torch.Generator(device).manual_seed(int(mixed))
            self._seed = seed
        return self._generator

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_seed": None, "_generator": None}  # a copy draws its own


def _pair(square: nn.Conv2d, groups: int, *, name: str) -> nn.Sequential:
    """1 x 3 to the channels that the 3 x 3 gave, then 3 x 1, drawn as timm draws the 3 x 3."""
    given, channels = square.in_channels, square.out_channels
    if given % groups or channels % groups:
        raise ModelError(
            f"backbone factorized_{name}: options: groups: {groups} do not divide its {given} and {channels} channels "
            f"evenly. Choose a number that divides {channels}, such as 1, 2, 4 or 8."
        )
    across = nn.Conv2d(given, channels, (1, 3), padding=(0, 1), groups=groups, bias=False)
    down = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), groups=groups, bias=False)
    for half in (across, down):
        nn.init.kaiming_normal_(half.weight)
    return nn.Sequential(OrderedDict(across=across, down=down))


def _convolutions(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions by name in the order in which data passes; a pair is one."""
    pairs = {f"{path}.conv2" for path, layer in network.named_modules() if isinstance(layer, DenseLayer)}
    for path, module in network.named_modules():
        if path in pairs or (isinstance(module, nn.Conv2d) and path.rpartition(".")[0] not in pairs):
            yield path, module
