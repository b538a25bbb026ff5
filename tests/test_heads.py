"""Last layers that are not linear: equal to scikit-learn's, saved as tensors, read back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import PredefinedSplit
from sklearn.svm import SVC
from torch import nn

from assay.errors import ModelError
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.models import heads
from assay.models.classifier import ModelSettings, build_classifier, from_spec, spec
from assay.models.decision_rule import DecisionRule
from assay.models.heads import JoinedLayers, KernelMachine, NearestMean
from assay.models.trained_model import TrainedModel

SPACE = LabelSpace((Head("kind", ("a", "b", "c")), Head("tags", ("p", "q"), "multilabel")))
PLAIN = ModelSettings(backbone="test_efficientnet", weights="none")


def features(count: int = 60, width: int = 12, *, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(1, 2, (count, width)).astype(np.float32))


def drawn(layer: nn.Module, *, seed: int = 0) -> nn.Module:
    """The layer with every number drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    for value in layer.state_dict().values():
        value.copy_(torch.rand(value.shape, generator=generator))
    return layer


def layers(width: int = 12) -> list[nn.Module]:
    return [
        drawn(nn.Linear(width, 3)),
        drawn(NearestMean(width, 3, paired=False)),
        drawn(NearestMean(width, 3, paired=True)),
        drawn(KernelMachine(width, 3, support=7)),
    ]


def fitted(count: int = 90) -> tuple[KernelMachine, CalibratedClassifierCV, np.ndarray]:
    """scikit-learn's calibrated machine, and a layer made of its numbers."""
    x = features(count).numpy()
    truth = x[:, 0] + x[:, 1] > 3
    machine = SVC(C=3.0, gamma=0.05, class_weight={False: 1, True: 4})
    folds = PredefinedSplit(np.arange(count) % 3)
    model = CalibratedClassifierCV(machine, method="sigmoid", cv=folds, ensemble=False).fit(x, truth)
    (whole,) = model.calibrated_classifiers_
    fitted_machine, (sigmoid,) = whole.estimator, whole.calibrators
    layer = KernelMachine(x.shape[1], 1, support=len(fitted_machine.support_))
    layer.support.copy_(torch.from_numpy(fitted_machine.support_vectors_))
    layer.dual.copy_(torch.from_numpy(fitted_machine.dual_coef_))
    layer.gamma.fill_(0.05)
    layer.intercepts.fill_(float(fitted_machine.intercept_[0]))
    layer.slopes.fill_(-sigmoid.a_)
    layer.levels.fill_(-sigmoid.b_)
    return layer, model, x


def test_decisions_and_probabilities_are_scikit_learns() -> None:
    layer, model, _ = fitted()
    new = features(50, seed=9)
    decisions = model.calibrated_classifiers_[0].estimator.decision_function(new.numpy())
    np.testing.assert_allclose(layer.decisions(new)[:, 0], decisions, atol=1e-6)
    probabilities = torch.sigmoid(layer(new.double()))[:, 0]
    np.testing.assert_allclose(probabilities, model.predict_proba(new.numpy())[:, 1], atol=1e-6)
    assert layer(new).dtype == torch.float32


def test_a_kernel_stays_in_float64_wherever_the_network_goes() -> None:
    layer, _, _ = fitted()
    network = nn.Sequential(nn.Linear(12, 12), layer).to(torch.float16)
    assert network[0].weight.dtype == torch.float16
    assert layer.dual.dtype == torch.float64
    assert layer(features().half()).dtype == torch.float16


@pytest.mark.parametrize("paired", [False, True])
def test_similarities_are_cosines(paired: bool) -> None:
    layer = drawn(NearestMean(12, 3, paired=paired))
    layer.means.copy_(nn.functional.normalize(layer.means, dim=1))
    x = features()
    away = ((x - layer.centre) / layer.spread).numpy()
    means = layer.means.numpy()
    cosines = np.array([[row @ mean / np.linalg.norm(row) for mean in means] for row in away])
    wanted = cosines[:, 3:] - cosines[:, :3] if paired else cosines
    np.testing.assert_allclose(layer.similarities(x), wanted, atol=1e-6)
    np.testing.assert_allclose(layer(x), float(layer.slope) * wanted + layer.levels.numpy(), atol=1e-5)


def test_linear_layers_join_to_one_linear_layer_and_part_again() -> None:
    one, two = drawn(nn.Linear(12, 3)), drawn(nn.Linear(12, 2), seed=1)
    whole = heads.joined([one, two])
    assert isinstance(whole, nn.Linear)
    parts = heads.split(whole, [3, 2])
    assert [
        torch.equal(part.weight, fitted_machine.weight) for part, fitted_machine in zip(parts, (one, two), strict=True)
    ] == [True, True]
    assert torch.allclose(whole(features()), torch.cat([one(features()), two(features())], dim=1))


def test_heads_of_different_kinds_stand_side_by_side() -> None:
    parts = layers()
    whole = heads.joined(parts)
    assert isinstance(whole, JoinedLayers)
    assert heads.split(whole, [3] * 4) == parts
    assert whole(features()).shape == (60, 12)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_a_layer_for_more_classes(layer: nn.Module) -> None:
    levels = torch.tensor([5.0, -1e4, 6.0, 7.0, -20.0])
    wider = heads.widened(layer, [0, 2, 3], levels)
    result, wanted = wider(features()), layer(features())
    assert torch.allclose(result[:, [0, 2, 3]], wanted)
    assert torch.equal(result[:, [1, 4]], levels[[1, 4]].expand(60, 2))


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_saved_as_tensors_and_read_back_the_same(tmp_path: Path, hidden: tuple[Any, ...]) -> None:
    settings = PLAIN.model_copy(update={"head": type(PLAIN.head)(hidden=hidden)})
    classifier = build_classifier(settings, SPACE, seed=0, base=tmp_path, size=32)
    assert "last" not in spec(classifier)  # what was written before there were others still says the same
    width = classifier.final.in_features
    parts = [drawn(KernelMachine(width, 3, support=7)), drawn(NearestMean(width, 2, paired=True))]
    classifier.replace_last(heads.joined(parts))
    assert not classifier.is_linear
    TrainedModel(classifier.eval(), SPACE, 32, 32, Resize(), DecisionRule.plain(SPACE)).save(tmp_path)
    result = TrainedModel.load(tmp_path).classifier
    x = features(5, classifier.feature_count)
    assert torch.equal(result.classify(x), classifier.classify(x))
    assert {name: value.dtype for name, value in result.state_dict().items()} == {
        name: value.dtype for name, value in classifier.state_dict().items()
    }


def test_a_kind_not_known_here_is_refused() -> None:
    classifier = build_classifier(PLAIN, SPACE, seed=0, base=None, size=32)
    described = {**spec(classifier), "last": [{"kind": "forest", "outputs": 5}]}
    with pytest.raises(ModelError, match="head of kind 'forest', which is not known here"):
        from_spec(described)


def test_no_draw_of_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    heads.linear_layer(torch.zeros(2, 3), torch.zeros(2))
    assert torch.equal(before, torch.random.get_rng_state())
