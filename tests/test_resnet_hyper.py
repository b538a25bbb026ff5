"""The residual network of many depths, widths and blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from assay.errors import PlanError
from assay.labels.space import Head, LabelSpace
from assay.models.backbones import build_backbone, built_with, feature_count
from assay.models.classifier import ModelSettings, build_classifier, from_spec, spec
from assay.plan.plan import Plan, parse, to_yaml
from factories import noise_batch

SPACE = LabelSpace((Head("label", ("a", "b", "c")),))
SMALL = {"depth": [1, 1, 2, 1], "width": 8}


def build(**options: Any) -> nn.Module:
    return build_backbone("resnet_hyper", size=32, options=options)


def count(network: nn.Module) -> Any:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, "resnet50"), ({"block": "grouped"}, "resnext50_32x4d"), ({"block": "v2"}, "resnetv2_50")],
)
def test_by_default_it_is_the_network_of_fifty_layers(options: dict[str, Any], name: str) -> None:
    assert count(build(**options)) == count(build_backbone(name))


@pytest.mark.parametrize("depth", [(3, 4, 6, 3), (3, 8, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (1, 2, 1, 1)])
def test_depth(depth: tuple[int, int, int, int]) -> None:
    with torch.device("meta"):  # shapes alone
        network = build(depth=list(depth))
    blocks = [len(getattr(network, f"layer{stage}")) for stage in range(1, 5)]
    assert blocks == list(depth)


@pytest.mark.parametrize("block", ["v1", "v2", "grouped"])
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_every_block_and_pooling_gives_features(block: str, pool: str) -> None:
    network = build(block=block, pool=pool, groups=4, **SMALL).eval()
    with torch.inference_mode():
        features = network(noise_batch(seed=0))
        last = network.forward_features(noise_batch(seed=0))
    assert features.shape == (2, feature_count(network)) == (2, 8 * 8 * 4)
    expected = last.mean((2, 3)) if pool == "avg" else last.amax((2, 3))
    torch.testing.assert_close(features, expected)


def test_v2_activates_before_and_v1_after() -> None:
    v1, v2 = build(block="v1", **SMALL), build(block="v2", **SMALL)
    assert isinstance(v2.stages[1].blocks[0].norm1, BatchNormAct2d)
    assert next(v2.stages[1].blocks[0].named_children())[0] != "conv1"
    assert next(v1.layer2[0].named_children())[0] == "conv1"
    assert isinstance(v2.norm, BatchNormAct2d)


def test_groups_part_the_square_convolution_alone() -> None:
    network = build(block="grouped", groups=4, **SMALL)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert {one.groups for one in convolutions if one.kernel_size == (3, 3)} == {4}
    assert {one.groups for one in convolutions if one.kernel_size != (3, 3)} == {1}
    assert network.layer1[0].conv2.in_channels == 16


def test_a_description_rebuilds_it() -> None:
    settings = ModelSettings(backbone="resnet_hyper", weights="none", options={"block": "v2", "pool": "max", **SMALL})
    model = build_classifier(settings, SPACE, seed=3, base=Path(), size=32).eval()
    described = json.loads(json.dumps(spec(model)))
    assert described["options"] == {"block": "v2", "pool": "max", "groups": 32, "depth": [1, 1, 2, 1], "width": 8}
    again = from_spec(described).eval()
    again.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(again(noise_batch(seed=0)), model(noise_batch(seed=0)))


def test_networks_of_timm_have_no_options() -> None:
    assert built_with(build_backbone("test_resnet")) == {}
    assert spec(from_spec({**spec_of("test_resnet")}))["options"] == {}


def spec_of(name: str) -> Any:
    return spec(build_classifier(ModelSettings(backbone=name, weights="none"), SPACE, seed=0, base=Path(), size=32))


def plan(model: str) -> Plan:
    return parse(f"data: {{folder: photos}}\nmodel: {model}\n", "plan.yaml")


def test_a_plan_says_options_and_is_written_with_them() -> None:
    written = plan("{backbone: resnet_hyper, weights: none, options: {block: v2, depth: [3, 4, 23, 3], pool: max}}")
    assert written.model.options == {"block": "v2", "depth": [3, 4, 23, 3], "pool": "max"}
    assert parse(to_yaml(written), "again") == written


HYPER = "backbone: resnet_hyper, options"


@pytest.mark.parametrize(
    ("model", "written"),
    [
        (f"{{{HYPER}: {{blok: v2}}}}", r"blok is not known.*It takes block, depth, width, groups, pool"),
        (f"{{{HYPER}: {{block: v3}}}}", r"block is 'v3': input should be 'v1', 'v2' or 'grouped'"),
        (f"{{{HYPER}: {{depth: [3, 4]}}}}", r"depth.2 is .*: field required"),
        (f"{{{HYPER}: {{block: grouped, groups: 3}}}}", r"groups: 3 must be a power of two that divides"),
        (
            "{backbone: resnet18, options: {width: 8}}",
            r"resnet18: options: width is not known\. It takes none; .*hyper",
        ),
    ],
)
def test_options_that_are_wrong_are_refused_when_the_plan_is_read(model: str, written: str) -> None:
    with pytest.raises(PlanError, match=written):
        plan(model)
