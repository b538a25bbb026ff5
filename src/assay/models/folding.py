"""Frozen batch-norms folded into their convolutions while a network trains.

A batch-norm in evaluation mode is an affine map per channel, so that

    norm(conv(x, w)) = conv(x, w * s) + (bias - mean * s),    s = weight / sqrt(var + eps)

holds exactly. Computing `w * s` costs as much as reading the weights; a pass over the activations, forward
and backward, costs a third of an optimiser step on a CPU. Gradients reach the convolution's weight and the
norm's weight and bias through `w * s`, as they would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same
from torch import Tensor, nn

from assay.models import depthwise

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


@contextmanager
def fold_batch_norm(network: nn.Module, example: Tensor) -> Iterator[int]:
    """Within the block, `network` computes with its batch-norms folded; the number of pairs is given.

    `example` (1, 3, H, W) finds the pairs and proves that nothing changes: where the folded network answers
    otherwise than the plain one, nothing is folded. The norms must be in evaluation mode within the block;
    parameters and buffers keep their names and places.
    """
    was_training = network.training
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    with torch.no_grad():
        pairs, plain = _pairs(network, example)
        _fold(pairs)
        if not torch.allclose(network(example), plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max())):
            _unfold(pairs)
            pairs = []
    network.train(was_training)
    for module, mode in modes:
        module.training = mode
    try:
        yield len(pairs)
    finally:
        _unfold(pairs)


def _pairs(network: nn.Module, example: Tensor) -> tuple[list[Pair], Tensor]:
    """Return batch-norms whose input is the output of a convolution, found by running the network once."""
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # alive until the end, so that no identity is used twice
    readers: dict[nn.Conv2d, list[nn.Module]] = {}

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for value in inputs:
            if isinstance(value, Tensor) and id(value) in made_by:
                readers[made_by[id(value)]].append(module)
        if isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, Conv2dSame) and id(output) not in made_by:
            made_by[id(output)] = module
            readers[module] = []
            kept.append(output)

    leaves = [m for m in network.modules() if not any(m.children()) or isinstance(m, nn.BatchNorm2d)]
    hooks = [module.register_forward_hook(after) for module in leaves]
    try:
        plain = network(example)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [
        (conv, norms[0])
        for conv, norms in readers.items()
        if len(norms) == 1 and isinstance(norms[0], nn.BatchNorm2d) and norms[0].track_running_stats
    ]
    return pairs, plain


def _fold(pairs: list[Pair]) -> None:
    for conv, norm in pairs:
        conv.forward = MethodType(_conv_with(norm), conv)  # type: ignore[method-assign]
        norm.forward = MethodType(_activation_only, norm)  # type: ignore[method-assign]


def _unfold(pairs: list[Pair]) -> None:
    for conv, norm in pairs:
        conv.__dict__.pop("forward", None)
        norm.__dict__.pop("forward", None)


def _conv_with(norm: nn.BatchNorm2d) -> Callable[[nn.Conv2d, Tensor], Tensor]:
    def forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        bias = -norm.running_mean * scale if conv.bias is None else (conv.bias - norm.running_mean) * scale
        bias = bias if norm.bias is None else bias + norm.bias
        padding: str | tuple[int, ...] = conv.padding
        if isinstance(conv, Conv2dSame):
            x, padding = pad_same(x, conv.kernel_size, conv.stride, conv.dilation), (0, 0)
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        if isinstance(padding, tuple) and depthwise.pays(
            x, weight, groups=conv.groups, stride=conv.stride, dilation=conv.dilation
        ):
            return depthwise.depthwise(x, weight, bias, (padding[0], padding[1]))
        return F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)

    return forward


def _activation_only(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    if isinstance(norm, BatchNormAct2d):
        activated: Tensor = norm.act(norm.drop(x))
        return activated
    return x
