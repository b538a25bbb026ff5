"""The gradient of small depthwise convolutions is that of the library."""

import pytest
import torch
import torch.nn.functional as F

from assay.models.folding import depthwise, pays


@pytest.mark.parametrize(("side", "kernel", "padding"), [((4, 4), 5, (2, 2)), ((3, 5), 5, (2, 2)), ((5, 4), 3, (0, 1))])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_conv2d(
    side: tuple[int, int], kernel: int, padding: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 8, *side, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(8, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, bias, 1, padding, 1, 8)
    ours = depthwise(x, weight, bias, padding)
    torch.testing.assert_close(ours, expected)
    downstream = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, weight, bias), downstream),
        torch.autograd.grad(expected, (x, weight, bias), downstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_it_is_used_only_where_it_pays() -> None:
    x, weight = torch.zeros(2, 8, 4, 4), torch.zeros(8, 1, 5, 5)
    assert pays(x, weight, groups=8, stride=(1, 1), dilation=(1, 1))
    assert not pays(x, weight, groups=8, stride=(2, 2), dilation=(1, 1))
    assert not pays(x.bfloat16(), weight, groups=8, stride=(1, 1), dilation=(1, 1))
    assert not pays(torch.zeros(2, 8, 16, 16), weight, groups=8, stride=(1, 1), dilation=(1, 1))
    assert not pays(x, torch.zeros(8, 8, 5, 5), groups=1, stride=(1, 1), dilation=(1, 1))
