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
from functools import cache
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same
from torch import Tensor, nn

from assay.models.backbones import evaluating

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


@contextmanager
def fold_batch_norm(network: nn.Module, example: Tensor) -> Iterator[int]:
    """Fold the batch-norms of `network` within the block, and yield the number of folded pairs.

    `example` (1, 3, H, W) finds the pairs and verifies them: where the folded network gives another output than the
    plain one, nothing is folded. The norms must be in evaluation mode within the block; parameters and buffers keep
    their names.
    """
    with evaluating(network), torch.no_grad():
        pairs, plain = _pairs(network, example)
        _fold(pairs)
        if not torch.allclose(network(example), plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max())):
            _unfold(pairs)
            pairs = []
    try:
        yield len(pairs)
    finally:
        _unfold(pairs)


def _pairs(network: nn.Module, example: Tensor) -> tuple[list[Pair], Tensor]:
    """Return the pairs of a convolution and its only reader, a batch-norm, and the output of the network."""
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
        if isinstance(padding, tuple) and pays(x, weight, groups=conv.groups, dilation=conv.dilation):
            return depthwise(x, weight, bias, (padding[0], padding[1]), (conv.stride[0], conv.stride[1]))
        return F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)

    return forward


def _activation_only(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    if not isinstance(norm, BatchNormAct2d):
        return x
    x = norm.drop(x)
    overwrites = type(norm.act) is nn.ReLU6 and norm.act.inplace
    activated: Tensor = _Clamp.apply(x) if overwrites else norm.act(x)
    return activated


class _Clamp(torch.autograd.Function):
    """ReLU6 in place. torch's own writes its result elsewhere and copies it back: a pass more over the activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(x.clamp_(0, 6))
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        masked: Tensor = torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0, 6)
        return masked


# Depthwise convolutions with large kernels: the gradient of the bias is a sum, since with it torch takes a third longer
# for the others, and over small maps that of the weight is a matrix product.

LARGEST = 25  # positions of a map: beyond, torch's gradient is faster
SMALLEST_KERNEL = 5


def pays(x: Tensor, weight: Tensor, *, groups: int, dilation: tuple[int, ...]) -> bool:
    """Return whether `depthwise` is faster here: 5 x 5 on a CPU, over 4 x 4 maps 8 times, else 1.3 times."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and groups == x.shape[1] == weight.shape[0]
        and weight.shape[1] == 1
        and weight.shape[-1] >= SMALLEST_KERNEL
        and set(dilation) == {1}
        and not torch.is_autocast_enabled("cpu")
    )


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int], stride: tuple[int, int] = (1, 1)
) -> Tensor:
    """Return the depthwise convolution of (B, C, H, W): torch's but for how its gradients are computed."""
    result: Tensor = _Depthwise.apply(x, weight, bias, padding, stride)
    return result


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int], stride: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.stride = padding, stride
        return F.conv2d(x, weight, bias, stride, padding, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        is_small = x.shape[2] * x.shape[3] <= LARGEST and ctx.stride == (1, 1)
        to_x = to_weight = None
        if needs_x or (needs_weight and not is_small):
            to_x, to_weight, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, list(ctx.stride), list(ctx.padding), [1, 1], False, [0, 0], x.shape[1],
                [needs_x, needs_weight and not is_small, False],
            )  # fmt: skip
        if needs_weight and is_small:
            to_weight = _weight_gradient(x, gradient, weight.shape[2:], ctx.padding)
        return to_x, to_weight, gradient.sum((0, 2, 3)) if needs_bias else None, None, None


def _weight_gradient(x: Tensor, gradient: Tensor, kernel: torch.Size, padding: tuple[int, int]) -> Tensor:
    """Return the products of input and output positions, summed over the batch and by tap."""
    channels = x.shape[1]
    # Contiguous, or bmm takes ten times as long.
    inputs = x.flatten(2).permute(1, 2, 0).contiguous()  # (C, HW, B)
    outputs = gradient.flatten(2).permute(1, 0, 2).contiguous()  # (C, B, H'W')
    products = torch.bmm(inputs, outputs).view(channels, -1)  # (C, HW * H'W')
    taps = _taps(tuple(x.shape[2:]), tuple(gradient.shape[2:]), tuple(kernel), padding, x.dtype)
    return (products @ taps).view(channels, 1, *kernel)


@cache
def _taps(
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    kernel: tuple[int, ...],
    padding: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Return a mask (HW * H'W', kh * kw): 1 where a tap joins an input position to an output position."""
    rows, columns = (
        torch.arange(size)[:, None] - torch.arange(out)[None, :] + pad
        for size, out, pad in zip(inputs, outputs, padding, strict=True)
    )  # (H, H') and (W, W'): the tap that joins them, or none
    tap_row = rows[:, None, :, None].expand(*inputs, *outputs).flatten()
    tap_column = columns[None, :, None, :].expand(*inputs, *outputs).flatten()
    height, width = kernel
    inside = (tap_row >= 0) & (tap_row < height) & (tap_column >= 0) & (tap_column < width)
    mask = torch.zeros(tap_row.numel(), height * width, dtype=dtype)
    where = inside.nonzero().flatten()
    mask[where, (tap_row * width + tap_column)[where]] = 1.0
    return mask
