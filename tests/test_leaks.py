"""Validation and test hold no image that an earlier run was trained on, by whatever way its weights come in."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import assay
from assay import cli
from assay.errors import PlanError
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.models.trained_model import count_trained_on, read_learnt_hashes, read_training_hashes
from assay.progress import Lines
from conftest import draw_nothing
from factories import COLOURS, small_model, write_images

pytestmark = pytest.mark.usefixtures("plain_runs")
PROBE = "probe: {size: 32}"
FIT = "fit: {size: 32, epochs: 1, batch: 16, freeze: all_but_last_stage}"
FROZEN = "fit: {size: 32, epochs: 1, freeze: backbone, start: runs/fitted}"
SHARED = {"val": ["red/0.png", "blue/0.png"], "test": ["green/3.png"]}
"""The images of validation and test that the earlier runs were trained on."""


def image(numbers: Sequence[int]) -> list[str]:
    return [f"{colour}/{number}.png" for number in numbers for colour in COLOURS]


def write_table(path: Path, parts: dict[str, list[str]]) -> None:
    rows = [(name, name.partition("/")[0], part) for part, names in parts.items() for name in names]
    pl.DataFrame(rows, schema=["image", "label", "split"], orient="row").write_csv(path)


def train(root: Path, *steps: str, run: str, data: str, model: str = "{}") -> tuple[assay.Run, list[str]]:
    """Carry out a plan in `root`; return the run and the lines that it printed."""
    (root / f"{run}.yaml").write_text(
        f"data: {{{data}}}\nmodel: {small_model(model)}\nhardware: {{precision: fp32, layout: contiguous}}\n"
        f"steps: [{', '.join(f'{{{step}}}' for step in steps)}]\n"
    )
    progress = Lines()
    return assay.train(root / f"{run}.yaml", run=root / "runs" / run, device="cpu", progress=progress), progress.lines


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a run that trained the backbone on some, one that trained a head on them, and copies of the weights.

    `later.csv` splits the images otherwise: three that the runs were trained on are in its validation and test.
    """
    root = tmp_path_factory.mktemp("leaks")
    write_images(root / "images", each=8)
    later = {"train": image((4, 5, 6, 7)), "val": image((0, 1)), "test": image((2, 3))}
    write_table(root / "later.csv", later)
    shared = [name for names in SHARED.values() for name in names]
    validated = [name for name in later["val"] if name not in shared]
    write_table(root / "first.csv", {"train": later["train"] + shared, "val": validated})
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        for run, step in (("fitted", FIT), ("probed", PROBE)):
            train(root, step, run=run, data="table: first.csv, root: images, split: {column: split}")
    shutil.copy(root / "runs/fitted/model/model.safetensors", root / "copy.safetensors")
    tensors = load_file(root / "copy.safetensors")
    below = {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")}
    torch.save({"state_dict": {f"module.{name}": value for name, value in below.items()}}, root / "backbone.pth")
    return root


LATER = "table: later.csv, root: images, split: {column: split}"


@pytest.mark.parametrize(
    ("step", "model"),
    [
        (FROZEN, "{}"),
        (FROZEN.replace("fitted", "probed"), "{}"),  # whose head was trained on them, and is kept
        (f"repeat: {{times: 1, steps: [{{{FROZEN}}}]}}", "{}"),
        (PROBE, "{init_from: runs/fitted}"),
        (PROBE, "{weights: copy.safetensors}"),
        (PROBE, "{weights: backbone.pth}"),
        (f"ensemble: {{members: [{{run: runs/probed}}, {{steps: [{{{PROBE}}}]}}]}}", "{}"),
        (
            f"ensemble: {{members: [{{steps: [{{{PROBE}}}]}}, "
            f"{{model: {small_model('{weights: copy.safetensors}')}, steps: [{{{PROBE}}}]}}]}}",
            "{}",
        ),
    ],
    ids=["start", "start: its head", "repeat", "init_from", "copy", "copied backbone", "member", "member's weights"],
)  # fmt: skip
def test_what_was_trained_on_before_leaves_validation_and_test(step: str, model: str, root: Path) -> None:
    run, lines = train(root, step, run="leak", data=LATER, model=model)
    try:
        assert run.metrics["trained on before"] == {"val": 2, "test": 1}
        assert run.metrics["counts"] == {"train": 12, "val": 4, "test": 5}
        assert run.metrics["scores"]["metrics"]["accuracy"]["n"] == 4
        assert run.metrics["test"]["metrics"]["accuracy"]["n"] == 5
        said = [line for line in lines if "images are left out: they were trained on" in line]
        assert ["2 of 6 validation" in said[0], "1 of 6 test" in said[1]] == [True, True]
        assert [note for note in run.metrics["notes"] if "1 of 6 test images are left out" in note]
        samples = Samples.read(run.folder / "samples.parquet")
        known = read_learnt_hashes(root / "runs" / "probed" / "model")  # the same images as of the other run
        assert count_trained_on(known, samples.part("val")) == count_trained_on(known, samples.part("test")) == 0
        _, again = train(root, step, run="leak", data=LATER, model=model)
        assert again[-1].endswith("is finished and unchanged")
    finally:
        shutil.rmtree(root / "runs" / "leak", ignore_errors=True)  # no run for the others to recognise


def test_a_backbone_that_no_label_has_touched_costs_no_image(root: Path) -> None:
    run, _ = train(root, PROBE, run="plain", data=LATER, model="{init_from: runs/probed}")
    assert run.metrics["trained on before"] == {"val": 0, "test": 0}
    assert not any("left out" in note for note in run.metrics["notes"])
    shutil.rmtree(run.folder)


def test_a_copy_stays_known_when_the_run_that_it_came_from_is_gone(root: Path, tmp_path: Path) -> None:
    for name in ("images", "later.csv", "copy.safetensors"):
        (tmp_path / name).symlink_to(root / name)
    shutil.copytree(root / "runs/fitted", tmp_path / "runs/fitted")
    first, _ = train(tmp_path, PROBE, run="later", data=LATER, model="{weights: copy.safetensors}")
    shutil.rmtree(tmp_path / "runs/fitted")
    again, lines = train(tmp_path, PROBE, run="later", data=LATER, model="{weights: copy.safetensors}")
    assert lines[-1].endswith("is finished and unchanged")
    assert again.metrics == first.metrics


def test_a_judge_of_copied_weights_is_refused(root: Path) -> None:
    with pytest.raises(PlanError, match="the judge begins with weights that were trained on 12 of the 12 images"):
        train(root, "clean_labels: {size: 32, weights: copy.safetensors}", PROBE, run="judge", data=LATER)


def test_the_same_split_loses_nothing_however_often_it_goes_on(root: Path) -> None:
    data = "folder: images, split: {val: 0.25, test: 0.25, seed: 1}"
    train(root, FIT, run="begun", data=data)
    for run, start in (("further", "begun"), ("furthest", "further")):
        step = f"fit: {{size: 32, epochs: 1, freeze: backbone, start: runs/{start}}}"
        for _ in range(2):
            found, _ = train(root, step, FIT, run=run, data=data)
            assert found.metrics["trained on before"] == {"val": 0, "test": 0}
            assert found.metrics["counts"]["val"] == found.metrics["counts"]["test"] == 6


def test_too_few_that_are_left_are_refused_with_the_way_out(root: Path) -> None:
    (root / "other.yaml").write_text(
        f"data: {{folder: images, split: {{val: 0.25, seed: 1}}}}\nmodel: {small_model('{}')}\nsteps: [{{{FROZEN}}}]\n"
    )
    done = CliRunner().invoke(cli.app, ["train", str(root / "other.yaml"), "--run", str(root / "runs/other")])
    assert done.exit_code == 2
    said = " ".join(done.stderr.split())
    assert "5 of the 6 labelled validation images were trained on" in said
    assert "(start: runs/fitted), and fewer than half would be left to measure by" in said
    assert "the same shares and seed" in said
    assert not (root / "runs/other/steps").exists()
    shutil.rmtree(root / "runs/other")


def test_the_table_of_a_run_is_a_way_out(root: Path) -> None:
    samples = Samples.read(root / "runs/fitted/samples.parquet")
    data = assay.write_table(samples, root / "theirs.csv")
    text = f"table: {data['table']}, root: {data['root']}, image: image, heads: {{label: {{column: label}}}}"
    run, _ = train(root, FROZEN, run="theirs", data=f"{text}, split: {{column: split}}")
    assert run.metrics["trained on before"] == {"val": 0, "test": 0}
    assert run.metrics["counts"] == {"train": 15, "val": 4, "test": 0}
    shutil.rmtree(run.folder)


def test_labels_settled_of_an_image_that_left_stay(root: Path) -> None:
    (root / "corrections.csv").write_text("image,label\nred/0.png,green\nred/4.png,green\n")
    data = f"{LATER}, corrections: corrections.csv"
    run, _ = train(root, PROBE, run="settled", data=data, model="{init_from: runs/fitted}")
    assert run.metrics["trained on before"] == {"val": 2, "test": 1}
    assert run.metrics["settled by a person"]["train"] == {"labels": 1, "changed": 1}
    assert len(Ledger.read(run.folder / "ledger.csv").entries) == 2
    shutil.rmtree(run.folder)


def test_evaluate_counts_what_the_run_began_with_was_trained_on(root: Path) -> None:
    run, _ = train(root, PROBE, run="evaluated", data=LATER, model="{init_from: runs/fitted}")
    found = assay.evaluate(run, assay.read(root / "images"))
    assert found["trained on"] == 12 + 3  # its own training images, and those of the earlier run besides
    assert len(read_training_hashes(run.folder / "model")) == 15
    shutil.rmtree(run.folder)


def test_a_class_that_loses_its_last_image_is_named(root: Path) -> None:
    val = ["red/0.png", *image((1, 2))[1:]]  # one red image, which the earlier run was trained on
    write_table(root / "few.csv", {"train": image((4, 5, 6, 7)), "val": [name for name in val if name != "red/2.png"]})
    run, _ = train(
        root, PROBE, run="few", data="table: few.csv, root: images, split: {column: split}",
        model="{init_from: runs/fitted}",
    )  # fmt: skip
    assert any("label: 'red': with them the last validation image is gone" in note for note in run.metrics["notes"])
    shutil.rmtree(run.folder)
