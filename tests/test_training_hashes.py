from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import assay
from assay.errors import PlanError, RunError
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.models.classifier import ModelSettings, build_classifier
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import (
    TrainedModel,
    read_training_hashes,
    require_unseen,
    training_hashes,
    write_training_hashes,
)
from assay.steps.sources import trained_on_at_start

SPACE = LabelSpace((Head("kind", ("a", "b")),))
TINY = ModelSettings(backbone="test_efficientnet", weights="none")


def content(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def images(labels: list[str | None]) -> Samples:
    names = [str(number) for number in range(len(labels))]
    hashes = [content(name) for name in names]
    facts = {"id": names, "path": names, "split": "train", "group": None, "hash": hashes}
    return Samples(pl.DataFrame({**facts, "label:kind": labels}), SPACE, Path("/p"))


def saved(trained_on: Any = None) -> TrainedModel:
    classifier = build_classifier(TINY, SPACE, seed=0, base=Path(), size=32)
    made = TrainedModel(classifier, SPACE, 32, 32, Resize(), DecisionRule.plain(SPACE))
    return made if trained_on is None else replace(made, trained_on=trained_on)


def test_images_are_known_by_the_first_8_bytes_of_their_hash() -> None:
    hashes = training_hashes([content("b"), None, content("a"), content("b")])
    wanted = {int.from_bytes(hashlib.sha256(text).digest()[:8], "big") for text in (b"a", b"b")}
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == sorted(wanted)


def test_a_model_holds_the_training_images_of_its_backbone(tmp_path: Path) -> None:
    trained_on = training_hashes([content("a"), content("b")])
    saved(trained_on).save(tmp_path)
    assert np.array_equal(TrainedModel.load(tmp_path).trained_on, trained_on)
    saved().save(tmp_path)  # over the one before: what that one had seen is gone with it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "spec.json"]
    assert len(TrainedModel.load(tmp_path).trained_on) == 0


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"no array"])
def test_a_damaged_list_is_no_empty_list(tmp_path: Path, damage: bytes) -> None:
    saved(training_hashes([content("a")])).save(tmp_path)
    (tmp_path / "trained_on.npy").write_bytes(damage)
    with pytest.raises(RunError, match=r"trained_on\.npy: cannot be read .* Train the run again"):
        TrainedModel.load(tmp_path)


def test_where_a_plan_starts_from(tmp_path: Path) -> None:
    trained_on = training_hashes([content("a")])
    saved(trained_on).save(tmp_path / "run" / "model")
    of_run = ModelSettings(backbone="test_efficientnet", init_from="run")
    of_file = ModelSettings(backbone="test_efficientnet", weights="run/model/model.safetensors")
    assert trained_on_at_start(of_run, tmp_path, tmp_path / "new").tolist() == trained_on.tolist()
    assert trained_on_at_start(of_file, tmp_path, tmp_path / "new").tolist() == trained_on.tolist()
    for source in ("none", "pretrained", "elsewhere.pth"):
        assert len(trained_on_at_start(ModelSettings(weights=source), tmp_path, tmp_path / "new")) == 0


def test_a_backbone_may_not_judge_what_it_was_trained_on() -> None:
    samples = images(["a", None, "b", "a"])
    require_unseen(
        training_hashes([content("1"), content("other")]), samples, what="clean_labels"
    )  # 1 has no label to judge
    with pytest.raises(PlanError) as caught:
        require_unseen(training_hashes([content("0"), content("1"), content("3")]), samples, what="clean_labels")
    assert "clean_labels: the judge begins with weights that were trained on 2 of the 3 images" in str(caught.value)
    assert "Set weights: pretrained in this step" in str(caught.value)


def test_a_probe_passes_on_the_training_images_of_the_backbone(tmp_path: Path, tiny_plan: Callable[..., str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(tiny_plan("probe: {size: 32}"))
    first = assay.train(plan, run=tmp_path / "first")
    assert len(read_training_hashes(first.folder / "model")) == 0
    write_training_hashes(first.folder / "model", training_hashes([content("a")]))
    plan.write_text(tiny_plan("probe: {size: 32}", "probe: {size: 32}", model=f", init_from: {first.folder}"))
    second = assay.train(plan, run=tmp_path / "second")
    assert read_training_hashes(second.folder / "model").tolist() == training_hashes([content("a")]).tolist()
