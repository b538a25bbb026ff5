"""assay audit: findings, what is kept of them, and the files that training takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from assay.cli import app
from assay.errors import DataError, RunError
from assay.experiments.audit import STAGES, StageResult, audit
from assay.experiments.audit_inputs import AuditInputs, read_data
from assay.experiments.findings import Audit
from assay.experiments.label_findings import outliers, overlapping_classes
from assay.files import RunFolder
from assay.labels.space import Head, LabelSpace
from assay.labels.split import split
from assay.progress import NoProgress
from assay.repair.expectation import judge_by_folds, learning_curves, next_gain
from assay.repair.nearest import nearest
from assay.repair.neighbours import neighbour_posterior, posterior
from assay.training.fold_linear import Components
from factories import read_folder, write_images, write_noise

SMALL = ("model.backbone=test_efficientnet", "model.weights=none")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audit]:
    """An audit of 36 images of three colours, with a copy of one among them under another label."""
    folder = tmp_path_factory.mktemp("audited")
    data = write_images(folder / "colours", each=12)
    shutil.copy(data / "red" / "0.png", data / "blue" / "copy.png")
    return folder / "audit", audit(data, folder / "audit", changes=SMALL)


def test_an_audit_is_read_back_as_it_was_written(audited: tuple[Path, Audit]) -> None:
    folder, found = audited
    again = Audit.read(folder)
    assert again.to_json() == found.to_json()
    assert again.samples.fingerprint() == found.samples.fingerprint()


def test_files_of_the_same_bytes_are_found_and_grouped(audited: tuple[Path, Audit]) -> None:
    folder, found = audited
    (copies,) = found.findings["exact_duplicates"]
    assert set(copies.images) == {"red/0.png", "blue/copy.png"}
    assert [edit.action for edit in copies.edits] == ["drop"]
    assert (folder / "groups.csv").read_text().splitlines()[0] == "image,group"
    assert set(found.groups()) == {"red/0.png", "blue/copy.png"}


def test_quality_names_small_classes_and_cues_are_in_the_audit(audited: tuple[Path, Audit]) -> None:
    _, result = audited
    kinds = ("dark", "bright", "blurred", "low_information", "odd_aspect", "odd_size", "greyscale", "similar_names")
    assert {kind: len(result.findings[kind]) for kind in kinds} == dict.fromkeys(kinds, 0)
    assert [one.text for one in result.findings["small_classes"]] == [
        "'green' has 12 images",
        "'red' has 12 images",
        "'blue' has 13 images",
    ]
    assert not result.findings["shortcuts"]  # the colour is the subject
    assert ("the mean colour", False) in {(one["cue"], one["named"]) for one in result.shortcuts}


def test_a_pair_of_classes_taken_for_each_other_is_found() -> None:
    head = Head("label", ("a", "b", "c"))
    codes = np.repeat([0, 1, 2], 40)
    probabilities = np.eye(3)[codes] * 0.8 + 0.1
    probabilities[:20] = [0.3, 0.6, 0.1]
    (pair,) = overlapping_classes(head, codes, probabilities)
    assert pair.classes == (0, 1)
    assert pair.share.value == pytest.approx(20 / 80)
    assert set(pair.rows.tolist()) == set(range(20))


def test_an_image_far_from_all_others_is_an_outlier() -> None:
    distances = 1 + 0.01 * np.random.default_rng(0).normal(size=(100, 5))
    distances[7] = 2
    rows, scores = outliers(distances)
    assert rows.tolist() == [7]
    assert scores[0] > 3


def test_known_neighbours_give_the_probabilities_that_a_search_gives() -> None:
    generator = np.random.default_rng(0)
    head, codes = Head("label", ("a", "b")), np.repeat([0, 1, -1], [30, 30, 6])
    features = generator.normal(size=(66, 8)).astype(np.float32)
    fold = generator.integers(0, 5, 66)
    known = codes >= 0
    vectors = (features - features[known].mean(axis=0)) / features[known].std(axis=0)
    rows, cosines = nearest(vectors, 65)
    local = neighbour_posterior(head, codes, rows, cosines, fold=fold, neighbours=10)
    searched = posterior(head, codes, features, neighbours=10, fold=fold)
    assert local[known] == pytest.approx(searched[known], abs=1e-4)


@pytest.mark.parametrize(
    ("values", "gain"),
    [([0.5, 0.6, 0.65], 0.025), ([0.5, 0.6, 0.8], 0.2), ([0.5, 0.6, 0.55], 0.0), ([0.6, 0.5, 0.55], 0.05)],
)
def test_a_doubling_gains_the_share_of_the_one_before(values: list[float], gain: float) -> None:
    assert next_gain(np.array([values]))[0] == pytest.approx(gain)


def test_more_labels_are_expected_to_bring_what_they_bring() -> None:
    generator = np.random.default_rng(0)
    head, codes = Head("label", ("a", "b")), generator.integers(0, 2, 600)
    features = (generator.normal(size=(600, 40)) + codes[:, None] * 0.25).astype(np.float32)
    space, fold, weights = LabelSpace((head,)), np.arange(600) % 5, np.ones((600, 1), np.float32)
    components = Components.of(features, 40)
    judge = judge_by_folds(space, components, [codes], weights, fold)
    (curve,) = learning_curves(space, components, [codes], weights, fold, judge=judge, seed=0)
    assert [point.images for point in curve.points] == [120, 240, 480]
    assert curve.points[0].metric.value < curve.points[2].metric.value
    assert curve.twice is not None
    assert curve.points[2].metric.value <= curve.twice.metric.value <= 1


def small_audit(source: Path, folder: Path) -> Audit:
    return audit(source, folder, changes=SMALL)


def test_images_without_any_label_are_audited(tmp_path: Path) -> None:
    write_noise([tmp_path / "loose" / f"{number}.png" for number in range(6)], height=20, width=20)
    shutil.copy(tmp_path / "loose" / "0.png", tmp_path / "loose" / "copy.png")
    found = small_audit(tmp_path / "loose", tmp_path / "audit")
    assert len(found.findings["exact_duplicates"]) == 1
    assert not found.edits()
    assert found.expectation is None


def test_images_of_one_class_are_audited(tmp_path: Path) -> None:
    data = write_images(tmp_path / "colours", each=6)
    for name in ("green", "blue"):
        shutil.rmtree(data / name)
    found = small_audit(data, tmp_path / "audit")
    assert "suspects" not in found.findings
    assert [one.head for one in found.findings["small_classes"]] == ["label"]


@pytest.mark.parametrize("heads", ["{t: {column: tags, separator: ;}}", "{one: {column: a}, two: {column: b}}"])
def test_tags_and_several_heads_are_audited(heads: str, tmp_path: Path) -> None:
    write_noise([tmp_path / f"{number}.png" for number in range(24)], height=16, width=16)
    lines = [
        f"{number}.png,{'x;y' if number % 3 else 'x'},{'pq'[number % 2]},{'rs'[number % 2]}" for number in range(24)
    ]
    (tmp_path / "table.csv").write_text("\n".join(["image,tags,a,b", *lines]))
    (tmp_path / "data.yaml").write_text(f"data: {{table: table.csv, image: image, heads: {heads}}}")
    found = small_audit(tmp_path / "data.yaml", tmp_path / "audit")
    assert found.expectation is not None
    assert {curve["head"] for curve in found.expectation["heads"]} <= {head.name for head in found.samples.space}
    assert Audit.read(tmp_path / "audit").to_json() == found.to_json()


def test_a_killed_audit_keeps_the_stages_that_were_done(
    audited: tuple[Path, Audit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = audited
    shutil.copytree(folder, tmp_path / "audit")
    data = folder.parent / "colours"
    for name in ("audit.json", "stages/labels.json"):
        (tmp_path / "audit" / name).unlink()
    run = []
    monkeypatch.setattr(
        "assay.experiments.audit.STAGES", {name: partial(noted, run, name, one) for name, one in STAGES.items()}
    )
    again = small_audit(data, tmp_path / "audit")
    assert run == ["labels"]
    assert again.counts() == found.counts()


def noted(run: list[str], name: str, stage: Callable[[AuditInputs], StageResult], inputs: AuditInputs) -> StageResult:
    run.append(name)
    return stage(inputs)


def test_features_that_were_computed_before_a_kill_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.experiments.audit_inputs.CHUNK", 8)
    data = read_data(write_images(tmp_path / "colours", each=8), changes=SMALL)
    inputs = AuditInputs.of(data, tmp_path / "stages", device="cpu", progress=NoProgress())
    whole = inputs.features
    (first, *others) = sorted((tmp_path / "stages").glob("features-*.rows"))
    assert len(others) == 2
    others[0].unlink()
    written = first.stat().st_mtime_ns
    again = AuditInputs.of(data, tmp_path / "stages", device="cpu", progress=NoProgress())
    assert again.features == pytest.approx(whole, rel=0.05, abs=0.05)
    assert first.stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["empty", "missing.csv"])
def test_data_without_images_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=name):
        small_audit(tmp_path / name, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    data = write_images(tmp_path / "colours", each=2)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="--out"):
        small_audit(data, tmp_path / "file" / "audit")


def test_a_run_is_audited_with_its_split(tmp_path: Path) -> None:
    samples = split(read_folder(write_images(tmp_path / "colours", each=8)), val=0.5)
    run = RunFolder(tmp_path / "run")
    shutil.copy(tmp_path / "colours" / "red" / "0.png", tmp_path / "colours" / "red" / "7.png")
    torn = samples.table.with_columns(
        hash=pl.when(pl.col("id").is_in(["red/0.png", "red/7.png"])).then(pl.lit(b"h")).otherwise("hash")
    )
    sides = pl.when(id=pl.lit("red/0.png")).then(pl.lit("train")).when(id=pl.lit("red/7.png")).then(pl.lit("val"))
    replace(samples, table=torn.with_columns(sides.otherwise("split").alias("split"))).write(run.samples)
    run.plan.write_text("data: {folder: colours}\nmodel: {backbone: test_efficientnet, weights: none}")
    found = audit(run.path, tmp_path / "audit")
    assert [set(one.images) for one in found.findings["leaks"]] == [{"red/0.png", "red/7.png"}]


def test_the_command_says_each_kind_and_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_images(tmp_path / "colours", each=4)
    shutil.copy(data / "red" / "0.png", data / "red" / "copy.png")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["audit", str(data), *(word for change in SMALL for word in ("--set", change))])
    assert done.exit_code == 0, done.output
    assert "Exact duplicates           1  2 files of the same bytes" in done.stdout
    assert f"assay train {data} --audit audits/colours" in done.stdout
