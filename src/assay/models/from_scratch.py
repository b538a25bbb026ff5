"""Plain convolutional networks of our own: no published weights, and as wide as their pictures make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from assay.errors import ModelError


class PlainCNN(nn.Module):
    """Groups of 3 x 3 "same" convolutions, each with ReLU, then linear layers: features (B, num_features).

    A stage is a group of convolutions (`conv1`, `conv2`, ...), the last one all linear layers (`linear`), if any.
    Weights are drawn by He et al. 2015 (https://arxiv.org/abs/1502.01852): with torch's own draws, which are
    smaller, next to nothing of the picture is left behind a dozen layers without batch-norm.
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

        `size`: of the pictures, in pixels. `linear`: widths, each followed by ReLU and dropout.
        Raises ModelError where pooling leaves nothing of pictures so small.
        """
        super().__init__()
        self.reduction = 2**pools
        side = size // self.reduction  # of the last map
        if side == 0:
            raise ModelError(
                f"backbone {name}: pictures of {size} x {size} are too small: {pools} times 2 x 2 max-pooling "
                f"leave nothing of pictures under {self.reduction} pixels. "
                f"Set size: {self.reduction} or more, or choose another backbone."
            )
        # In timm's words, which all that reads a backbone understands.
        self.pretrained_cfg = {"input_size": (3, size, size), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        self.side = side
        channels = 3
        for number, filters in enumerate(groups, start=1):
            self.add_module(f"conv{number}", _convolutions(channels, filters, pooled=number <= pools))
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
        """Pictures (B, 3, H, W) -> features (B, F). Raises ValueError where they are of another size."""
        if not x.shape[2] // self.reduction == x.shape[3] // self.reduction == self.side:
            raise ValueError("what follows its convolutions is as wide as pictures of one size make it")
        for stage in self.children():
            x = stage(x)
        return x


def simple_cnn(size: int) -> nn.Module:
    """13 convolutions and two linear layers of 100; 11,098,110 parameters with 14 outputs at 128 pixels."""
    groups = ((32, 32), (64, 64), (128, 128, 128), (256, 256, 256), (512, 512, 512))
    return PlainCNN("simple_cnn", groups, size=size, pools=4, linear=(100, 100), dropout=0.5)


def plain_cnn6(size: int) -> nn.Module:
    """Six convolutions, each with max-pooling; at 64 pixels one position is left, below that none."""
    groups = ((16,), (32,), (64,), (128,), (256,), (256,))
    return PlainCNN("plain_cnn6", groups, size=size, pools=6)


# Name in a plan -> what builds the network for pictures of a size.
FROM_SCRATCH: dict[str, Callable[[int], nn.Module]] = {
    "simple_cnn": simple_cnn,
    "plain_cnn6": plain_cnn6,
}


def _convolutions(channels: int, filters: Sequence[int], *, pooled: bool) -> nn.Sequential:
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
