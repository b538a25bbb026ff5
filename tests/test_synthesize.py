"""The step that makes images up: what it keeps, what it refuses, and what others see of its images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from assay.commands.api import train
from assay.errors import AssayError, DataError, PlanError
from assay.labels.edits import apply
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.metrics.intervals import Metric
from assay.metrics.tallies import Tally, multiclass
from assay.plan.plan import parse
from assay.predictions.cross_fitting import gain, mean_gain
from assay.run.train import Run
from assay.steps import synthesize
from assay.steps.fit_settings import FitSettings
from assay.steps.synthesize import SynthesizeSettings
from factories import write_images

FIT = "{size: 32, freeze: backbone, epochs: 1, batch: 8}"
GAN = "size: 32, optimizer_steps: 2, batch: 4, width: 4, show_every: 1"


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many red and green images, few blue ones."""
    folder = write_images(tmp_path_factory.mktemp("lopsided") / "images", each=10)
    for number in range(5, 10):
        (folder / "blue" / f"{number}.png").unlink()
    return folder


@pytest.fixture
def made_up(tiny_plan: Callable[..., str], lopsided: Path, tmp_path: Path) -> Callable[..., Run]:
    """Train by a plan whose second step is `synthesize` with these settings, and another fit after it."""

    def run(settings: str, *, name: str = "run", data: str = "", least: int = 4, after: str = f"fit: {FIT}") -> Run:
        plan = tmp_path / f"{name}.yaml"
        source = data or f"folder: {lopsided}, split: {{val: 0.25}}"
        plan.write_text(
            tiny_plan("probe: {size: 32}", f"synthesize: {{{GAN}, least: {least}, {settings}}}", after, data=source)
        )
        return train(plan, run=tmp_path / name, device="cpu")

    return run


def step(run: Any, name: str = "02-synthesize") -> Any:
    return json.loads((run.folder / "steps" / name / "done.json").read_text())


def test_images_that_are_kept_are_trained_on_and_never_validate(made_up: Callable[..., Run]) -> None:
    run = made_up("classes: [blue], count: 3, keep: always")
    added = Ledger.read(run.folder / "ledger.csv").edits()
    assert [(edit.action, edit.tag, edit.reason) for edit in added] == [("add", "blue", "made up")] * 3
    read = Samples.read(run.folder / "samples.parquet")
    assert run.metrics["counts"] == {
        "train": len(read.part("train")) + 3,
        "val": len(read.part("val")),
        "test": 0,
    }
    trained = step(run, "03-fit")["details"]
    assert trained["images_per_second"] > 0
    validated = pl.read_parquet(run.folder / "steps" / "03-fit" / "best" / "predictions.parquet")["id"].to_list()
    assert validated == read.part("val").ids
    for edit in added:
        with Image.open(edit.new) as image:
            assert image.size == (32, 32)
    left_behind(run)


def left_behind(run: Any) -> None:
    folder = run.folder / "steps" / "02-synthesize"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    blue = next(path.name for path in (folder / "samples").iterdir() if path.is_dir())
    assert blue.endswith("-blue")
    assert {f"samples/{blue}/step-{n:06d}.png" for n in (1, 2)} <= names
    page = (run.folder / "report.html").read_text()
    assert '<div id="synthetic"' in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "3 images, trained on" in page
    with Image.open(folder / "samples" / "progress.png") as sheet:
        assert sheet.size == (2 * 34 - 2, 32)
    assert {"samples/real-and-made-up.png", "made.json", "generator.safetensors"} <= names
    assert "checkpoint.safetensors" not in names
    told = step(run)["details"]["classes"]["blue"]
    assert (told["made"], told["n"]) == (3, told["real"] // 2)
    assert set(told["frechet"]) == {"made", "real", "other class"}
    with Image.open(folder / "samples" / blue / "step-000002.png") as sheet:
        assert sheet.size == (8 * 34 - 2, 4 * 34 - 2)


def test_by_default_the_few_get_what_they_lack(made_up: Callable[..., Run]) -> None:
    run = made_up("keep: never")
    told = step(run)["details"]["classes"]
    train_counts = Samples.read(run.folder / "samples.parquet").part("train")
    counts = dict(
        zip(train_counts.space["label"].classes, train_counts.counts(train_counts.space["label"]), strict=True)
    )
    assert {name: one["made"] for name, one in told.items()} == {"blue": max(counts.values()) - counts["blue"]}
    assert run.metrics["counts"]["train"] == len(train_counts)


BETTER, SAME = Metric(0.1, 6, 0.02, 0.2), Metric(0.1, 6, -0.01, 0.2)


@pytest.mark.parametrize(
    ("keep", "found", "kept"),
    [
        ("if_better", BETTER, True),
        ("if_better", SAME, False),
        ("if_better", Metric(0.1, 6), False),  # no interval
        ("always", SAME, True),
        ("always", None, True),  # never tried
        ("never", BETTER, False),
    ],
)
def test_what_decides_is_the_interval(keep: str, found: Any, kept: bool) -> None:
    settings = SynthesizeSettings(keep=keep, fit=FitSettings())
    assert synthesize.is_kept(settings, found) is kept


@pytest.mark.parametrize(("found", "kept"), [(BETTER, True), (SAME, False)])
def test_without_a_gain_they_are_left_out_and_that_is_said(
    found: Any, kept: bool, made_up: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesize, "mean_gain", lambda pairs, metric: found)
    run = made_up(f"classes: [blue], count: 2, fit: {FIT}, seeds: 1", after="probe: {size: 32}")
    assert step(run)["details"]["kept"] is kept
    assert len(Ledger.read(run.folder / "ledger.csv").edits()) == (2 if kept else 0)
    lines = [json.loads(line)["line"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
    (told,) = (line for line in lines if "with the made-up images balanced_accuracy" in line)
    assert ("they are left out" in told) is not kept
    assert ("they are kept" in told) is kept


def test_it_is_tried_with_them_and_without_under_equal_draws(
    made_up: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = []
    monkeypatch.setattr(synthesize, "mean_gain", lambda given, metric: pairs.extend(given) or SAME)
    run = made_up(f"classes: [blue], count: 4, fit: {FIT}, seeds: 2")
    trial = run.folder / "steps" / "02-synthesize" / "trial"
    assert sorted(path.relative_to(trial).as_posix() for path in trial.glob("*/*/*")) == [
        f"seed-{seed}/{arm}/01-fit" for seed in (0, 1) for arm in ("with", "without")
    ]
    assert len(pairs) == 2
    assert len({before.n for pair in pairs for before in pair}) == 1
    history = pl.read_csv(run.folder / "steps" / "03-fit" / "history.csv")
    assert history["epoch"].max() == 1  # of the fit that counts; what was tried is in no curve


def test_the_same_command_goes_on_and_ends_the_same(
    made_up: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made_up(f"classes: [blue], count: 3, fit: {FIT}, seeds: 1, keep: always", name="whole")
    trial, seen = synthesize.run_trial, []

    def dying(*given: Any) -> Path:
        seen.append(given[1])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return trial(*given)

    monkeypatch.setattr(synthesize, "run_trial", dying)
    with pytest.raises(KeyboardInterrupt):
        made_up(f"classes: [blue], count: 3, fit: {FIT}, seeds: 1, keep: always", name="two")
    monkeypatch.setattr(synthesize, "generate_all", None)  # what was made is not made again
    two = made_up(f"classes: [blue], count: 3, fit: {FIT}, seeds: 1, keep: always", name="two")
    first, second = (json.loads((r.folder / "metrics.json").read_text())["scores"] for r in (whole, two))
    assert first == second
    assert step(whole)["details"] == step(two)["details"]
    unchanged = made_up(f"classes: [blue], count: 3, fit: {FIT}, seeds: 1, keep: always", name="two")
    assert unchanged.metrics == two.metrics


def test_of_several_heads_the_others_stay_unknown(made_up: Callable[..., Run], lopsided: Path, tmp_path: Path) -> None:
    rows = [
        f"{path.relative_to(lopsided)},{path.parent.name},{'sharp' if path.stem in '02468' else '-'}"
        for path in sorted(lopsided.rglob("*.png"))
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["image,kind,tags", *rows]) + "\n")
    heads = "{kind: {column: kind}, tags: {column: tags, separator: ';', none: '-'}}"
    data = f"table: {tmp_path / 'labels.csv'}, root: {lopsided}, heads: {heads}, split: {{val: 0.25}}"
    run = made_up("classes: [blue], count: 2, keep: always", data=data)
    edits = Ledger.read(run.folder / "ledger.csv").edits()
    assert [(edit.head, edit.tag) for edit in edits] == [("kind", "blue")] * 2
    samples = apply(Samples.read(run.folder / "samples.parquet"), edits)
    kind, tags = (codes[-2:] for codes in samples.codes())
    assert kind.tolist() == [0, 0]
    assert (tags == -1).all()


def test_a_image_that_is_gone_is_named(made_up: Callable[..., Run]) -> None:
    run = made_up("classes: [blue], count: 2, keep: always")
    shutil.rmtree(run.folder / "cache")
    (run.folder / "steps" / "02-synthesize" / "made-up" / "00" / "00001.png").unlink()
    with pytest.raises(DataError, match=r"00001\.png: this image was added by a step and cannot be read"):
        made_up("classes: [blue], count: 2, keep: always", after="fit: {size: 32, epochs: 1}")


@pytest.mark.parametrize(
    ("settings", "least", "error", "message"),
    [
        ("classes: [purple]", 4, PlanError, r"synthesize, classes of label: .*purple.* blue, green, red"),
        ("classes: [blue]", 40, DataError, r"'blue' has \d training images, and a class must have 40"),
        ("head: kind", 4, PlanError, "kind is no multi-class head of this data. Its multi-class heads are: label"),
        ("classes: few", 40, DataError, "there is no class to make images of"),
    ],
)
def test_what_it_refuses(
    settings: str, least: int, error: type[Exception], message: str, made_up: Callable[..., Run]
) -> None:
    with pytest.raises(error, match=message):
        made_up(f"{settings}, keep: always", least=least)


def test_a_class_of_three_images_is_refused(made_up: Callable[..., Run], tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", each=8)
    for number in range(3, 8):
        (folder / "blue" / f"{number}.png").unlink()
    data = f"folder: {folder}, split: {{val: 0.0}}"
    with pytest.raises(DataError, match=r"'blue' has 3 training images.*would repeat.*lower least \(4 at the least\)"):
        made_up("classes: [blue], keep: always", data=data)


def test_without_validation_nothing_can_be_decided(made_up: Callable[..., Run], lopsided: Path) -> None:
    with pytest.raises(AssayError, match=r"read off validation.*keep: always or never"):
        made_up(f"classes: [blue], count: 2, fit: {FIT}", data=f"folder: {lopsided}, split: {{val: 0.0}}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [("{}", "keep: if_better needs a fit"), ("{size: 50, keep: never}", "32, 64 or 128"), ("{least: 3}", "at least 4")],
)
def test_settings_that_are_refused_when_the_plan_is_read(settings: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse(f"data: {{folder: x}}\nsteps: [synthesize: {settings}]", "plan.yaml")


HEAD = Head("label", ("a", "b"))


def tallies(right: float, *, n: int = 400) -> Tally:
    """Answers of which a share is right, the same images each time."""
    codes = np.arange(n) % 2
    wrong = np.random.default_rng(round(right * 1000)).random(n) > right
    probabilities = np.full((n, 2), 0.1)
    probabilities[np.arange(n), np.where(wrong, 1 - codes, codes)] = 0.9
    return multiclass(HEAD, codes, probabilities)


def test_the_gain_over_seeds_is_the_mean_of_gains() -> None:
    pairs = [(tallies(0.6), tallies(0.8)), (tallies(0.65), tallies(0.8)), (tallies(0.7), tallies(0.9))]
    found = mean_gain(pairs, "accuracy")
    assert found.value == pytest.approx(np.mean([gain(*pair, "accuracy").value for pair in pairs]))
    assert found.low < found.value < found.high
    assert found.low > 0
    alone, paired = gain(*pairs[0], "accuracy"), mean_gain(pairs[:1], "accuracy")
    assert (paired.value, paired.low, paired.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_seeds_that_disagree_widen_the_interval() -> None:
    agreeing = [(tallies(0.7), tallies(0.8))] * 3
    disagreeing = [(tallies(0.7), tallies(share)) for share in (0.5, 0.8, 0.95)]
    widths = [found.high - found.low for found in (mean_gain(pairs, "accuracy") for pairs in (agreeing, disagreeing))]
    assert widths[1] > 2 * widths[0]
    assert mean_gain([(tallies(0.8), tallies(0.7))], "nll").value < 0  # a loss that rises is no gain
