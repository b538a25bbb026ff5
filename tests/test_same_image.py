"""An answer depends on the pixels of an image: not on its name, its place, its order or its neighbours."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import assay
from assay.images.cache import build
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.models.classifier import ModelSettings, build_classifier
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import TrainedModel
from assay.predictions.predictor import Predictor
from assay.predictions.tta import RandomViews, tta_logits, tta_views
from assay.training.devices import Hardware
from factories import write_noise

VIEWS = RandomViews(n=4)
SIZE, SIDE = 32, 40


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("same") / "images"
    write_noise((folder / f"{number}.png" for number in range(5)), height=48, width=48)
    return folder


@pytest.fixture(scope="module", params=["contiguous", "channels_last"])
def artifact(request: pytest.FixtureRequest) -> Predictor:
    """The default backbone with its published weights."""
    space = LabelSpace((Head("label", ("a", "b", "c")), Head("tags", ("x", "y"), "multilabel")))
    classifier = build_classifier(ModelSettings(), space, seed=0, base=Path(), size=SIZE).eval()
    hardware = Hardware("cpu", layout=request.param)
    classifier.to(memory_format=hardware.memory_format)
    saved = TrainedModel(classifier, space, SIZE, SIDE, Resize(), DecisionRule.plain(space))
    return Predictor(saved, (hardware,), "model")


def answers(artifact: Predictor, paths: list[Path], **options: Any) -> np.ndarray:
    chunks = list(artifact.stream([(str(path), path) for path in paths], tta=VIEWS, **options))
    return np.concatenate([chunk.probabilities for chunk in chunks])


def test_the_same_image_gets_the_same_answer_under_any_name(
    artifact: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absolute = sorted(images.iterdir())
    expected = answers(artifact, absolute)
    monkeypatch.chdir(images)
    assert np.array_equal(answers(artifact, [Path(path.name) for path in absolute]), expected)
    copied = [Path(shutil.copy(path, tmp_path / f"copy of {path.stem}.PNG")) for path in absolute]
    assert np.array_equal(answers(artifact, copied), expected)
    for path in absolute:
        Image.open(path).save(tmp_path / f"{path.stem}.bmp")  # other bytes, the same pixels
    assert np.array_equal(answers(artifact, [tmp_path / f"{path.stem}.bmp" for path in absolute]), expected)
    assert not np.allclose(expected[0], expected[1])


def test_the_same_image_gets_the_same_answer_in_any_order_and_batch(artifact: Predictor, images: Path) -> None:
    paths = sorted(images.iterdir())
    expected = answers(artifact, paths)
    assert np.array_equal(answers(artifact, paths[::-1])[::-1], expected)
    # The network rounds otherwise in another size of batch; what it is shown is the same to the bit.
    np.testing.assert_allclose(answers(artifact, paths, batch=1), expected, atol=1e-5)


def test_views_within_a_run_are_those_of_predicting(artifact: Predictor, images: Path, tmp_path: Path) -> None:
    """Validation calls an image by its path below the data; `predict` by the path it was given."""
    paths = sorted(images.iterdir())
    ids = [f"data/{path.name}" for path in paths]
    cache, _ = build(ids, paths, hashes=[None] * 5, size=SIZE, resize=Resize(), folder=tmp_path)
    assert cache.side == SIDE
    hardware, found = artifact.hardware[0], artifact.saved
    logits = tta_logits(found, lambda size, resize: cache, ids, views=tta_views(VIEWS), hardware=hardware)
    each = [probabilities_of(found.space, one) for one in logits]
    np.testing.assert_allclose(np.mean(each, axis=0)[:, :3], answers(artifact, paths)[:, :3], atol=1e-6)


def test_images_are_shown_alike_to_the_bit_beside_any_others(images: Path) -> None:
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(images.iterdir())])
    together = tta_views(VIEWS)[2].show(torch.from_numpy(pixels).permute(0, 3, 1, 2), list("abcde"), size=SIZE)
    alone = tta_views(VIEWS)[2].show(torch.from_numpy(pixels[3:4]).permute(0, 3, 1, 2), ["x"], size=SIZE)
    assert torch.equal(alone, together[3:4])


def test_the_same_data_in_another_place_trains_the_same_weights(
    colours: Path, tiny_plan: Callable[..., str], plain_runs: None, tmp_path: Path
) -> None:
    moved = shutil.copytree(colours, tmp_path / "moved" / "elsewhere")
    weights = []
    for number, place in enumerate((colours, moved)):
        augment = "augment: {crop: [0.5, 1.0]}"
        steps = (f"fit: {{size: 32, epochs: 1, views: 2, freeze: backbone, {augment}}}",
                 f"fit: {{size: 32, epochs: 1, {augment}}}")  # fmt: skip
        plan = tmp_path / f"{number}.yaml"
        plan.write_text(tiny_plan(*steps, data=f"folder: {place}"))
        run = assay.train(plan, run=tmp_path / f"run{number}", device="cpu")
        weights.append((run.folder / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
