"""Our own backbones, by the names and options that plans give them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import timm
import torch
from pydantic import Field, PositiveInt, ValidationError
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.densenet import DenseLayer
from timm.models.resnet import Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from assay.errors import ModelError
from assay.settings import Settings

DENSENETS = ("densenet121", "densenet161", "densenet169", "densenet201", "densenet264d", "densenetblur121d")


class FactorizedOptions(Settings):
    """Factorisation of a DenseNet, and the noise in it."""

    groups: int = Field(1, ge=1, description="Groups of each 1 x 3 and 3 x 1 convolution.")
    noise: float = Field(0.005, ge=0, description="Standard deviation of the noise added in training.")
    noisy: int = Field(6, ge=0, description="How many of the first convolutions get it; a 1 x 3 and its 3 x 1 are one.")


def factorized(name: str, options: FactorizedOptions) -> nn.Module:
    """Return a DenseNet of timm's, randomly drawn, whose dense layers end in 1 x 3 and then 3 x 1 convolutions.

    Both give as many channels as the network grows by a layer (32). Raises ModelError where `groups` do not
    divide the channels.
    """
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    for layer in network.modules():
        if isinstance(layer, DenseLayer):
            layer.conv2 = _pair(layer.conv2, options.groups, name=name)
    convolutions = list(_factorized_convolutions(network))  # a list: wrapping adds modules
    for number, (path, convolution) in enumerate(convolutions[: options.noisy] if options.noise else ()):
        noisy = nn.Sequential(OrderedDict(conv=convolution, noise=Noise(options.noise, number)))
        network.set_submodule(path, noisy)
    return network


class Noise(nn.Module):
    """Gaussian noise of mean 0 in training; the identity in evaluation.

    The layer has a generator, seeded anew whenever the global one is: from the same seed and the layer's number. The
    global generator is never drawn from, so that dropout elsewhere is the same with and without noise, also after a
    checkpoint.
    """

    def __init__(self, deviation: float, number: int) -> None:
        super().__init__()
        self.deviation = deviation
        self.number = number
        self._seed: int | None = None
        self._generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations, of any shape, with noise in training."""
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
    """Return a 1 x 3 and a 3 x 1 convolution in place of a 3 x 3, initialised as timm does."""
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


def _factorized_convolutions(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield convolutions by name in the order in which data passes; a pair counts as one."""
    pairs = {f"{path}.conv2" for path, layer in network.named_modules() if isinstance(layer, DenseLayer)}
    for path, module in network.named_modules():
        if path in pairs or (isinstance(module, nn.Conv2d) and path.rpartition(".")[0] not in pairs):
            yield path, module


# Plain convolutional networks of our own: no published weights, and as wide as their images make them.


class PlainCNN(nn.Module):
    """Groups of 3 x 3 "same" convolutions, each with ReLU, then linear layers: features (B, num_features).

    A stage is a group of convolutions (`conv1`, `conv2`, ...), the last one all linear layers (`linear`), if any.
    Weights are drawn by He et al. 2015 (https://arxiv.org/abs/1502.01852): with torch's own draws, which are
    smaller, next to nothing of the image is left behind a dozen layers without batch-norm.
    """

    def __init__(
        self,
        name: str,
        groups: Sequence[Sequence[int]],
        *,
        size: int,
        pools: int,
        linear: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        """`groups`: filters of each convolution; the first `pools` groups end with 2 x 2 max-pooling.

        `size`: of the images, in pixels. `linear`: widths, each followed by ReLU and dropout.
        Raises ModelError where pooling leaves nothing of images so small.
        """
        super().__init__()
        self.reduction = 2**pools
        side = size // self.reduction  # of the last map
        if side == 0:
            raise ModelError(
                f"backbone {name}: images of {size} x {size} are too small: {pools} times 2 x 2 max-pooling "
                f"leave nothing of images under {self.reduction} pixels. "
                f"Set size: {self.reduction} or more, or choose another backbone."
            )
        # In timm's words, which all that reads a backbone understands.
        self.pretrained_cfg = {"input_size": (3, size, size), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        self.side = side
        channels = 3
        for number, filters in enumerate(groups, start=1):
            self.add_module(f"conv{number}", _plain_convolutions(channels, filters, pooled=number <= pools))
            channels = filters[-1]
        self.num_features = channels * side * side
        self.flatten = nn.Flatten()
        if linear:
            self.linear = _linear(self.num_features, linear, dropout)
            self.num_features = linear[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, F) of images (B, 3, H, W). Raises ValueError for another image size."""
        if not x.shape[2] // self.reduction == x.shape[3] // self.reduction == self.side:
            raise ValueError("what follows its convolutions is as wide as images of one size make it")
        for stage in self.children():
            x = stage(x)
        return x


def simple_cnn(size: int) -> nn.Module:
    """Return 13 convolutions and two linear layers of 100: 11,098,110 parameters with 14 outputs at 128 pixels."""
    groups = ((32, 32), (64, 64), (128, 128, 128), (256, 256, 256), (512, 512, 512))
    return PlainCNN("simple_cnn", groups, size=size, pools=4, linear=(100, 100), dropout=0.5)


def plain_cnn6(size: int) -> nn.Module:
    """Return a network of six convolutions with max-pooling; 64 pixels leave one position, fewer none."""
    groups = ((16,), (32,), (64,), (128,), (256,), (256,))
    return PlainCNN("plain_cnn6", groups, size=size, pools=6)


def _plain_convolutions(channels: int, filters: Sequence[int], *, pooled: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count in filters:
        layers += [nn.Conv2d(channels, count, 3, padding=1), nn.ReLU()]
        channels = count
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pooled else []))


def _linear(features: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout)]
        features = width
    return nn.Sequential(*layers)


# A residual network whose depth, width, blocks and pooling are options, for a plan or a sweep.

EXPANSION = 4  # output channels of a bottleneck per inner channel


class ResnetHyperOptions(Settings):
    """Depth, width, blocks and pooling of a residual network."""

    block: Literal["v1", "v2", "grouped"] = Field(
        "v1", description="v1: as published first; v2: normalised and activated before; grouped: v1, its 3 x 3 grouped."
    )
    depth: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (3, 4, 6, 3), description="Blocks of the four stages; published: 3, 4 or 8, 6, 23 or 36, 3."
    )
    width: int = Field(64, ge=8, description="Channels that the first stage works with; each next one twice as many.")
    groups: int = Field(32, ge=2, description="Groups of the 3 x 3 in grouped blocks, which then works with width * 2.")
    pool: Literal["avg", "max"] = Field("avg", description="How the last map becomes features.")

    def require_consistent(self) -> None:
        inside = 2 * self.width  # channels of the 3 x 3
        if self.block == "grouped" and (inside % self.groups or self.groups & (self.groups - 1)):
            raise ValueError(
                f"groups: {self.groups} must be a power of two that divides {inside}, the channels of the 3 x 3 (twice "
                f"the width of {self.width}); choose other groups or another width"
            )


def resnet_hyper(size: int, options: ResnetHyperOptions) -> nn.Module:
    """Return a residual network of bottlenecks, randomly drawn; by default ResNet-50.

    v1: He et al. 2016 (https://arxiv.org/abs/1512.03385), its stride in the 3 x 3; v2: He et al. 2016
    (https://arxiv.org/abs/1603.05027); grouped: Xie et al. 2017 (https://arxiv.org/abs/1611.05431).
    """
    widths = tuple(options.width * 2**stage for stage in range(4))
    network: Any
    if options.block == "v2":
        channels = tuple(EXPANSION * width for width in widths)
        layers: Any = {"conv_layer": create_conv2d, "norm_layer": BatchNormAct2d}
        network = ResNetV2(options.depth, channels=channels, num_classes=0, global_pool=options.pool, **layers)
    else:
        # In timm's words a group of the 3 x 3 has `width * base_width / 64` channels.
        groups: Any = {"cardinality": options.groups, "base_width": 2 * 64 / options.groups}
        network = ResNet(
            Bottleneck,
            options.depth,
            channels=widths,
            num_classes=0,
            global_pool=options.pool,
            **(groups if options.block == "grouped" else {}),
        )
    network.pretrained_cfg = {"input_size": (3, size, size), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    built: nn.Module = network
    return built


# The custom backbones by name, and their options.


class NoOptions(Settings):
    """The options of a network without any."""


@dataclass(frozen=True)
class CustomBackbone:
    """Builder of a network from the image size, in pixels, and its options."""

    build: Callable[[int, Any], nn.Module]
    options: type[Settings] = NoOptions
    published: str | None = None  # timm's name of the network whose published weights fit


def without_last_pool(name: str) -> nn.Module:
    """Return a VGG of timm's, randomly drawn, whose last map is twice as large as it was made for."""
    network: Any = timm.create_model(name, pretrained=False, num_classes=0)
    network.features[-1] = nn.Identity()  # in its place, so that every name stays
    built: nn.Module = network
    return built


def _factorized(name: str) -> CustomBackbone:
    return CustomBackbone(lambda _, options: factorized(name, options), FactorizedOptions)


CUSTOM_BACKBONES: dict[str, CustomBackbone] = {
    "simple_cnn": CustomBackbone(lambda size, _: simple_cnn(size)),
    "plain_cnn6": CustomBackbone(lambda size, _: plain_cnn6(size)),
    "vgg16_no_last_pool": CustomBackbone(lambda *_: without_last_pool("vgg16"), published="vgg16"),
    "resnet_hyper": CustomBackbone(resnet_hyper, ResnetHyperOptions),
    **{f"factorized_{name}": _factorized(name) for name in DENSENETS},
}
"""Backbones by their names in a plan."""


def options_of(name: str, given: Mapping[str, Any]) -> Settings:
    """Return the validated options of a network. Raises ModelError that names each invalid one."""
    kind = CUSTOM_BACKBONES[name].options if name in CUSTOM_BACKBONES else NoOptions
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        wrong = "; ".join(_option_text(one) for one in error.errors(include_url=False))
        known = ", ".join(kind.model_fields)
        others = ", ".join(other for other, custom in CUSTOM_BACKBONES.items() if custom.options is not NoOptions)
        takes = f"It takes {known}" if known else f"It takes none; those that take some are {others}"
        raise ModelError(f"backbone {name}: options: {wrong}. {takes}.") from error


def _option_text(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    name, message = ".".join(map(str, problem["loc"])), problem["msg"]
    if problem["type"] == "extra_forbidden":
        return f"{name} is not known"
    return f"{name} is {problem['input']!r}: {message[0].lower()}{message[1:]}"
