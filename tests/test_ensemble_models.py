"""Several models that answer as one: on disk, in memory, and as an artifact."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assay.errors import ModelError, RunError
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.models.classifier import ModelSettings, build_classifier
from assay.models.combiners import MeanCombiner, Tree, one_against_rest
from assay.models.decision_rule import DecisionRule
from assay.models.ensemble import (
    Ensemble,
    average_weights,
    input_size,
    load_model,
    member_of,
    require_alike,
    statistics_differ,
    take_statistics,
)
from assay.models.heads import NearestMean
from assay.models.trained_model import TrainedModel, read_training_hashes
from assay.predictions.predict import Predictions
from assay.predictions.predictor import Predictor
from factories import write_noise

HEAD = Head("label", ("a", "b", "c"))
SPACE = LabelSpace((HEAD, Head("tags", ("sea", "sky"), "multilabel")))


def saved(
    space: LabelSpace = SPACE, *, seed: int = 0, size: int = 32, backbone: str = "test_efficientnet"
) -> TrainedModel:
    settings = ModelSettings(backbone=backbone, weights="none")
    classifier = build_classifier(settings, space, seed=seed, base=Path(), size=size).eval()
    with torch.no_grad():
        classifier.final.weight.mul_(20)  # untrained features differ little from image to image
    batches = np.array([seed, 100], dtype=np.uint64)
    return TrainedModel(classifier, space, size, size + 8, Resize(), DecisionRule.plain(space), trained_on=batches)


@pytest.fixture
def members(tmp_path: Path) -> list[Path]:
    """The folders of two models of different networks and sizes."""
    saved(seed=1).save(tmp_path / "one")
    hot = saved(seed=2, size=64, backbone="test_resnet")
    rule = replace(hot.decision_rule, temperature=np.full(5, 2, np.float32), shift=np.arange(5, dtype=np.float32))
    replace(hot, decision_rule=rule).save(tmp_path / "two")
    return [tmp_path / "one", tmp_path / "two"]


def ensemble(members: list[Path], weights: tuple[float, ...] = (0.25, 0.75)) -> Ensemble:
    joined = tuple(member_of(folder) for folder in members)
    return Ensemble(SPACE, joined, MeanCombiner("probabilities", weights), DecisionRule.plain(SPACE), {"note": 7})


def named(folder: Path, count: int = 3) -> list[tuple[str, Path]]:
    paths = write_noise((folder / f"{number}.png" for number in range(count)), height=50, width=60)
    return [(path.name, path) for path in paths]


def answers(folder: Path, images: list[tuple[str, Path]]) -> Predictions:
    return Predictions.joined(list(Predictor.load(folder, device="cpu").stream(images)))


def test_a_ensemble_answers_by_the_weighted_mean_of_its_members(members: list[Path], tmp_path: Path) -> None:
    ensemble(members).save(tmp_path / "both")
    images = named(tmp_path)
    one, two, both = (answers(folder, images).probabilities for folder in (*members, tmp_path / "both"))
    np.testing.assert_allclose(both, 0.25 * one + 0.75 * two, atol=1e-4)
    assert not np.allclose(one, two, atol=1e-2)


def test_it_needs_its_members_folders_no_more(members: list[Path], tmp_path: Path) -> None:
    ensemble(members).save(tmp_path / "both")
    images = named(tmp_path)
    before = answers(tmp_path / "both", images)
    moved = shutil.copytree(tmp_path / "both", tmp_path / "elsewhere" / "both")
    for folder in (*members, tmp_path / "both"):
        shutil.rmtree(folder)
    np.testing.assert_allclose(answers(moved, images).logits, before.logits, atol=1e-5)
    back = load_model(moved)
    assert (back.details, back.joining, back.space) == ({"note": 7}, MeanCombiner("probabilities", (0.25, 0.75)), SPACE)
    assert [network.size for network in back.networks] == [32, 64]
    assert input_size(moved) == (32, Resize())
    assert read_training_hashes(moved).tolist() == back.trained_on.tolist() == [1, 2, 100]


def test_members_are_links_where_the_disk_can_and_copies_where_not(
    members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = members[0] / "model.safetensors"
    ensemble(members).save(tmp_path / "linked")
    assert (tmp_path / "linked/members/01/model.safetensors").samefile(weights)

    def refuse(*paths: Any) -> None:
        raise OSError(errno.EXDEV, "no link across disks")

    monkeypatch.setattr(os, "link", refuse)
    ensemble(members).save(tmp_path / "copied")
    copied = tmp_path / "copied/members/01/model.safetensors"
    assert copied.read_bytes() == weights.read_bytes()
    assert not copied.samefile(weights)


def test_saving_over_itself_changes_nothing(members: list[Path], tmp_path: Path) -> None:
    both = ensemble(members)
    both.save(tmp_path / "both")
    both.save(tmp_path / "both")
    files = sorted(path.relative_to(tmp_path / "both").as_posix() for path in (tmp_path / "both").rglob("*.*"))
    files_of_member = ["model.safetensors", "spec.json", "trained_on.npy"]
    assert files == [
        *(f"members/0{n}/{name}" for n in (1, 2) for name in files_of_member),
        "spec.json",
        "trained_on.npy",
    ]


def test_combinations_may_be_combined(members: list[Path], tmp_path: Path) -> None:
    ensemble(members).save(tmp_path / "both")
    ensemble([members[0], tmp_path / "both"], (0.5, 0.5)).save(tmp_path / "three")
    images = named(tmp_path)
    one, both, three = (answers(tmp_path / name, images).probabilities for name in ("one", "both", "three"))
    np.testing.assert_allclose(three, (one + both) / 2, atol=1e-4)


def test_a_tree_joins_the_answers_of_its_questions(tmp_path: Path) -> None:
    tree = Tree("label", one_against_rest("b", HEAD))
    for name, space, seed in zip(("first", "second"), tree.spaces(SPACE), (1, 2), strict=True):
        saved(space, seed=seed).save(tmp_path / name)
    joined = tuple(member_of(tmp_path / name) for name in ("first", "second"))
    Ensemble(SPACE, joined, tree, DecisionRule.plain(SPACE)).save(tmp_path / "tree")
    images = named(tmp_path)
    first, second, predicted = (answers(tmp_path / name, images).probabilities for name in ("first", "second", "tree"))
    wanted = [first[:, 1] * second[:, 0], first[:, 0], first[:, 1] * second[:, 1]]  # a, b, c
    np.testing.assert_allclose(predicted[:, :3], np.stack(wanted, axis=1), atol=1e-5)
    np.testing.assert_allclose(predicted[:, 3:], first[:, 2:], atol=1e-5)


def test_temperatures_of_the_whole_come_last(members: list[Path], tmp_path: Path) -> None:
    both = ensemble(members)
    raw = [np.random.default_rng(seed).normal(size=(4, 5)) for seed in (0, 1)]
    hot = replace(both, decision_rule=replace(both.decision_rule, temperature=np.full(5, 4, np.float32)))
    np.testing.assert_allclose(hot.logits(raw), both.logits(raw) / 4, rtol=1e-5)
    single = load_model(members[1])
    np.testing.assert_allclose(single.logits(raw[:1]), single.decision_rule.logits(raw[0]))


def test_where_one_network_is_needed_a_ensemble_is_refused(members: list[Path], tmp_path: Path) -> None:
    ensemble(members).save(tmp_path / "both")
    with pytest.raises(ModelError, match="is an ensemble of 2 models, and one network is needed here"):
        TrainedModel.load(tmp_path / "both")


def test_damaged_combinations_are_refused(members: list[Path], tmp_path: Path) -> None:
    ensemble(members).save(tmp_path / "both")
    shutil.rmtree(tmp_path / "both/members/02")
    with pytest.raises(RunError, match="holds no readable model"):
        load_model(tmp_path / "both")
    described = json.loads((tmp_path / "both/spec.json").read_text())
    (tmp_path / "both/spec.json").write_text(json.dumps({**described, "kind": "parliament"}))
    with pytest.raises(RunError, match="kind 'parliament' is not known"):
        load_model(tmp_path / "both")


def test_a_soup_has_the_mean_weights() -> None:
    one, two = saved(seed=1), saved(seed=2)
    mixed = average_weights([one, one, two])
    for name, value in mixed.classifier.state_dict().items():
        first, second = (model.classifier.state_dict()[name] for model in (one, two))
        if value.is_floating_point():
            torch.testing.assert_close(value, (2 * first + second) / 3)
        else:
            assert torch.equal(value, first)
    assert mixed.trained_on.tolist() == [1, 2, 100]
    same = average_weights([two, two]).classifier.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in two.classifier.state_dict().items())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (saved(backbone="test_resnet"), r"a and b differ in their network \(test_efficientnet; test_resnet\)"),
        (saved(size=64), r"a and b differ in their size of images \(32; 64\)"),
        (
            replace(saved(), decision_rule=replace(DecisionRule.plain(SPACE), shift=np.ones(5, np.float32))),
            "a and b differ in their class weights",
        ),
    ],
)
def test_networks_that_have_no_mean_are_refused_by_name(other: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        require_alike([saved(), other], ["a", "b"])


def test_heads_that_are_not_linear_have_no_mean() -> None:
    other = saved()
    other.classifier.replace_last(NearestMean(other.classifier.feature_count, 5, paired=False))
    with pytest.raises(ModelError, match="the last layer of b is not linear"):
        require_alike([saved(), other], ["a", "b"])


def test_statistics_of_batch_norm_are_those_of_the_mean_network() -> None:
    network = saved().classifier
    other = saved()
    assert not statistics_differ([saved(), other])
    other.classifier.backbone.bn1.running_mean += 1 if hasattr(other.classifier.backbone, "bn1") else 0
    assert statistics_differ([saved(), other])
    images = torch.rand(16, 3, 32, 32)
    batches = []
    first = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    hook = first.register_forward_pre_hook(lambda module, given: batches.append(given[0]))
    take_statistics(network, iter([images[:8], images[8:]]))
    hook.remove()
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(first.running_mean, means)
    assert first.momentum is not None
    assert not first.training


def test_probabilities_of_a_certain_ensemble_stay_finite(members: list[Path]) -> None:
    both = ensemble(members, (1.0, 0.0))
    sure = [np.array([[1e3, -1e3, 0, 1e3, -1e3]], dtype=np.float32)] * 2
    predicted = probabilities_of(SPACE, both.logits(sure))
    assert np.isfinite(predicted).all()
    np.testing.assert_allclose(predicted[0], [1, 0, 0, 1, 0])
