from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from assay.errors import ModelError
from assay.labels.space import Head, LabelSpace
from assay.models.backbones import Features, build_backbone
from assay.models.classifier import (
    Classifier,
    HeadSettings,
    ModelSettings,
    build_classifier,
    from_spec,
    require_size,
    spec,
)
from factories import noise_batch

SPACE = LabelSpace((Head("kind", ("a", "b", "c")), Head("tags", ("x", "y"), "multilabel")))
TINY = ModelSettings(backbone="test_resnet", weights="none")


def build(model: ModelSettings = TINY, *, seed: int = 0, base: Path = Path(), size: int = 64) -> Classifier:
    return build_classifier(model, SPACE, seed=seed, base=base, size=size)


class Mean(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.mean((2, 3))


def test_logits_of_all_heads_side_by_side() -> None:
    model = build().eval()
    features = model.features(noise_batch())
    assert features.shape == (2, model.feature_count)
    assert torch.equal(model(noise_batch()), model.classify(features))
    assert model(noise_batch()).shape == (2, SPACE.width)


def test_images_are_normalised_inside() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    model = Classifier(Mean(), features=3, width=2, mean=mean, std=std)
    x = torch.tensor(mean).view(1, 3, 1, 1) + 2 * torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(model.features(x.expand(1, 3, 4, 4)), torch.full((1, 3), 2.0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalising_keeps_the_memory_layout(layout: torch.memory_format) -> None:
    model = Classifier(nn.Identity(), features=3, width=2)
    assert model.features(noise_batch(4).contiguous(memory_format=layout)).is_contiguous(memory_format=layout)


def test_the_head_as_described() -> None:
    linear = Classifier(Mean(), features=3, width=5, dropout=0.5)
    assert [type(layer) for layer in linear.head] == [nn.Dropout, nn.Linear]
    deep = Classifier(Mean(), features=3, width=5, hidden=(8, 4), dropout=0.5)
    block = [nn.Linear, nn.ReLU, nn.Dropout]
    assert [type(layer) for layer in deep.head] == [*block, *block, nn.Linear]
    assert deep.final is deep.head[-1]
    assert deep.final.weight.shape == (5, 4)


def test_weights_hold_no_tensor_twice_and_no_normalisation() -> None:
    names = Classifier(Mean(), features=3, width=5).state_dict().keys()
    assert set(names) == {"head.1.weight", "head.1.bias"}


def test_the_seed_decides_and_no_global_state_is_touched() -> None:
    before = torch.get_rng_state()
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.final.weight, other.final.weight)
    assert not torch.equal(first.backbone.conv1[0].weight, other.backbone.conv1[0].weight)


def test_the_head_does_not_depend_on_the_source_of_the_weights(tmp_path: Path) -> None:
    save_file(build(seed=5).backbone.state_dict(), tmp_path / "w.safetensors")
    loaded = build(ModelSettings(backbone="test_resnet", weights="w.safetensors"), seed=1, base=tmp_path)
    assert torch.equal(loaded.final.weight, build(seed=1).final.weight)
    assert torch.equal(loaded.backbone.conv1[0].weight, build(seed=5).backbone.conv1[0].weight)


def test_the_default_works_with_no_download() -> None:
    model = build(ModelSettings())
    assert model.mean == model.std == (0.5, 0.5, 0.5)
    assert model.feature_count == 1280


def test_a_run_gives_the_backbone_and_the_head_is_new(tmp_path: Path) -> None:
    donor = build(seed=7)
    (tmp_path / "run/model").mkdir(parents=True)
    save_file(donor.state_dict(), tmp_path / "run/model/model.safetensors")
    (tmp_path / "run/model/spec.json").write_text(json.dumps({"network": spec(donor)}))
    model = build(ModelSettings(backbone="test_resnet", init_from="run"), seed=1, base=tmp_path)
    assert torch.equal(model.backbone.bn1.weight, donor.backbone.bn1.weight)
    assert torch.equal(model.backbone.conv1[0].weight, donor.backbone.conv1[0].weight)
    assert torch.equal(model.final.weight, build(seed=1).final.weight)


@settings(max_examples=5, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 9), max_size=2),
    dropout=st.floats(0, 0.99),
    name=st.sampled_from(["test_resnet", "test_vit", "test_efficientnet", "test_vit + test_resnet"]),
    features=st.sampled_from(["last", "all_stages"]),
)
def test_a_description_rebuilds_the_network(hidden: list[int], dropout: float, name: str, features: Features) -> None:
    head = HeadSettings(hidden=tuple(hidden), dropout=dropout)
    model = build(ModelSettings(backbone=name, weights="none", head=head, features=features)).eval()
    before = torch.get_rng_state()
    again = from_spec(json.loads(json.dumps(spec(model)))).eval()
    assert torch.equal(torch.get_rng_state(), before)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(noise_batch()), model(noise_batch()))
    assert spec(again) == spec(model)


def test_a_description_that_lacks_something() -> None:
    described = spec(build())
    del described["std"], described["width"]
    with pytest.raises(ModelError, match="lacks std, width"):
        from_spec(described)


def test_a_description_from_before_sizes_were_noted() -> None:
    described = spec(build())
    del described["made_for"]
    assert from_spec(described).feature_count == build().feature_count


def test_a_size_the_backbone_cannot_take() -> None:
    backbone = build_backbone("test_vit")
    backbone.patch_embed.dynamic_img_pad = False  # patches of 16 pixels
    model = Classifier(backbone, features=64, width=2, backbone_name="test_vit").train()
    require_size(model, 64)
    with pytest.raises(ModelError, match=r"test_vit: cannot take images of 50 x 50 \(.*set size: 160"):
        require_size(model, 50)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("weights", ["pretrained", "w.pth"])
def test_two_sources_of_weights_contradict(weights: str) -> None:
    with pytest.raises(ValidationError, match="drop one of them"):
        ModelSettings(weights=weights, init_from="runs/a")


@pytest.mark.parametrize("given", [{"weights": "w.pth"}, {"init_from": "runs/a"}])
def test_the_same_network_without_weights(given: dict[str, str]) -> None:
    head = {"hidden": [4]}
    model = ModelSettings.model_validate({"backbone": "test_resnet", "head": head, **given})
    expected = ModelSettings.model_validate({"backbone": "test_resnet", "head": head, "weights": "none"})
    assert model.without_weights() == expected


@pytest.mark.parametrize("given", [{}, {"init_from": "runs/a"}, {"weights": "none"}, {"init_from": None}])
def test_settings_read_back_as_themselves(given: dict[str, Any]) -> None:
    model = ModelSettings.model_validate(given)
    assert ModelSettings.model_validate(model.model_dump(mode="json")) == model


@pytest.mark.parametrize(
    "head", [{"dropout": 1.0}, {"dropout": -0.1}, {"hidden": [0]}, {"hidden": ["wide"]}, {"layers": [3]}]
)
def test_impossible_heads_are_refused(head: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelSettings.model_validate({"head": head})
