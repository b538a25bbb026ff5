"""tune_views, and models that average over mirror images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from assay import cli
from assay.errors import PlanError
from assay.export.onnx import Exported
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.models.classifier import FLIPS, Flips, from_spec, plain_views, spec
from assay.models.combiners import MeanCombiner
from assay.models.decision_rule import DecisionRule
from assay.models.ensemble import Ensemble, load_model, member_of
from assay.models.trained_model import TrainedModel
from assay.predictions.predict import Predictions
from assay.predictions.predictor import Predictor
from assay.predictions.tta import Flips as FlipViews
from assay.report.layer_outputs import capture_layers
from assay.steps import tune_views
from assay.steps.tune_views import TuneViewsSettings
from assay.training.devices import Hardware
from fake_steps import after_fit, new_classifier, samples_of

SPACE = LabelSpace((Head("season", ("summer", "winter", "rain")),))
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def mirrored(flip: Flips) -> TrainedModel:
    classifier = new_classifier(SPACE)
    classifier.flip = flip
    return TrainedModel(classifier, SPACE, 32, 32, Resize(), DecisionRule.plain(SPACE))


@pytest.mark.parametrize("flip", FLIPS)
def test_features_are_the_mean_over_mirror_images_but_in_training(flip: Flips) -> None:
    classifier = mirrored(flip).classifier
    with torch.inference_mode():
        averaged, logits = classifier.features(IMAGES), classifier(IMAGES)
        with plain_views([classifier]):
            views = [IMAGES.flip(axes) for axes in FLIPS[flip]]
            torch.testing.assert_close(averaged, torch.stack([classifier.features(view) for view in views]).mean(0))
            torch.testing.assert_close(logits, torch.stack([classifier(view) for view in views]).mean(0))
        assert classifier.flip == flip
        classifier.train()
        trained = classifier.features(IMAGES)
        classifier.flip = "none"
        torch.testing.assert_close(trained, classifier.features(IMAGES))


def test_views_are_part_of_a_model_in_its_folder_and_of_what_is_exported(tmp_path: Path) -> None:
    saved = mirrored("both")
    assert from_spec(spec(saved.classifier)).flip == "both"
    assert "flip" not in spec(new_classifier(SPACE))
    saved.save(tmp_path)
    exported = Exported(TrainedModel.load(tmp_path)).eval()
    with torch.inference_mode():
        probabilities, logits = exported(IMAGES)
        torch.testing.assert_close(exported(IMAGES.flip(2, 3))[0], probabilities)
        torch.testing.assert_close(logits, saved.classifier(torch.round(IMAGES * 255) / 255))
    features = capture_layers(saved.classifier, IMAGES[0]).features  # of the image as it is
    with plain_views([saved.classifier]):
        torch.testing.assert_close(features, saved.classifier.features(IMAGES[:1])[0])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """An image and its mirror image."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    paths = [tmp_path / "image.png", tmp_path / "mirrored.png"]
    for path, one in zip(paths, (pixels, pixels[:, ::-1]), strict=True):
        Image.fromarray(one).save(path)
    return paths


def logits_of(model: Any, files: list[Path], tta: FlipViews | None = None) -> np.ndarray:
    hardware = tuple(Hardware("cpu") for _ in model.networks)
    (chunk,) = Predictor(model, hardware, "").stream([(str(path), path) for path in files], tta=tta)
    return chunk.logits


def test_an_image_and_its_mirror_image_are_predicted_alike_and_tta_replaces_the_views(files: list[Path]) -> None:
    plain, averaged = logits_of(mirrored("none"), files), logits_of(mirrored("horizontal"), files)
    assert abs(plain[0] - plain[1]).max() > 1e-4
    np.testing.assert_allclose(averaged, [plain.mean(axis=0)] * 2, atol=1e-5)
    both = FlipViews(flip="both", mean="logits")
    np.testing.assert_allclose(
        logits_of(mirrored("horizontal"), files, both), logits_of(mirrored("none"), files, both), atol=1e-5
    )


def test_predict_notes_what_views_cost(files: list[Path], tmp_path: Path) -> None:
    for flip, expected in (("both", True), ("none", False)):
        mirrored(flip).save(tmp_path / "run/model")
        command = ["predict", str(tmp_path / "run"), str(files[0]), "--out", str(tmp_path / "out.csv")]
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 0
        assert ("averages over 4 views of an image: this takes 4 times as long" in result.stdout) == expected


def test_members_of_an_ensemble_keep_their_views(files: list[Path], tmp_path: Path) -> None:
    for flip in ("none", "horizontal"):
        mirrored(flip).save(tmp_path / flip)
    members = tuple(member_of(tmp_path / flip) for flip in ("none", "horizontal"))
    Ensemble(SPACE, members, MeanCombiner("logits", (0.0, 1.0)), DecisionRule.plain(SPACE)).save(tmp_path / "both")
    both = logits_of(load_model(tmp_path / "both"), files)
    assert abs(both[0] - both[1]).max() < 1e-5


def chosen(folder: Path, monkeypatch: pytest.MonkeyPatch, right: float) -> tuple[Any, Path, list[str]]:
    """The result of a step after a model that is right on half of 200 images, with views on a share of them."""
    codes = np.random.default_rng(0).integers(0, 3, 200)
    samples = samples_of([np.append(codes, 0)], ["val"] * 200 + ["train"], SPACE)

    def logits(share: float) -> np.ndarray:
        given = np.where(np.arange(200) < share * 200, codes, (codes + 1) % 3)
        return 4 * np.eye(3, dtype=np.float32)[given]

    ids = samples.part("val").ids
    state, context = after_fit(folder, samples, ids, logits(0.5))
    answers = Predictions.of(ids, SPACE, logits(right), model="")
    monkeypatch.setattr(tune_views, "predict_validation", lambda *given, **named: answers)
    result = tune_views.run(TuneViewsSettings(flip="both"), state, context)
    assert state.model is not None
    return result, state.model, context.progress.lines  # type: ignore[attr-defined]


def test_views_that_gain_beyond_chance_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, before, lines = chosen(tmp_path, monkeypatch, 0.6)
    assert result.model != before
    assert TrainedModel.load(result.model).classifier.flip == "both"
    assert result.details["kept"]
    assert "kept, and predicting takes 4 times as long" in lines[-1]
    assert (result.model / "predictions.parquet").exists()


@pytest.mark.parametrize("right", [0.4, 0.5, 0.505])
def test_views_that_do_not_leave_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: float
) -> None:
    result, before, lines = chosen(tmp_path, monkeypatch, right)
    assert (result.model, result.details["kept"]) == (before, False)
    assert TrainedModel.load(before).classifier.flip == "none"
    assert "not kept" in lines[-1]


def test_a_model_of_several_networks_is_refused(tmp_path: Path) -> None:
    samples = samples_of([np.array([0, 1, 2])], ["val", "val", "train"], SPACE)
    state, context = after_fit(tmp_path, samples, samples.part("val").ids, np.zeros((2, 3), np.float32))
    assert state.model is not None
    several = Ensemble(SPACE, (member_of(state.model),), MeanCombiner("logits", (1.0,)), DecisionRule.plain(SPACE))
    predictions = (state.model / "predictions.parquet").read_bytes()
    several.save(tmp_path / "several")
    (tmp_path / "several/predictions.parquet").write_bytes(predictions)
    given = type(state)(samples, tmp_path / "several", "key")
    with pytest.raises(PlanError, match="into the steps of the members"):
        tune_views.run(TuneViewsSettings(), given, context)
