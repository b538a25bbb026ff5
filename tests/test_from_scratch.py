from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import ModelError
from assay.labels.space import Head, LabelSpace
from assay.models.backbones import (
    build_backbone,
    feature_count,
    freeze,
    image_size,
    normalisation,
    set_training_mode,
    stages,
)
from assay.models.classifier import (
    Classifier,
    HeadSettings,
    ModelSettings,
    build_classifier,
    from_spec,
    require_size,
    spec,
)
from assay.models.folding import fold_batch_norm
from assay.models.weights import load_weights
from factories import noise_batch

SPACE = LabelSpace((Head("tags", tuple("abcdefghijklmn"), "multilabel"),))
FROM_SCRATCH = ["simple_cnn", "plain_cnn6"]
NAMED = ["resnet34", "wide_resnet50_2", "seresnext50_32x4d", "tf_efficientnet_lite0", *FROM_SCRATCH]


def build(name: str, *, size: int = 64, seed: int = 0, hidden: tuple[Any, ...] = ()) -> Classifier:
    model = ModelSettings(backbone=name, weights="none", head=HeadSettings(hidden=hidden))
    return build_classifier(model, SPACE, seed=seed, base=Path(), size=size)


def filters(network: nn.Module) -> list[int]:
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def test_parameters_of_simple_cnn_as_published() -> None:
    assert sum(p.numel() for p in build("simple_cnn", size=128).parameters()) == 11_098_110


def test_layers_of_simple_cnn() -> None:
    network = build_backbone("simple_cnn", size=64)
    assert filters(network) == [32] * 2 + [64] * 2 + [128] * 3 + [256] * 3 + [512] * 3
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in network.modules()) == 4
    assert [type(layer) for layer in network.linear] == [nn.Linear, nn.ReLU, nn.Dropout] * 2
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]
    assert feature_count(network) == 100


@pytest.mark.parametrize(("size", "features"), [(64, 256), (96, 256), (128, 1024), (200, 2304)])
def test_plain_cnn6_is_as_wide_as_the_images_make_it(size: int, features: int) -> None:
    network = build_backbone("plain_cnn6", size=size).eval()
    assert filters(network) == [16, 32, 64, 128, 256, 256]
    assert feature_count(network) == features
    with torch.inference_mode():
        assert network(noise_batch(1, size)).shape == (1, features)


@pytest.mark.parametrize(("name", "size", "smallest"), [("plain_cnn6", 63, 64), ("simple_cnn", 15, 16)])
def test_images_too_small_are_refused_with_the_reason(name: str, size: int, smallest: int) -> None:
    with pytest.raises(ModelError, match=rf"{name}: images of {size} x {size} .*max-pooling.*size: {smallest}"):
        build_backbone(name, size=size)
    assert image_size(build_backbone(name, size=smallest)) == smallest


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_images_are_normalised_around_zero(name: Any) -> None:
    assert normalisation(build_backbone(name, size=64)) == ((0.5,) * 3, (0.5,) * 3)


def test_stages_are_groups_of_convolutions_then_the_linear_layers() -> None:
    parts = stages(build_backbone("simple_cnn", size=64))
    assert [len(stage.parameters) for stage in parts] == [4, 4, 6, 6, 6, 4]


def test_freezing_by_stage() -> None:
    model = build("simple_cnn")
    assert [stage.name for stage in freeze(model, 2)] == ["stem", "conv2"]
    assert not model.backbone.conv2[0].weight.requires_grad
    assert model.backbone.conv3[0].weight.requires_grad
    freeze(model, "all_but_last_stage")
    set_training_mode(model)
    learning = {name.split(".")[1] for name, p in model.backbone.named_parameters(prefix="x") if p.requires_grad}
    assert learning == {"linear"}
    assert model.backbone.linear.training
    freeze(model, "backbone")
    set_training_mode(model)
    assert not any(layer.training for layer in model.backbone.modules())  # no dropout in cached features


@pytest.mark.parametrize("name", FROM_SCRATCH)
@pytest.mark.parametrize("size", [64, 130])
def test_a_description_rebuilds_the_size_too(name: Any, size: int) -> None:
    model = build(name, size=size, hidden=(5,)).eval()
    again = from_spec(json.loads(json.dumps(spec(model)))).eval()
    again.load_state_dict(model.state_dict())
    assert spec(again) == spec(model)
    with torch.inference_mode():
        assert torch.equal(again(noise_batch(2, size)), model(noise_batch(2, size)))


@pytest.mark.parametrize("name", FROM_SCRATCH)
@pytest.mark.parametrize("size", [32, 64, 224])
def test_another_size_is_refused_with_the_way_out(name: Any, size: int) -> None:
    model = build(name, size=128)
    require_size(model, 128)
    with pytest.raises(ModelError, match=rf"{size} x {size} .*made for 128: set size: 128, or start: pretrained"):
        require_size(model, size)


def test_the_seed_decides() -> None:
    first, again, other = (build("plain_cnn6", seed=seed).backbone.conv3[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_an_untrained_network_passes_the_image_on(name: Any) -> None:
    network = build(name).eval()
    with torch.inference_mode():
        features = network.features(noise_batch(8, 64))
    between = features.std(0).mean()  # torch's own draws leave less than 1e-4 of simple_cnn's
    assert 0.01 < between < 10


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_there_are_no_published_weights(name: Any) -> None:
    with pytest.raises(ModelError, match=r"nobody published weights for it.*weights: none"):
        load_weights(build_backbone(name), name, source="pretrained", base=Path())


def test_the_memory_layout_changes_no_feature() -> None:
    network = build_backbone("simple_cnn", size=64).eval()
    with torch.inference_mode():
        expected = network(noise_batch(size=64))
        network.to(memory_format=torch.channels_last)
        result = network(noise_batch(size=64).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-5)


def test_folding_finds_no_batch_norm() -> None:
    network = build_backbone("plain_cnn6", size=64)
    with fold_batch_norm(network, noise_batch(1, 64)) as pairs:
        assert pairs == 0


@pytest.mark.parametrize("name", NAMED)
def test_every_named_backbone_takes_an_optimiser_step(name: str) -> None:
    model = build(name)
    require_size(model, 64)
    set_training_mode(model)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.random.fork_rng(devices=[]):  # dropout
        torch.default_generator.manual_seed(0)
        logits = model(noise_batch(size=64))
    targets = torch.zeros(2, SPACE.width)
    F.binary_cross_entropy_with_logits(logits, targets).backward()
    optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    first, last = next(iter(before)), list(before)[-1]
    assert {first, last} <= moved
