"""A residual network whose depth, width, blocks and pooling are the plan's to choose, or a sweep's."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.resnet import Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

from assay.settings import Settings

EXPANSION = 4  # a bottleneck gives this many times the channels that it works with


class ResnetHyperOptions(Settings):
    """What a residual network is made of."""

    block: Literal["v1", "v2", "grouped"] = Field(
        "v1", description="v1: as published first; v2: normalised and activated before; grouped: v1, its 3 x 3 grouped."
    )
    depth: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (3, 4, 6, 3), description="Blocks of the four stages; published: 3, 4 or 8, 6, 23 or 36, 3."
    )
    width: int = Field(64, ge=8, description="Channels that the first stage works with; each next one twice as many.")
    groups: int = Field(32, ge=2, description="Groups of the 3 x 3 in grouped blocks, which then works with width * 2.")
    pool: Literal["avg", "max"] = Field("avg", description="How the last map becomes features.")

    @model_validator(mode="after")
    def _groups_part_evenly(self) -> ResnetHyperOptions:
        inside = 2 * self.width  # channels of the 3 x 3
        if self.block == "grouped" and (inside % self.groups or self.groups & (self.groups - 1)):
            raise ValueError(
                f"groups: {self.groups} must be a power of two that divides {inside}, the channels of the 3 x 3 (twice "
                f"the width of {self.width}); choose other groups or another width"
            )
        return self


def resnet_hyper(size: int, options: ResnetHyperOptions) -> nn.Module:
    """A residual network of bottlenecks, randomly drawn; by default ResNet-50.

    v1: He et al. 2016 (https://arxiv.org/abs/1512.03385), its stride in the 3 x 3; v2: He et al. 2016
    (https://arxiv.org/abs/1603.05027); grouped: Xie et al. 2017 (https://arxiv.org/abs/1611.05431).
    """
    widths = tuple(options.width * 2**stage for stage in range(4))
    shared: dict[str, Any] = {"num_classes": 0, "global_pool": options.pool}
    network: Any
    if options.block == "v2":
        channels = tuple(EXPANSION * width for width in widths)
        v2: dict[str, Any] = {"conv_layer": create_conv2d, "norm_layer": BatchNormAct2d}
        network = ResNetV2(options.depth, channels=channels, **v2, **shared)
    else:
        # In timm's words a group of the 3 x 3 has `width * base_width / 64` channels.
        of_groups = {"cardinality": options.groups, "base_width": 2 * 64 / options.groups}
        grouped = of_groups if options.block == "grouped" else {}
        network = ResNet(Bottleneck, options.depth, channels=widths, **grouped, **shared)
    network.pretrained_cfg = {"input_size": (3, size, size), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    built: nn.Module = network
    return built
