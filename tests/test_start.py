from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from assay.errors import ModelError, PlanError
from assay.files import RunFolder, write_json
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.models.classifier import Classifier, HeadSettings, ModelSettings, build_classifier, require_size
from assay.models.decision_rule import DecisionRule
from assay.models.heads import NearestMean, joined
from assay.models.trained_model import TrainedModel
from assay.steps import probe
from assay.steps.fit_settings import FitSettings
from assay.steps.hardware import _training_images
from assay.steps.start import classifier_for

SPACE = LabelSpace((Head("kind", ("a", "b", "c")),))
OTHER = LabelSpace((Head("kind", ("a", "b")),))
LOST = ModelSettings(backbone="test_resnet", weights="lost.safetensors")


@dataclass
class Place:
    """What of a step's context matters here."""

    model: ModelSettings
    base: Path
    seed: int
    progress: SimpleNamespace
    lines: list


def context(base: Path, model: ModelSettings = LOST, *, seed: int = 1) -> Place:
    lines = []
    return Place(model, base, seed, SimpleNamespace(line=lines.append), lines)


def state(model: Path | None = None, *, space: LabelSpace = SPACE) -> SimpleNamespace:
    return SimpleNamespace(samples=SimpleNamespace(space=space), model=model)


def trained(folder: Path, model: ModelSettings = LOST, *, size: int = 64) -> Classifier:
    classifier = build_classifier(model.without_weights(), SPACE, seed=9, base=folder, size=size)
    TrainedModel(classifier, SPACE, size, size, Resize(), DecisionRule.plain(SPACE)).save(folder)
    return classifier


def same(first: Classifier | nn.Module, second: Classifier | nn.Module) -> bool:
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("start", ["previous", "other"])
def test_a_trained_model_needs_no_weights_file(tmp_path: Path, start: str) -> None:
    before = trained(tmp_path / "other")
    found = classifier_for(start, state(tmp_path / "other"), context(tmp_path), size=32)
    assert same(found, before)


def test_a_head_that_is_not_linear_is_drawn_anew(tmp_path: Path) -> None:
    before = trained(tmp_path / "model")
    before.replace_last(joined([NearestMean(before.feature_count, 3, paired=False)]))
    TrainedModel(before, SPACE, 64, 64, Resize(), DecisionRule.plain(SPACE)).save(tmp_path / "model")
    told = context(tmp_path)
    found = classifier_for("previous", state(tmp_path / "model"), told, size=32)
    assert found.is_linear
    assert same(found.backbone, before.backbone)
    assert told.lines == ["  the head is new: the model started from has a head that is not linear"]


def test_a_start_from_nothing_needs_the_weights_file(tmp_path: Path) -> None:
    trained(tmp_path / "model")
    for start, model in (("pretrained", tmp_path / "model"), ("previous", None)):
        with pytest.raises(ModelError, match=r"lost\.safetensors: there is no such file"):
            classifier_for(start, state(model), context(tmp_path), size=32)


def test_a_new_head_is_drawn_as_if_the_weights_had_been_read(tmp_path: Path) -> None:
    before = trained(tmp_path / "model")
    save_file(before.backbone.state_dict(), tmp_path / "found.safetensors")
    told = context(tmp_path)
    found = classifier_for("previous", state(tmp_path / "model", space=OTHER), told, size=32)
    read = ModelSettings(backbone="test_resnet", weights="found.safetensors")
    assert same(found, build_classifier(read, OTHER, seed=1, base=tmp_path, size=64))
    assert "the head is new" in told.lines[0]


def test_a_model_of_another_backbone(tmp_path: Path) -> None:
    trained(tmp_path / "model", ModelSettings(backbone="test_vit"))
    with pytest.raises(PlanError, match="its backbone is test_vit and the plan's is test_resnet"):
        classifier_for("previous", state(tmp_path / "model"), context(tmp_path), size=32)


def test_a_probe_of_a_trained_model_needs_no_weights_file(tmp_path: Path) -> None:
    deep = LOST.model_copy(update={"head": HeadSettings(hidden=(4,))})
    before = trained(tmp_path / "model", deep)
    found = probe.frozen_backbone(state(tmp_path / "model"), context(tmp_path, deep), size=64)
    assert same(found.backbone, before.backbone)
    assert found.hidden == ()


def test_a_plain_network_is_built_for_the_size_and_keeps_it(tmp_path: Path) -> None:
    plain = ModelSettings(backbone="plain_cnn6", weights="none")
    assert classifier_for("pretrained", state(), context(tmp_path, plain), size=192).feature_count == 9 * 256
    trained(tmp_path / "model", plain, size=128)
    found = classifier_for("previous", state(tmp_path / "model"), context(tmp_path, plain), size=64)
    with pytest.raises(ModelError, match=r"64 x 64 .*made for 128: set size: 128, or start: pretrained"):
        require_size(found, 64)


@pytest.mark.parametrize(
    ("seconds", "timed", "expected"),
    [(None, {"a": 0.1, "b": 0.2}, 800), (10.0, {"a": 0.1, "b": 0.2}, 400), (1e6, {"a": 0.1}, 800), (5.0, {}, 200)],
)
def test_a_trial_knows_how_many_images_a_fit_will_train_on(
    tmp_path: Path, seconds: float | None, timed: dict[str, float], expected: int
) -> None:
    run = RunFolder(tmp_path)
    write_json(run.hardware, {"inference": {"seconds a step": timed, "images a step": 16}})
    here = SimpleNamespace(run=run, model=LOST)
    assert _training_images(FitSettings(epochs=8, seconds=seconds), 100, here) == expected
