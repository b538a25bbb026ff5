"""A fit that learns from images with unknown labels: whole runs, on tiny images and a tiny network."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import assay
from assay.errors import DataError, PlanError
from assay.files import write_text
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.progress import NoProgress
from assay.report.charts import on_one_axis
from assay.steps.fit_settings import FitSettings, require_reachable
from assay.steps.history import read_history
from assay.training.losses import ByHead
from assay.training.semi_supervised import UnlabelledSettings
from factories import COLOURS, write_images

OWN = "unlabelled: {threshold: 0.34, ratio: 2}"  # of three classes, by a network that has seen little
FLEX = "unlabelled: {method: flexmatch, threshold: 0.5, ratio: 2}"
Train = Callable[..., assay.Run]


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 images of 3 classes, of which 27 are in unlabelled/."""
    folder = write_images(tmp_path_factory.mktemp("partly") / "images", each=15)
    (folder / "unlabelled").mkdir()
    for name in COLOURS:
        for number in range(9):
            shutil.move(folder / name / f"{number}.png", folder / "unlabelled" / f"{name}{number}.png")
    return folder


@pytest.fixture(scope="module")
def half(partly: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the same with a head of classes and one of tags, each known of some images, tags one by one."""
    path = tmp_path_factory.mktemp("half") / "half.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "colour", "warm", "even"])
        for place, image in enumerate(sorted(colours.rglob("*.png"))):
            name, number = image.parent.name, int(image.stem)
            warm, even = int(name == "red"), int(number % 2 == 0)
            known = [name if place % 3 else "", warm if place % 2 else "", even if place % 5 else ""]
            rows.writerow([image, *known])
    return path


@pytest.fixture
def train(tiny_plan: Callable[..., str], partly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    drawn = "assay.report.report.write_images"
    monkeypatch.setattr(drawn, lambda folder, *given: write_text(folder / "curves.svg", "drawn"))

    def trained(*steps: str, data: str = f"folder: {partly}", run: str = "run", progress: Any = None) -> assay.Run:
        (tmp_path / "plan.yaml").write_text(tiny_plan(*steps, data=data))
        return assay.train(tmp_path / "plan.yaml", run=tmp_path / run, device="cpu", progress=progress or NoProgress())

    return trained


def weights(run: assay.Run) -> dict[str, Any]:
    return load_file(run.folder / "model" / "model.safetensors")


def metrics(run: assay.Run, step: str) -> dict[str, list[float]]:
    history = read_history(run.folder / "steps" / step / "history.csv").filter(pl.col("part") != "validation")
    return {str(name): own["value"].to_list() for (name,), own in history.group_by("name", maintain_order=True)}


@pytest.mark.parametrize("own", [OWN, FLEX], ids=["fixmatch", "flexmatch"])
def test_the_history_tells_what_was_learnt_from(own: str, train: Train) -> None:
    run = train(f"fit: {{size: 32, epochs: 3, batch: 4, lr: 1e-2, augment: {{flip: horizontal}}, {own}}}")
    told = metrics(run, "01-fit")
    assert all(0 <= share <= 1 for share in told["above_threshold"])
    assert max(told["above_threshold"]) > 0
    used = [sum(values) for values in zip(*(told[f"label/{name}"] for name in COLOURS), strict=True)]
    labelled = int(Samples.read(run.folder / "samples.parquet").part("train").labelled().sum())
    assert used == [round(share * 2 * labelled) for share in told["above_threshold"]]  # a ratio of 2
    assert ("threshold of label/red" in told) == ("flexmatch" in own)
    details = json.loads((run.folder / "steps/01-fit/done.json").read_text())["details"]
    assert details["unlabelled_images"] == 27
    drawn = on_one_axis([read_history(run.folder / "steps/01-fit/history.csv")])
    assert "above_threshold" in set(drawn["name"])
    assert "label/red" not in set(drawn["name"])


class Lines(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def test_each_epoch_says_the_share(train: Train) -> None:
    progress = Lines()
    train(f"fit: {{size: 32, epochs: 2, batch: 8, {OWN}}}", progress=progress)
    assert sum("above threshold 0." in line or "above threshold 1." in line for line in progress.lines) == 2


def test_what_is_learnt_is_learnt_from_unlabelled_images(train: Train) -> None:
    step = "fit: {{size: 32, epochs: 2, batch: 8, lr: 1e-2{0}}}"
    one, two = train(step.format(f", {OWN}"), run="with"), train(step.format(""), run="without")
    assert any((weights(one)[name] != value).any() for name, value in weights(two).items())


@pytest.mark.parametrize("own", [OWN, FLEX], ids=["fixmatch", "flexmatch"])
@pytest.mark.parametrize(
    "settings",
    [
        "accumulate: 2, clip: 0.5, ema: 0.9",
        "mix: {mixup: 0.4, cutmix: 1}, early_stop: 1",
        "freeze: all_but_last_stage, batch_norm: train",
        "class_weights: inverse, loss: {smoothing: 0.1}",
    ],
)
def test_it_goes_with_the_other_settings(settings: str, own: str, train: Train) -> None:
    run = train(f"fit: {{size: 32, epochs: 2, batch: 4, lr: 1e-3, {settings}, {own}}}")
    assert max(metrics(run, "01-fit")["above_threshold"]) > 0
    assert run.metrics["scores"]["metrics"]["nll"]["value"] > 0


HALF = "table: {table}, heads: {{colour: {{column: colour}}, tags: {{columns: [warm, even]}}}}, root: /"


@pytest.mark.parametrize("own", [OWN, FLEX], ids=["fixmatch", "flexmatch"])
def test_half_labelled_images_of_every_kind_of_head_take_part(own: str, half: Path, train: Train) -> None:
    run = train(f"fit: {{size: 32, epochs: 2, batch: 4, lr: 1e-2, {own}}}", data=HALF.format(table=half))
    told = metrics(run, "01-fit")
    assert {"colour/red", "tags/warm absent", "tags/warm present", "tags/even present"} <= told.keys()
    assert sum(told["tags/warm absent"]) + sum(told["tags/warm present"]) > 0
    samples = Samples.read(run.folder / "samples.parquet").part("train")
    unknown = sum((codes < 0).reshape(len(samples), -1).any(axis=1) for codes in samples.codes()) > 0
    details = json.loads((run.folder / "steps/01-fit/done.json").read_text())["details"]
    assert details["unlabelled_images"] == int(unknown.sum())


def test_nothing_unlabelled_is_said_and_the_fit_learns_from_labels_alone(train: Train, colours: Path) -> None:
    progress = Lines()
    run = train(f"fit: {{size: 32, {OWN}}}", data=f"folder: {colours}", progress=progress)
    assert any("every label of the training images is known" in line for line in progress.lines)
    assert json.loads((run.folder / "steps/01-fit/done.json").read_text())["details"]["unlabelled_images"] == 0
    plain = weights(train("fit: {size: 32}", data=f"folder: {colours}", run="plain"))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in weights(run).items())


def test_everything_unlabelled_is_refused(train: Train, tmp_path: Path) -> None:
    write_images(tmp_path / "images", each=2)
    label = {"red": "red,val", "green": "green,val", "blue": ",train"}
    images = sorted((tmp_path / "images").rglob("*.png"))
    rows = ["image,label,split", *(f"{path},{label[path.parent.name]}" for path in images)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match="no labelled image is left to train on"):
        train(f"fit: {{size: 32, {OWN}}}", data=f"table: {tmp_path / 't.csv'}, root: /")
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_frozen_backbone_compares_fresh_views_alone() -> None:
    assert FitSettings(unlabelled=UnlabelledSettings(), freeze="backbone").wanted_views == 0
    with pytest.raises(ValidationError, match=r"unlabelled draws images anew.*set views: fresh, or drop unlabelled"):
        FitSettings(unlabelled=UnlabelledSettings(), freeze="backbone", views=2)


@pytest.mark.parametrize(("smoothing", "refused"), [(0.1, True), (0.08, True), (0.07, False), (0.0, False)])
def test_smoothing_that_keeps_answers_below_the_threshold_is_refused(smoothing: float, refused: bool) -> None:
    space = LabelSpace((Head("kind", ("a", "b", "c")), Head("tags", ("x", "y"), "multilabel")))
    settings = FitSettings(unlabelled=UnlabelledSettings(threshold=0.95), loss=ByHead(smoothing=smoothing))
    if refused:
        with pytest.raises(PlanError, match=r"head 'kind' to be sure by 0\.9\d\d at most.*Lower one of the two"):
            require_reachable(0.95, settings.loss, space)
    else:
        require_reachable(0.95, settings.loss, space)
