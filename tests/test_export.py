"""What leaves a run: an ONNX file that answers as the model does, and a card that says what it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import assay
from assay import cli
from assay.errors import DataError, ModelError
from assay.export import compact, int8, onnx, onnx_program
from assay.export.model_card import card
from assay.export.onnx import ByteResize, Parity, example_files, export_onnx
from assay.images import geometry
from assay.images.decode import Resize, read_square
from assay.labels.edits import Edit
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.models.classifier import HeadSettings, ModelSettings, build_classifier
from assay.models.decision_rule import DecisionRule
from assay.models.heads import KernelMachine, NearestMean, joined
from assay.models.trained_model import TrainedModel
from assay.predictions.inference import PLAIN
from assay.predictions.predict import Predictions
from assay.predictions.predictor import Predictor
from assay.training.devices import Hardware

SPACE = LabelSpace((Head("kind", ("a", "b", "c")), Head("tags", ("x", "y"), "multilabel")))
MODEL = ModelSettings(
    backbone="test_efficientnet", weights="none", head=HeadSettings(hidden=(8,), dropout=0.5), features="all_stages"
)


def saved(space: LabelSpace = SPACE, *, side: int = 40, resize: Resize | None = None) -> TrainedModel:
    plain = DecisionRule.plain(space)
    deciding = DecisionRule(plain.shift + 0.3, plain.temperature * 2, plain.thresholds * 0.5)
    classifier = build_classifier(MODEL, space, seed=0, base=Path(), size=32).eval()
    return TrainedModel(classifier, space, 32, side, resize or Resize(), deciding)


def predictor_of(model: TrainedModel) -> Predictor:
    return Predictor(model, (Hardware(),), "model")


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


def image_files(folder: Path) -> list[Path]:
    """Write images of every size, shape and kind of colour that is read."""
    folder.mkdir()
    random = np.random.default_rng(0)

    def image(width: int, height: int, mode: str = "RGB") -> Image.Image:
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)

    for width, height in ((400, 300), (301, 97), (97, 301), (7, 5), (1, 1), (32, 32), (640, 480)):
        image(width, height).save(folder / f"{width}x{height}.jpg")
    image(60, 40, "L").save(folder / "grey.png")
    image(60, 40, "CMYK").save(folder / "cmyk.jpg")
    image(60, 40, "P").save(folder / "palette.gif")
    alpha = image(50, 70)
    alpha.putalpha(image(50, 70, "L"))
    alpha.save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image(500, 300).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(random.integers(0, 4096, (40, 50), dtype=np.uint16)).save(folder / "deep.png")
    return sorted(folder.iterdir())


RESIZES = [
    *(Resize(policy=policy) for policy in ("squash", "crop", "pad")),
    Resize(policy="pad", fill=(9, 120, 200), levels=(0, 4095)),
    *(Resize(policy=policy, centre_crop=(20, 28)) for policy in ("squash", "crop", "pad")),
]


@pytest.mark.parametrize("side", [32, 40, 25, 64])
@pytest.mark.parametrize("resize", RESIZES, ids=str)
def test_the_program_prepares_an_image_as_predict_does(resize: Resize, side: int, tmp_path: Path) -> None:
    model = saved(side=side, resize=resize)
    preparation = json.loads(onnx.metadata(model)["preparation"])
    inside = ByteResize(side, 32) if side != 32 else nn.Identity()
    for path in image_files(tmp_path / "images"):
        pixels = torch.from_numpy(read_square(path, side, settings=resize, size=32)).permute(2, 0, 1)[None]
        prepared = torch.from_numpy(onnx_program.prepare(path, preparation))[None]
        assert torch.equal(inside(torch.round(prepared * 255)) / 255, PLAIN.show(pixels, [""], size=32)), path.name


@pytest.mark.parametrize(("side", "size"), [(160, 128), (281, 224), (50, 64), (1, 32), (200, 64)])
def test_the_resize_of_the_graph_is_that_of_the_cache_to_the_bit(side: int, size: int) -> None:
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ByteResize(side, size)(pixels.float()), geometry.plain(pixels, size).float())


def test_heads_of_means_and_kernels_are_exported_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    files = image_files(tmp_path / "images")
    assert export_onnx(predictor_of(with_heads_of_means_and_kernels()), tmp_path / "model.onnx", files).largest < 1e-5


ALONE = """
import runpy, sys
for name in ("assay", "torch", "torchvision", "timm"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_image_files_are_predicted_as_by_the_model_with_onnxruntime_and_pillow_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    predictor, files = predictor_of(saved(resize=Resize(policy="crop"))), image_files(tmp_path / "images")
    parity = export_onnx(predictor, tmp_path / "out" / "model.onnx", files)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.onnx", "predict_onnx.py"]
    command = [sys.executable, "-c", ALONE, str(tmp_path / "out" / "predict_onnx.py")]
    command += [str(tmp_path / "out" / "model.onnx"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={})
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = Predictions.joined(list(predictor.stream((str(file), file) for file in files)))
    assert [row["image"] for row in rows] == expected.ids
    given = np.array([[*row["kind"].values(), *row["tags"].values()] for row in rows])
    largest = float(np.abs(given - expected.probabilities).max())
    assert largest < 1e-5
    assert (parity.n, parity.largest) == (len(files), pytest.approx(largest, abs=1e-7))


def test_the_network_takes_any_number_of_images_and_says_how(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = saved()
    export_onnx(predictor_of(model), tmp_path / "model.onnx", image_files(tmp_path / "images"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = np.random.default_rng(0).random((5, 3, 40, 40), dtype=np.float32)
    for count in (1, 5):
        probabilities, logits = session.run(None, {"images": images[:count]})
        assert np.allclose(probabilities[:, :3].sum(axis=1), 1, atol=1e-5)
        assert np.allclose(probabilities[:, 3:], 1 / (1 + np.exp(-logits[:, 3:])), atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    heads = json.loads(about["heads"])
    assert [(head["name"], head["classes"], head["columns"]) for head in heads] == [
        ("kind", ["a", "b", "c"], [0, 3]),
        ("tags", ["x", "y"], [3, 5]),
    ]
    assert (heads[0]["thresholds"], heads[1]["thresholds"]) == (None, [0.25, 0.25])
    preparation = json.loads(about["preparation"])
    assert (preparation["policy"], preparation["side"], preparation["size"]) == ("squash", 40, 32)
    assert "BILINEAR" in preparation["about"]["filter"]
    assert about["input"].startswith("float32 (N, 3, 40, 40)")


def test_a_file_that_answers_otherwise_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "_write", lambda module, path, images, about: path.write_bytes(b"something"))
    monkeypatch.setattr(onnx, "_parity", lambda predictor, path, files: Parity(0.01, 2))
    with pytest.raises(ModelError, match=r"not written: .* 1.0e-02, n = 2; 1e-04 is allowed"):
        export_onnx(predictor_of(saved()), tmp_path / "model.onnx", [])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelError, match=r"exporting needs the package onnxscript\. Install .*assay-vision\[onnx\]"):
        export_onnx(predictor_of(saved()), tmp_path / "model.onnx", [])


def test_files_of_validation_are_compared_on_or_noise_where_they_are_gone(finished: assay.Run, tmp_path: Path) -> None:
    with example_files(finished.folder, count=4) as (files, what):
        assert (len(files), what) == (4, "validation images, read from their files")
    samples = Samples.read(finished.folder / "samples.parquet")
    gone = Samples(samples.table, samples.space, tmp_path / "gone")
    gone.write(tmp_path / "samples.parquet")
    with example_files(tmp_path, count=4) as (files, what):
        assert (len(files), what.startswith("images of noise")) == (4, True)
        assert all(path.is_file() for path in files)


def test_the_command_writes_the_card_and_the_files_of_the_network(
    finished: assay.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(compact, "MOST_LOST", 1.0)  # of random weights int8 keeps little
    done = CliRunner().invoke(cli.app, ["export", str(finished.folder), "--int8", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["n"], told["of"], told["largest difference"] < 1e-4) == (
        9,
        "validation images, read from their files",
        True,
    )
    names = ["card.md", "model.int8.onnx", "model.onnx", "predict_onnx.py"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    (held,) = told["compact"]
    assert (held["file"], held["change"]["n"], 0 < held["mean"] <= held["largest"]) == ("model.int8.onnx", 9, True)
    assert "| `model.int8.onnx` | " in (tmp_path / "card.md").read_text()
    files = Samples.read(finished.folder / "samples.parquet").paths[:1]
    assert onnx_program.predict(tmp_path / "model.int8.onnx", files)[1][0]["classes"] == ["blue", "green", "red"]


def test_int8_keeps_a_layer_in_float_whose_weights_it_would_round_away(tmp_path: Path) -> None:
    from_onnx = pytest.importorskip("onnx")
    make, array = from_onnx.helper, from_onnx.numpy_helper.from_array
    first = np.full((4, 3, 1, 1), [[[127.0]], [[0.4]], [[0.3]]], np.float32)  # steps of 1: the others become 0
    second = np.eye(4, dtype=np.float32)[..., None, None]
    nodes = [
        make.make_node("Conv", ["images", "first"], ["a"], "one"),
        make.make_node("Relu", ["a"], ["b"], "two"),
        make.make_node("Conv", ["b", "second"], ["c"], "three"),
        make.make_node("Flatten", ["c"], ["logits"], "four"),
    ]
    ends = [
        make.make_tensor_value_info("images", 1, ["n", 3, 2, 2]),
        make.make_tensor_value_info("logits", 1, ["n", 16]),
    ]
    graph = make.make_graph(nodes, "g", ends[:1], ends[1:], [array(first, "first"), array(second, "second")])
    from_onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)]), tmp_path / "model.onnx")
    images = np.random.default_rng(0).random((40, 3, 2, 2), dtype=np.float32)
    images[:, 0] = 0  # of the large weight nothing comes
    files = int8.write_int8(tmp_path / "model.onnx", images, tmp_path / "int8.onnx")
    next(files)
    written = from_onnx.load(tmp_path / "int8.onnx")
    inputs = {node.name: node.input for node in written.graph.node}
    assert (inputs["one"][0], inputs["three"][0] != "b") == ("images", True)
    expected = np.tensordot(images, first[:, :, 0, 0], (1, 1)).transpose(0, 3, 1, 2).reshape(40, 16)
    assert np.abs(int8._outputs(written, images, ["logits"])[0] - expected).max() < 0.01
    assert len(list(files)) < len(int8.IN_FLOAT)  # one for each larger share
    assert [one.name for one in tmp_path.iterdir() if one.is_dir()] == []


def fake_format(*answers: np.ndarray) -> compact.Format:
    """Files whose networks give all images these probabilities."""

    def write(network: Path, images: np.ndarray, path: Path) -> Iterator[None]:
        for number in range(len(answers)):
            path.write_bytes(bytes([number]))
            yield

    return compact.Format(
        "model.fake",
        write,
        lambda path: partial(lambda number, images: np.tile(answers[number], (len(images), 1)), path.read_bytes()[0]),
        {"numpy": "pip install numpy", "no_such_package": "pip install 'assay-vision[fake]'"},
    )


def test_a_compact_file_that_loses_too_much_is_not_left_behind(
    finished: assay.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_format(np.array([0.0, 0.0, 1.0], np.float32))
    monkeypatch.setitem(compact.FORMATS, "fake", replace(fake, packages={}))
    samples = Samples.read(finished.folder / "samples.parquet")
    with pytest.raises(ModelError, match=r"model.fake: not written: it loses more than 0.005 .*accuracy -0\..*n = 9"):
        compact.export_compact(finished.artifact, "fake", tmp_path / "model.onnx", samples, metric="nll")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no validation image has a known label"):
        compact.export_compact(finished.artifact, "fake", tmp_path / "model.onnx", samples.part("train"), metric=None)


def test_the_first_file_that_loses_little_is_kept(
    finished: assay.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, changes = compact._held, iter([-0.5, 0.0, 0.5])

    def with_change(*arguments: Any) -> compact.Held:
        of = held(*arguments)
        return replace(of, change=replace(of.change, value=next(changes)))

    monkeypatch.setattr(compact, "_held", with_change)
    fake = fake_format(*np.eye(3, dtype=np.float32))
    monkeypatch.setitem(compact.FORMATS, "fake", replace(fake, packages={}))
    samples = Samples.read(finished.folder / "samples.parquet")
    chosen = compact.export_compact(finished.artifact, "fake", tmp_path / "model.onnx", samples, metric=None)
    assert (chosen.attempts, (tmp_path / "model.fake").read_bytes()) == (2, b"\x01")
    assert str(chosen).endswith("; of 2 that were tried, the last")


def test_a_package_that_a_format_needs_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(compact.FORMATS, "fake", fake_format(np.zeros(3)))
    for name, package, line in (
        ("fake", "no_such_package", r"pip install 'assay-vision\[fake\]'"),
        ("openvino", "openvino", r"pip install 'assay-vision\[openvino\]'"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ModelError, match=f"--{name} needs the package {package}. Install it: {line}"):
            compact.require_format(name)


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


def test_the_folder_for_docker_has_all_that_its_dockerfile_takes_and_a_command_that_exists(
    finished: assay.Run, tmp_path: Path, colours: Path
) -> None:
    words = ["export", str(finished.folder), "--docker", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    folder = tmp_path / "out" / "docker"
    lines = (folder / "Dockerfile").read_text().splitlines()
    entry = next(json.loads(line.partition(" ")[2]) for line in lines if line.startswith("ENTRYPOINT"))
    assert CliRunner().invoke(cli.app, [*entry[1:], "--help"]).exit_code == 0
    (copied,) = (json.loads(line.partition(" ")[2]) for line in lines if line.startswith("COPY ["))
    assert copied == [entry[2], entry[2]]
    assert (folder / "requirements.txt").is_file()
    answers = [Predictor.load(one, device="cpu") for one in (folder / entry[2], finished.folder / "model")]
    images = [("a", colours / "red" / "0.png")]
    one, other = (next(iter(predictor.stream(images))).probabilities for predictor in answers)
    assert np.allclose(one, other, atol=1e-6)  # memory layouts are chosen by time
    pinned = [line for line in lines if "torch==" in line]
    assert pinned
    assert "+" not in pinned[0].partition("torch==")[2].split()[0]
