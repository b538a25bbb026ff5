"""Folded batch-norms: the same answers and gradients, and nothing left behind."""

from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from assay.models.folding import _activation_only, depthwise, fold_batch_norm, pays

NETWORKS = ["test_efficientnet", "test_resnet", "tf_efficientnet_lite0", "resnet18"]


def network_in_use(name: str) -> nn.Module:
    """A network whose batch-norms have statistics that are not those of a new one."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.7, 1.4)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


def gradients(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    network(images).square().mean().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_and_gradients_are_those_of_the_plain_network(name: str) -> None:
    network, images = network_in_use(name), torch.rand(2, 3, 64, 64)
    answers, plain = network(images), gradients(network, images)
    with fold_batch_norm(network, images[:1]) as pairs:
        assert pairs == sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
        torch.testing.assert_close(network(images), answers, rtol=1e-3, atol=1e-4)
        ours = gradients(network, images)
    for parameter, gradient in plain.items():
        scale = float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(ours[parameter] / scale, gradient / scale, rtol=0, atol=2e-3)


def test_nothing_is_left_behind() -> None:
    network, images = network_in_use("test_resnet"), torch.rand(2, 3, 64, 64)
    names, answers = list(network.state_dict()), network(images)
    with fold_batch_norm(network, images[:1]):
        assert list(network.state_dict()) == names
    assert torch.equal(network(images), answers)
    assert not any("forward" in vars(module) for module in network.modules())


def test_a_network_that_reads_a_convolution_twice_is_not_folded_there() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.norm.running_mean += 0.5

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            return self.norm(y) + y

    network, images = Twice().eval(), torch.rand(2, 3, 8, 8)
    answers = network(images)
    with fold_batch_norm(network, images[:1]) as pairs:
        assert pairs == 0
        assert torch.equal(network(images), answers)


# Depthwise convolutions


@pytest.mark.parametrize(
    ("side", "kernel", "padding", "stride"),
    [
        ((4, 4), 5, (2, 2), (1, 1)),
        ((3, 5), 5, (2, 2), (1, 1)),
        ((5, 4), 3, (0, 1), (1, 1)),
        ((4, 4), 5, (2, 2), (2, 2)),
        ((8, 9), 5, (2, 0), (1, 1)),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_conv2d(
    side: tuple[int, int],
    kernel: int,
    padding: tuple[int, int],
    stride: tuple[int, int],
    layout: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 8, *side, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(8, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, bias, stride, padding, 1, 8)
    ours = depthwise(x, weight, bias, padding, stride)
    torch.testing.assert_close(ours, expected)
    downstream = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, weight, bias), downstream),
        torch.autograd.grad(expected, (x, weight, bias), downstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_depthwise_is_used_only_where_it_pays() -> None:
    x, weight = torch.zeros(2, 8, 4, 4), torch.zeros(8, 1, 5, 5)
    assert pays(x, weight, groups=8, dilation=(1, 1))
    assert not pays(x, weight, groups=8, dilation=(2, 2))
    assert not pays(x.bfloat16(), weight, groups=8, dilation=(1, 1))
    assert not pays(x, torch.zeros(8, 1, 3, 3), groups=8, dilation=(1, 1))
    assert not pays(x, torch.zeros(8, 8, 5, 5), groups=1, dilation=(1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relu6_in_place_is_torchs_bit_for_bit(dtype: torch.dtype) -> None:
    norm = BatchNormAct2d(3, act_layer=nn.ReLU6)
    results = []
    for activate in (norm.act, partial(_activation_only, norm)):
        x = (8 * torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
        below = 1 * x  # what is changed in place is no leaf
        above = activate(below)
        above.square().sum().backward()
        results.append((above, x.grad))
        assert above.data_ptr() == below.data_ptr()
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
