"""Total stride and receptive field, held against published values and against what really changes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.files import RunFolder, StepName
from assay.labels.space import Head, LabelSpace
from assay.models.backbones import build_backbone
from assay.models.layers import receptive_field
from assay.progress import Lines
from assay.steps.start import describe_network
from fake_steps import new_classifier

KNOWN = {
    "vgg16": (32, 212),  # Araujo et al. 2019, https://distill.pub/2019/computing-receptive-fields
    "mobilenetv1_100": (32, 315),  # the same
    "resnet18": (32, 435),
    "resnet34": (32, 899),
    "resnet50": (32, 427),  # 483 there, whose strides come a block later
    "resnext50_32x4d": (32, 427),
    "plain_cnn6": (64, 190),  # 1 + sum over k of 2^k * (2 + 1), k = 0..5
}


@pytest.mark.parametrize("name", KNOWN)
def test_as_known(name: str) -> None:
    field = receptive_field(build_backbone(name, size=64), size=64).to_json()
    assert (field["stride"], field["receptive_field"]) == KNOWN[name]


def test_without_its_last_pooling_a_network_sees_less_and_closer() -> None:
    with torch.device("meta"):
        network = build_backbone("vgg16_no_last_pool")
    field = receptive_field(network, size=64).to_json()
    assert (field["stride"], field["receptive_field"]) == (16, 196)


def test_gates_over_channels_are_left_out() -> None:
    assert receptive_field(build_backbone("seresnext50_32x4d"), size=64) == receptive_field(
        build_backbone("resnext50_32x4d"), size=64
    )


def test_factorised_convolutions_see_as_far() -> None:
    factorized, plain = (build_backbone(name) for name in ("factorized_densenet121", "densenet121"))
    assert receptive_field(factorized, size=64) == receptive_field(plain, size=64)


@pytest.mark.parametrize("name", ["test_vit", "test_mambaout"])
def test_tokens_see_everything_and_maps_do_not(name: str) -> None:
    field = receptive_field(build_backbone(name, size=64), size=64).to_json()
    assert (field["receptive_field"] is None) == (name == "test_vit")


def test_the_modes_of_the_network_are_as_they_were() -> None:
    network = build_backbone("test_resnet").train()
    network.bn1.eval()
    receptive_field(network, size=32)
    assert network.training
    assert not network.bn1.training


def test_rows_and_columns_differ() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, (1, 5), stride=(1, 2)), nn.MaxPool2d((3, 1), stride=(3, 1)))
    field = receptive_field(network, size=32)
    assert (field.stride, field.field) == ((3, 2), (3, 5))


class Joined(nn.Module):
    """A short way and a long one, added or put side by side."""

    def __init__(self, short: str, long: Any, together: Any) -> None:
        super().__init__()
        self.short, self.long, self.together = short, long, together

    def forward(self, x: Any) -> Any:
        parts = [self.short(x), self.long(x)]
        return sum(parts) if self.together == "added" else torch.cat(parts, 1)


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    layers, channels = [], 3
    for _ in range(draw(st.integers(1, 3))):
        kernel, stride, dilation = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 2)), draw(st.integers(1, 2))
        padding = dilation * (kernel - 1) // 2
        kind = draw(st.sampled_from(["conv", "max", "avg", "joined"]))
        if kind == "max":
            layers.append(nn.MaxPool2d(3, stride, 1))
        elif kind == "avg":
            layers.append(nn.AvgPool2d(2, stride))
        elif kind == "conv":
            layers.append(nn.Conv2d(channels, 3, kernel, stride, padding, dilation))
            channels = 3
        else:
            together = draw(st.sampled_from(["added", "side by side"]))
            ways = nn.Conv2d(channels, 3, 1, stride), nn.Conv2d(channels, 3, kernel, stride, padding, dilation)
            layers.append(Joined(*ways, together))
            channels = 3 if together == "added" else 6
    return nn.Sequential(nn.Conv2d(3, 3, 1), *layers)


@given(networks())
@settings(max_examples=25, deadline=None)
def test_what_it_says_is_what_really_changes(network: Any) -> None:
    """A pixel that is no number makes just those positions no numbers that see it."""
    side = 96
    field = receptive_field(network, size=side)
    images = torch.zeros(side, 3, 16, side)
    images[torch.arange(side), :, :, torch.arange(side)] = torch.nan  # of each image another column
    with torch.inference_mode():
        changed = network(images)[:, :, 0].isnan().any(1)  # (image, column of the map)
    middle = changed.shape[1] // 2
    changes = changed[:, middle - 1 : middle + 1].tolist()
    before, at = ([c for c, change in enumerate(changes) if change[axis]] for axis in (0, 1))
    assert at[-1] - at[0] + 1 == field.field[1]
    assert at[0] - before[0] == field.stride[1]


def test_it_is_printed_once_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    context = SimpleNamespace(run=run, progress=Lines())
    network = new_classifier(LabelSpace((Head("kind", ("a", "b")),)))
    for name in ("01-probe", "02-fit"):
        described = describe_network(network, context, size=32)  # type: ignore[arg-type]
        folder = run.step(StepName(name)).path
        folder.mkdir(parents=True)
        (folder / "done.json").write_text(json.dumps({"details": {"network": described}}))
    assert len(context.progress.lines) == 1
    assert "receptive field" in context.progress.lines[0]
