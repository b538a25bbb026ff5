"""What leaves a run: an ONNX file that answers as the model does, and a card that says what it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import assay
from assay import cli
from assay.errors import ModelError
from assay.export import onnx
from assay.export.model_card import card
from assay.export.onnx import Parity, examples, export_onnx
from assay.images.decode import Resize
from assay.labels.edits import Edit
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.models.classifier import HeadSettings, ModelSettings, build_classifier
from assay.models.decision_rule import DecisionRule
from assay.models.heads import KernelMachine, NearestMean, joined
from assay.models.trained_model import TrainedModel

SPACE = LabelSpace((Head("kind", ("a", "b", "c")), Head("tags", ("x", "y"), "multilabel")))
MODEL = ModelSettings(backbone="test_efficientnet", weights="none", head=HeadSettings(hidden=(8,), dropout=0.5))


def saved(space: LabelSpace = SPACE) -> TrainedModel:
    plain = DecisionRule.plain(space)
    deciding = DecisionRule(plain.shift + 0.3, plain.temperature * 2, plain.thresholds * 0.5)
    return TrainedModel(build_classifier(MODEL, space, seed=0, base=Path(), size=32), space, 32, 40, Resize(), deciding)


def with_heads_of_means_and_kernels() -> TrainedModel:
    model = saved()
    width = model.classifier.final.in_features
    layers = [KernelMachine(width, 3, support=6), NearestMean(width, 2, paired=True)]
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        for name, value in layer.state_dict().items():
            drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(nn.functional.normalize(drawn, dim=1) if name == "means" else drawn)
    model.classifier.replace_last(joined(layers))
    return model


@pytest.fixture(scope="module")
def finished(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> assay.Run:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "plan.yaml").write_text(
        f"data: {{folder: {colours}}}\nmodel: {{backbone: test_efficientnet, weights: none}}\n"
        "hardware: {precision: fp32, layout: contiguous}\nsteps: [{probe: {size: 32}}]\n"
    )
    return assay.train(folder / "plan.yaml", run=folder / "run", device="cpu")


def test_heads_of_means_and_kernels_are_exported_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).random((5, 3, 32, 32), dtype=np.float32)
    assert export_onnx(with_heads_of_means_and_kernels(), tmp_path / "model.onnx", images).largest < 1e-5


def test_the_file_answers_as_the_model_does_for_any_number_of_images(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = saved()
    images = np.random.default_rng(0).random((7, 3, 32, 32), dtype=np.float32)
    parity = export_onnx(model, tmp_path / "model.onnx", images)
    assert (parity.n, parity.largest < 1e-5) == (7, True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # no data beside it
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    with torch.inference_mode():
        raw = model.classifier(torch.from_numpy(images)).numpy()
    logits = (raw - 0.3) / 2
    for count in (1, 5):
        probabilities, told = session.run(None, {"images": images[:count]})
        assert np.allclose(told, logits[:count], atol=1e-5)
        assert np.allclose(probabilities[:, :3].sum(axis=1), 1, atol=1e-5)
        assert np.allclose(probabilities[:, 3:], 1 / (1 + np.exp(-logits[:count, 3:])), atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    heads = json.loads(about["heads"])
    assert [(head["name"], head["classes"], head["columns"]) for head in heads] == [
        ("kind", ["a", "b", "c"], [0, 3]),
        ("tags", ["x", "y"], [3, 5]),
    ]
    assert (heads[0]["thresholds"], heads[1]["thresholds"], about["size"]) == (None, [0.25, 0.25], "32")


def test_a_file_that_answers_otherwise_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "_write", lambda module, path, images, about: path.write_bytes(b"something"))
    monkeypatch.setattr(onnx, "_parity", lambda module, path, images: Parity(0.01, 2))
    with pytest.raises(ModelError, match=r"not written: .* 1.0e-02, n = 2; 1e-04 is allowed"):
        export_onnx(saved(), tmp_path / "model.onnx", np.zeros((2, 3, 32, 32), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelError, match=r"exporting needs the package onnxscript\. Install .*assay-vision\[onnx\]"):
        export_onnx(saved(), tmp_path / "model.onnx", np.zeros((2, 3, 32, 32), np.float32))


def test_images_of_validation_are_shown_or_noise_where_they_are_gone(finished: assay.Run, tmp_path: Path) -> None:
    model = finished.artifact.saved
    found, what = examples(model, finished.folder, count=4)
    assert (found.shape, what, 0 <= found.min() <= found.max() <= 1) == ((4, 3, 32, 32), "validation images", True)
    samples = Samples.read(finished.folder / "samples.parquet")
    gone = Samples(samples.table, samples.space, tmp_path / "gone")
    gone.write(tmp_path / "samples.parquet")
    found, what = examples(model, tmp_path, count=4)
    assert (found.shape, what.startswith("images of noise")) == ((4, 3, 32, 32), True)


def test_the_command_writes_the_card_and_with_onnx_the_file(finished: assay.Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = CliRunner().invoke(cli.app, ["export", str(finished.folder), "--onnx", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["n"], told["of"], told["largest difference"] < 1e-4) == (9, "validation images", True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["card.md", "model.onnx"]


def test_the_card_says_what_it_is_and_what_was_changed(finished: assay.Run, tmp_path: Path) -> None:
    text = card(finished.folder, finished.artifact.saved)
    assert "- **label**: one of blue, green, red" in text
    assert "36 training, 9 validation and 0 test images." in text
    assert "| this model, validation | " in text
    assert "None: it was trained on the labels as they were given." in text
    for heading in ("What it answers", "How well it does", "By class", "Limits", "How it was made"):
        assert f"\n## {heading}\n" in text
    for name in ("metrics.json", "plan.yaml", "environment.json"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    edit = Edit(id="a", head="<b>|_", action="unset", old="x", step="01-clean_labels")
    Ledger.read(tmp_path / "ledger.csv").append([edit, edit])
    assert r"| 01-clean_labels | unset | \<b\>\|\_ | 2 |" in card(tmp_path, finished.artifact.saved)
