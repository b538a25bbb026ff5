"""`assay explain`: what is written, said and shown in the report, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from assay import cli
from assay.labels.space import Head, LabelSpace
from assay.models.classifier import ModelSettings, build_classifier
from assay.report.explain_files import LETTER, wrapped
from assay.report.gradcam import grad_cam
from assay.report.layer_outputs import capture_layers
from assay.report.report import write_report
from assay.report.sections.feature_map import MapSettings
from factories import noise_batch, write_images
from test_report import rows, tags, train

FIT = "fit: {size: 64, epochs: 2, lr: 2e-3}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    return train(folder, f"folder: {colours}, split: {{val: 0.4}}", FIT)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def explain(*arguments: object) -> list[dict]:
    found = CliRunner().invoke(cli.app, ["explain", *map(str, arguments), "--json", "--device", "cpu"])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)["explanations"]


def refused(*arguments: object) -> str:
    found = CliRunner().invoke(cli.app, ["explain", *map(str, arguments), "--device", "cpu"])
    assert found.exit_code == 2, found.output
    return " ".join(found.output.split())


def page(run: Path) -> str:
    return write_report(run, settings=MapSettings(n=0)).read_text(encoding="utf-8")


def network_section(run: Path) -> str:
    return page(run).split('<div id="looks"')[1].split('<div id="calibration"')[0]


def test_a_image_of_the_run_is_seen_with_its_label(run: Path) -> None:
    (record,) = explain(run, "red/3.png", "red/3.png", "--class", "blue")
    (answered,) = record["answers"]
    assert answered["label"] == ["red"]
    assert record["part"] in {"training", "validation"}
    said = {one["class"]: one["reasons"] for one in record["grad-cam"]}
    assert said.keys() == {answered["given"][0], "red", "blue"}
    assert "answer" in said[answered["given"][0]]
    assert "label" in said["red"]
    assert "asked for" in said["blue"]
    assert len(record["features"]) == 256
    shown = [layer["name"] for layer in record["every layer"] if layer["default"]]
    assert [layer["name"] for layer in record["layers"]] == shown
    assert shown[:3] == ["conv_stem", "bn1", "bn1.act"]
    folder = Path(record["folder"])
    files = {
        record["file"],
        record["sheet"],
        record["pooled"]["file"],
        *(one["file"] for one in record["grad-cam"] + record["layers"]),
    }
    assert {path.name for path in folder.iterdir()} == {*files, "explanation.json"}
    for name in files:
        with Image.open(folder / name) as image:
            image.load()
            assert image.size == (64, 64) or name.startswith(("layer", "explanation", "pooled"))


def test_a_file_is_the_image_of_the_run_that_it_is_and_a_new_one_has_no_label(
    run: Path, colours: Path, tmp_path: Path
) -> None:
    (own,) = explain(run, colours / "red" / "3.png")
    assert own["image"] == "red/3.png"
    new = tmp_path / "new one.png"
    shutil.copy(colours / "red" / "3.png", new)
    (record,) = explain(run, new)
    assert record["answers"][0]["label"] is None
    assert record["part"] is None
    assert record["answers"][0]["likely"] == own["answers"][0]["likely"]


@pytest.mark.parametrize("name", ["<script>&amp;'\".png", "a\nb\u202e.png", "…" * 60 + ".png", "a b.png"])
def test_a_name_is_a_name(run: Path, colours: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(colours / "red" / "3.png", tmp_path / name)
    (record,) = explain(run, tmp_path / name, "--count", 1)
    folder = Path(record["folder"])
    assert re.fullmatch(r"[A-Za-z0-9-]+", folder.name)
    assert record["image"] == str(tmp_path / name)
    with Image.open(folder / "explanation.png") as sheet:
        assert sheet.width == 1500
    section = network_section(run)
    assert "<script>&amp;'" not in section
    assert "\u202e" not in section


def test_layers_are_chosen_by_name_or_number_and_another_place_takes_the_files(run: Path, tmp_path: Path) -> None:
    (record,) = explain(
        run, "red/3.png", "--layers", "blocks.1.0,bn1", "--cam", "blocks.1.0", "--out", tmp_path / "out"
    )
    assert [layer["name"] for layer in record["layers"]] == ["blocks.1.0", "bn1"]
    assert {cam["layer"] for cam in record["grad-cam"]} == {"blocks.1.0"}
    assert Path(record["folder"]).parent == tmp_path / "out"
    assert not (run / "explanations").exists()
    (record,) = explain(run, "red/3.png", "--count", 2)
    assert [layer["name"] for layer in record["layers"]] == ["bn1.act", "bn2.act"]
    (record,) = explain(run, "red/3.png", "--layers", "global_pool", "--layers", "backbone.bn1.act,head.1")
    assert [layer["name"] for layer in record["layers"]] == ["global_pool", "bn1.act", "head.1"]
    assert [layer["line"] for layer in record["layers"]][::2] == [
        "global_pool: a series of 256 values", "head.1: a series of 3 values"
    ]  # fmt: skip


def test_without_an_image_the_layers_are_listed(run: Path) -> None:
    found = CliRunner().invoke(cli.app, ["explain", str(run)])
    assert found.exit_code == 0, found.output
    assert re.search(r"bn1 +BatchNormAct2d before its activation +.*shown", found.output)
    listed = json.loads(CliRunner().invoke(cli.app, ["explain", str(run), "--json"]).stdout)["layers"]
    assert {"name": "head.1", "kind": "Linear", "shape": [3], "default": False} in listed


def test_a_second_explanation_replaces_the_first(run: Path) -> None:
    explain(run, "red/3.png")
    (record,) = explain(run, "red/3.png", "--count", 1)
    assert not (Path(record["folder"]) / "layer-2.png").exists()


def test_the_terminal_says_what_was_seen(run: Path) -> None:
    (record,) = explain(run, "red/3.png")
    found = CliRunner().invoke(cli.app, ["explain", str(run), "red/3.png", "--device", "cpu"])
    assert f"red/3.png ({record['part']})" in found.output
    assert record["answers"][0]["line"] in found.output
    for cam in record["grad-cam"]:
        where = "across" if cam["hottest"] else "no place speaks for it"
        assert re.search(rf"{cam['class']} \(.*\): .*{where}.*; layer {cam['layer']}", found.output)
    assert f"{record['folder']}/explanation.png" in found.output


def test_the_report_shows_explanations_and_before_any_two_of_its_choice(run: Path) -> None:
    own = network_section(run)
    assert own.count('<article class="explanation">') == 2
    assert "Any image can be looked at" in own
    explain(run, "red/3.png")
    section = network_section(run)
    assert section.count('<article class="explanation">') == 1
    assert "red/3.png" in section
    assert "Any image can be looked at" not in section


def test_explanations_with_an_earlier_model_are_left_out_of_the_report(run: Path) -> None:
    (record,) = explain(run, "red/3.png")
    path = Path(record["folder"]) / "explanation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": "another"}))
    assert "1 explanation with an earlier model is left out" in network_section(run)


def test_more_explanations_than_a_page_may_hold_are_counted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explain(run, "red/3.png", "red/4.png", "red/5.png")
    bytes_of_all = sum(3 * len(data) // 4 for data in re.findall(r'base64,([^"]+)', network_section(run)))
    monkeypatch.setattr("assay.report.sections.explanations.BUDGET", bytes_of_all // 2)
    section = network_section(run)
    shown = section.count('<article class="explanation">')
    assert 0 < shown < 3
    assert f"{3 - shown} older explanation" in section


def test_several_heads_with_tags_and_unknown_labels(plain_runs: None, tmp_path: Path) -> None:
    table = "file,colour,tags\n" + rows(
        lambda name, number: f"{name},{'' if number == 1 else 'warm;big' if number else '-'}"
    )
    heads = 'heads: {colour: {column: colour}, tags: {column: tags, separator: ";", none: "-"}}'
    run = train(tmp_path, f"{tags(tmp_path, table)}, {heads}", "probe: {size: 64}")
    tagged, untagged, unknown = explain(run, "red/2.png", "red/0.png", "red/1.png")
    assert [answered["head"] for answered in tagged["answers"]] == ["colour", "tags"]
    assert [record["answers"][1]["label"] for record in (tagged, untagged, unknown)] == [["big", "warm"], [], None]
    assert {cam["class"] for cam in tagged["grad-cam"] if cam["head"] == "tags"} >= {"big", "warm"}
    assert all(
        {cam["head"] for cam in record["grad-cam"]} == {"colour", "tags"} for record in (tagged, untagged, unknown)
    )
    assert "tags: answer" in tagged["answers"][1]["line"]
    assert '<article class="explanation">' in network_section(run)


def test_a_run_under_way_is_looked_at_with_its_newest_model(run: Path) -> None:
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "model")
    assert explain(run, "red/3.png")[0]["answers"][0]["label"] == ["red"]
    shutil.rmtree(run / "steps")
    assert "no step has made a model yet" in refused(run, "red/3.png")


def test_a_image_deleted_since_is_seen_as_the_cache_has_it(plain_runs: None, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", each=6)
    run = train(tmp_path, f"folder: {images}, split: {{val: 0.4}}", "probe: {size: 64}")
    (before,) = explain(run, "red/3.png")
    shutil.rmtree(images)
    assert explain(run, "red/3.png") == [before]
    assert network_section(run).count('<article class="explanation">') == 1
    shutil.rmtree(run / "cache")
    assert "red/3.png: " in refused(run, "red/3.png")
    shutil.rmtree(run / "explanations")
    assert '<article class="explanation">' not in network_section(run)


def test_what_cannot_be_looked_at_is_named_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    said = refused(run, "red/3.png", tmp_path / "broken.png", "none.png", tmp_path)
    assert "3 of 4 images cannot be looked at" in said
    assert all(name in said for name in ("broken.png", "none.png"))
    assert "no such class. The nearest of its 3 are blue" in refused(run, "red/3.png", "--class", "bleu")
    assert "did you mean blocks.2.0" in refused(run, "red/3.png", "--layers", "blocks.2.9")
    assert "gives no map" in refused(run, "red/3.png", "--cam", "global_pool")
    assert "is one network. Leave --member out." in refused(run, "red/3.png", "--member", 1)
    assert "is no run" in refused(tmp_path, "red/3.png")
    assert not (run / "explanations").exists()


ENSEMBLE = "ensemble: {members: [{steps: [{probe: {size: 64}}]}, {steps: [{probe: {size: 32}}]}]}"


def test_of_an_ensemble_one_network_is_explained(plain_runs: None, tmp_path: Path, colours: Path) -> None:
    run = train(tmp_path, f"folder: {colours}, split: {{val: 0.4}}", ENSEMBLE)
    said = refused(run, "red/3.png")
    assert "is an ensemble of 2 networks" in said
    assert "1: test_efficientnet at 64 × 64 for label (blue, green, red)" in said
    assert "--member 3: there is none such" in refused(run, "red/3.png", "--member", 3)
    (record,) = explain(run, "red/3.png", "--member", 2)
    assert record["network"] == "test_efficientnet at 32 × 32, network 2 of 2 of an ensemble"
    assert record["answers"][0]["label"] == ["red"]
    assert "network 2 of 2" in network_section(run)
    text = page(run)
    assert "An ensemble of 2 networks learnt" in text
    assert "<b>member 2 of 2, weight 0.50</b>" in text


def test_of_a_tree_a_node_is_explained_by_its_branch(plain_runs: None, tmp_path: Path, colours: Path) -> None:
    tree = "ensemble: {kind: tree, tree: [red, [green, blue]], members: [{steps: [{probe: {size: 64}}]}]}"
    run = train(tmp_path, f"folder: {colours}, split: {{val: 0.4}}", tree)
    assert "2: test_efficientnet at 64 × 64 for label (green, blue)" in refused(run, "red/3.png")
    labels = {
        (id_, member): explain(run, id_, "--member", member)[0]["answers"][0]["label"]
        for id_ in ("red/3.png", "blue/3.png")
        for member in (1, 2)
    }
    assert labels == {
        ("red/3.png", 1): ["red"],
        ("red/3.png", 2): None,  # it does not come to this question
        ("blue/3.png", 1): ["green or blue"],
        ("blue/3.png", 2): ["blue"],
    }
    shutil.rmtree(run / "explanations")
    text = page(run)
    assert "network 1 of 2 of a tree" in text
    assert "A tree of 2 networks learnt" in text
    assert "<b>tells apart green / blue</b>" in text
    assert "tells apart red / green or blue; its metric is for that alone" in text


def test_no_text_of_a_sheet_is_cut() -> None:
    text = "Small-flowered Cranesbill 98.7 % and a_name_without_any_blank_longer_than_its_line " * 2
    lines = wrapped(text, 230)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(map(len, lines)) <= 230 / (13 * LETTER)


@pytest.mark.parametrize(("size", "side"), [(224, 7), (64, 8), (32, 8)])
def test_grad_cam_takes_the_last_layer_whose_map_is_fine_enough(size: int, side: int) -> None:
    """Of a network of stride 32 the last map is 7 x 7 at 224 pixels, 2 x 2 at 64 and 1 x 1 at 32."""
    head = LabelSpace((Head("kind", ("a", "b")),))
    settings = ModelSettings(backbone="resnet18", weights="none")
    classifier = build_classifier(settings, head, seed=0, base=Path(), size=size).eval()
    heat = grad_cam(capture_layers(classifier, noise_batch(1, size)[0]), 0, size=size)
    assert heat.side == (side, side)
