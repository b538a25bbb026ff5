from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from assay.errors import ModelError, PlanError
from assay.models.backbones import (
    Features,
    SideBySide,
    build_backbone,
    feature_count,
    features_of,
    freeze,
    normalisation,
    set_training_mode,
    stage_outputs,
    stages,
)
from assay.models.classifier import Classifier
from factories import noise_batch


def classifier(name: str = "test_efficientnet") -> Classifier:
    backbone = build_backbone(name)
    return Classifier(backbone, features=feature_count(backbone), width=3, dropout=0.5)


def learning(model: Classifier | nn.Module) -> Any:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet_50", {}, r"resnet_50.*nearest names are .*resnet50"),
        ("simplecnn", {}, "nearest names are .*simple_cnn"),
        ("plain_cnn", {}, "nearest names are .*plain_cnn6"),
        ("hf-hub:timm/resnet18.a1_in1k", {}, "knows no such network"),
        ("resnet18.nope", {}, r"tagged nope\. Its tags: .*a1_in1k"),
        ("test_resnet", {"width": 8}, "width is not known"),
        ("factorized_densenet121", {"groups": 5}, r"options: groups: 5 do not divide .*such as 1, 2, 4"),
    ],
)
def test_an_unknown_name_or_option_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_backbone(name, options=options)


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "mobilenetv3_small_050", "test_nfnet"],
)
def test_features_are_as_wide_as_feature_count(name: str) -> None:
    backbone = build_backbone(name).eval()
    with torch.inference_mode():
        outputs = backbone(torch.zeros(2, 3, 64, 64))
    assert outputs.shape == (2, feature_count(backbone))


@pytest.mark.parametrize(
    ("name", "stages_between"), [("test_efficientnet", 4), ("test_resnet", 3), ("test_vit", 5), ("plain_cnn6", 4)]
)
def test_features_of_all_stages_are_the_last_ones_and_means_before_them(name: str, stages_between: int) -> None:
    torch.manual_seed(0)
    plain = build_backbone(name, size=64).eval()
    wide = build_backbone(name, size=64, features="all_stages").eval()
    wide.load_state_dict(plain.state_dict())
    images, last = noise_batch(2, 64), feature_count(plain)
    outputs = copy.deepcopy(wide)(images)
    assert outputs.shape == (2, feature_count(wide))
    assert (len(stage_outputs(wide)), features_of(wide), features_of(plain)) == (stages_between, "all_stages", "last")
    torch.testing.assert_close(outputs[:, -last:], plain(images))
    kept: list[torch.Tensor] = []
    first = next(iter(stage_outputs(wide)))
    plain.get_submodule(first).register_forward_hook(lambda module, args, output: kept.append(output))
    plain(images)
    means = kept[0].mean((2, 3)) if kept[0].ndim == 4 else kept[0].mean(1)
    torch.testing.assert_close(outputs[:, : means.shape[1]], means)


@pytest.mark.parametrize("features", ["last", "all_stages"])
def test_networks_side_by_side_see_the_image_as_each_alone(features: Features) -> None:
    """Each with its normalisation: images come normalised for the first."""
    torch.manual_seed(0)
    both = build_backbone("test_efficientnet + test_resnet", size=64, features=features).eval()
    assert isinstance(both, SideBySide)
    parts = Classifier(both, features=feature_count(both), width=2).parts
    images = noise_batch(2, 64)
    apart = torch.cat([part.eval().features(images) for part in parts], dim=1)
    torch.testing.assert_close(both(parts[0].normalise(images)), apart, rtol=1e-4, atol=1e-4)
    assert apart.shape == (2, feature_count(both))
    assert features_of(both) == features


def test_networks_side_by_side_are_frozen_at_equal_depth() -> None:
    both = build_backbone("test_efficientnet + test_resnet")
    alone = [stages(part) for part in both.parts]
    frozen = freeze(both, 3)
    expected = {
        f"parts.{number}.{name}"
        for number, count in ((0, 3), (1, 2))
        for stage in alone[number][:count]
        for name in stage.parameters
    }
    assert [len(one) for one in alone] == [6, 5]
    assert {name for stage in frozen for name in stage.parameters} == expected


def test_a_transformer_takes_images_of_another_size() -> None:
    with torch.inference_mode():
        assert build_backbone("test_vit").eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 64)


def test_a_backbone_for_one_size_says_so_whatever_its_features_are() -> None:
    with pytest.raises(ModelError, match=r"mixer_s32_224: cannot take images of 128 x 128 .* made for 224"):
        build_backbone("mixer_s32_224", size=128, features="all_stages")


def test_a_backbone_must_tell_its_features() -> None:
    with pytest.raises(ModelError, match="num_features"):
        feature_count(nn.Linear(2, 2))


def test_normalisation_is_that_of_the_published_weights() -> None:
    assert normalisation(build_backbone("tf_efficientnet_lite0")) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalisation(build_backbone("resnet18")) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


SMALL = {"depth": [1, 1, 2, 1], "width": 8}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet18", {}, ["layer1", "layer2", "layer3", "layer4"]),
        ("tf_efficientnet_lite0", {}, [f"blocks.{n}" for n in range(7)]),
        ("test_convnext", {}, [f"stages.{n}" for n in range(4)]),
        ("mobilenetv3_small_050", {}, [f"blocks.{n}" for n in range(6)]),
        ("test_vit", {}, [f"blocks.{n}" for n in range(6)]),
        ("simple_cnn", {}, ["conv2", "conv3", "conv4", "conv5", "linear"]),
        ("plain_cnn6", {}, [f"conv{n}" for n in range(2, 7)]),
        ("resnet_hyper", {"block": "v1", **SMALL}, [f"layer{n}" for n in range(1, 5)]),
        ("resnet_hyper", {"block": "v2", **SMALL}, [f"stages.{n}" for n in range(4)]),
    ],
)
def test_stages_in_order(name: str, options: dict[str, Any], expected: list[str]) -> None:
    assert [stage.name for stage in stages(build_backbone(name, options=options))] == ["stem", *expected]


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_byobnet", "inception_v3", "densenet121", "factorized_densenet121"]
)
def test_every_parameter_is_in_one_stage(name: str) -> None:
    backbone = build_backbone(name)
    in_stages = [parameter for stage in stages(backbone) for parameter in stage.parameters]
    assert sorted(in_stages) == sorted(name for name, _ in backbone.named_parameters())


def test_the_neck_belongs_to_the_last_stage() -> None:
    last = stages(build_backbone("mobilenetv3_small_050"))[-1]
    assert {"blocks.5.0.conv.weight", "conv_head.weight"} <= set(last.parameters)


def test_a_network_that_groups_nothing_has_a_stage_a_child() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert [stage.parameters for stage in stages(network)] == [("0.weight", "0.bias"), ("2.weight", "2.bias")]


def test_what_freezing_leaves_to_learn() -> None:
    model = classifier()
    everything, head = learning(model), {"head.1.weight", "head.1.bias"}
    assert len(freeze(model, "backbone")) == 6
    assert learning(model) == head
    freeze(model, "all_but_last_stage")
    assert learning(model) == head | {f"backbone.{name}" for name in stages(model.backbone)[-1].parameters}
    assert [stage.name for stage in freeze(model, 2)] == ["stem", "blocks.0"]
    assert not any(name.startswith(("backbone.conv_stem", "backbone.blocks.0.")) for name in learning(model))
    assert freeze(model, "none") == []
    assert learning(model) == everything


def test_a_bare_backbone_is_frozen_too() -> None:
    backbone = build_backbone("test_resnet")
    freeze(backbone, 5)
    assert learning(backbone) == set()


@pytest.mark.parametrize("count", [-1, 7])
def test_more_stages_than_there_are(count: int) -> None:
    with pytest.raises(PlanError, match=r"has 6 stages \(stem, blocks.0.*from 0 to 6"):
        freeze(classifier(), count)


def batch_norms(model: Classifier, prefix: str = "") -> Any:
    return {
        name: module.training
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name.startswith(prefix)
    }


def test_batch_norm_of_a_frozen_part_stays_in_evaluation() -> None:
    model = classifier()
    freeze(model, 3)
    set_training_mode(model, "train")
    assert not any(batch_norms(model, "backbone.blocks.1").values())
    assert not batch_norms(model)["backbone.bn1"]
    assert all(batch_norms(model, "backbone.blocks.2").values())
    assert batch_norms(model)["backbone.bn2"]


def test_batch_norm_can_be_frozen_everywhere_and_still_learn() -> None:
    model = classifier()
    set_training_mode(model, "frozen")
    assert not any(batch_norms(model).values())
    assert model.backbone.bn2.weight.requires_grad
    assert model.head.training


def test_freezing_can_be_undone() -> None:
    model = classifier()
    freeze(model, "backbone")
    set_training_mode(model, "train")
    freeze(model, "none")
    set_training_mode(model, "train")
    assert all(module.training for module in model.modules())


def test_a_frozen_backbone_answers_as_in_evaluation() -> None:
    model = classifier()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.eval().features(images)
        freeze(model, "backbone")
        set_training_mode(model, "train")
        assert torch.equal(model.features(images), expected)
    assert model.head[0].training


def test_a_layer_without_parameters_goes_with_the_one_before_it() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2), nn.Dropout(0.5))
    freeze(network, 1)
    set_training_mode(network)
    assert [child.training for child in network] == [False, False, True, True]


def test_trainable_parameters_of_a_large_network() -> None:
    backbone = build_backbone("seresnext50_32x4d")
    model = Classifier(backbone, features=feature_count(backbone), width=26, hidden=(512, 128), dropout=0.5)
    freeze(model, "all_but_last_stage")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 17_242_394
