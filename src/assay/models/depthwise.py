"""The weight gradient of depthwise convolutions over small maps, as a matrix product."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 25  # positions of a map: beyond, the library's own gradient is faster
SMALLEST_KERNEL = 5


def pays(x: Tensor, weight: Tensor, *, groups: int, stride: tuple[int, ...], dilation: tuple[int, ...]) -> bool:
    """Return whether `depthwise` is faster here: 5 x 5 over 4 x 4 maps, on a CPU, it was 8 times."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and groups == x.shape[1] == weight.shape[0]
        and weight.shape[1] == 1
        and weight.shape[-1] >= SMALLEST_KERNEL
        and x.shape[2] * x.shape[3] <= LARGEST
        and set(stride) == set(dilation) == {1}
        and not torch.is_autocast_enabled("cpu")
    )


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return depthwise convolution (B, C, H, W), stride 1: `conv2d` forward, its own gradient of the weight."""
    result: Tensor = _Depthwise.apply(x, weight, bias, padding)
    return result


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, 1, padding, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        to_x = None
        if needs_x:
            to_x = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [1, 1], list(ctx.padding), [1, 1], False, [0, 0], x.shape[1],
                [True, False, False],
            )[0]  # fmt: skip
        to_weight = _weight_gradient(x, gradient, weight.shape[2:], ctx.padding) if needs_weight else None
        return to_x, to_weight, gradient.sum((0, 2, 3)) if needs_bias else None, None


def _weight_gradient(x: Tensor, gradient: Tensor, kernel: torch.Size, padding: tuple[int, int]) -> Tensor:
    """Return all products of an input position and an output position, summed over the batch, then by tap."""
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
    """Return (HW * H'W', kh * kw): 1 where a tap of the kernel joins an input position to an output position."""
    rows, columns = (
        torch.arange(size)[:, None] - torch.arange(answers)[None, :] + pad
        for size, answers, pad in zip(inputs, outputs, padding, strict=True)
    )  # (H, H') and (W, W'): the tap that joins them, or none
    tap_row = rows[:, None, :, None].expand(*inputs, *outputs).flatten()
    tap_column = columns[None, :, None, :].expand(*inputs, *outputs).flatten()
    height, width = kernel
    inside = (tap_row >= 0) & (tap_row < height) & (tap_column >= 0) & (tap_column < width)
    joined = torch.zeros(tap_row.numel(), height * width, dtype=dtype)
    where = inside.nonzero().flatten()
    joined[where, (tap_row * width + tap_column)[where]] = 1.0
    return joined
