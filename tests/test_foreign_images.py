"""Unlabelled images of other classes than the labelled ones: pseudo_label leaves them alone, and counts them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

import assay
from assay.errors import PlanError
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.run.train import Run
from assay.steps import foreign_images, trainable
from assay.training import checkpoint, processes
from assay.training.semi_supervised import Views
from factories import COLOURS, write_images
from test_pseudo_label_step import Carry

PROBE = "probe: {size: 32}"
ALL_STAGES = ", features: all_stages"
FLEX = "fit: {size: 32, epochs: 1, batch: 6, lr: 1e-3, unlabelled: {method: flexmatch, threshold: 0.5, ratio: 2%s}}"


def foreign_labels(run: Run) -> tuple[int, int]:
    """Return how many images named other- have a label, and how many further ones that had none."""
    samples = Ledger.read(run.folder / "ledger.csv").apply(Samples.read(run.folder / "samples.parquet"))
    (head,) = samples.space
    given = samples.table.filter(pl.col(f"origin:{head.name}") == "pseudo")["id"]
    other = given.str.contains("other-").sum()
    return int(other), len(given) - int(other)


def require_foreign_left_out(run: Run, *, unlabelled: int, least: int) -> None:
    """Assert that no foreign image got a label, at least so many others did, and that the note counts the rest."""
    other, familiar = foreign_labels(run)
    assert other == 0
    assert familiar >= least
    assert noted(run) == (unlabelled - familiar, unlabelled)


def noted(run: Run) -> tuple[int, int]:
    """Return the foreign images and all unlabelled ones, by the note of the step."""
    (step,) = (one for one in run.metrics["steps"] if one["name"] == "02-pseudo_label")
    ((_, details),) = step["details"].items()
    matches = [re.match(r"(\d+) of (\d+) unlabelled images are unlike", note) for note in details["notes"]]
    return next(((int(one[1]), int(one[2])) for one in matches if one), (0, 0))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of each of three colours, and 15 of stripes."""
    folder = write_images(tmp_path_factory.mktemp("foreign") / "images", each=60)
    (folder / "other").mkdir()
    for number in range(15):
        stripes = np.where((np.arange(32) // (2 + number % 3)) % 2, 255, 0)[:, None, None]
        pixels = np.random.default_rng(number).integers(0, 30, (32, 32, 3)) ^ stripes
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "other" / f"other-{number}.png")
    return folder


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    """Of each colour 6 training images with a label, 18 without, and 36 that validate; the stripes without a label."""
    rows = [
        (f"{name}/{number}.png", name if number < 6 or number >= 24 else None)
        for name in COLOURS
        for number in range(60)
    ]
    return pl.DataFrame(
        rows + [(f"other/other-{number}.png", None) for number in range(15)], schema=["image", "colour"], orient="row"
    ).with_columns(
        split=pl.when(pl.col("image").str.contains(r"/(2[4-9]|[345]\d)\.png"))
        .then(pl.lit("val"))
        .otherwise(pl.lit("train"))
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The unlabelled images of each fit."""
    listed: list[list[str]] = []

    def views(ids: list[str], *given: Any) -> Views:
        listed.append(list(ids))
        return Views(ids, *given)

    monkeypatch.setattr(trainable, "Views", views)
    return listed


@pytest.mark.parametrize("teacher", ["model", "mixture"])
def test_images_of_another_kind_get_no_label(
    images: Path, table: pl.DataFrame, carry_table: Carry, teacher: str
) -> None:
    label = f"pseudo_label: {{keep: all, teacher: {teacher}}}"
    run = carry_table(images, table, PROBE, label, PROBE, model=ALL_STAGES)
    require_foreign_left_out(run, unlabelled=69, least=50)
    if teacher == "model":
        label = label[:-1] + ", foreign: label}"
        other, familiar = foreign_labels(carry_table(images, table, PROBE, label, PROBE, model=ALL_STAGES))
        assert (other, familiar) == (15, 54)


@pytest.mark.parametrize("teacher", ["model", "mixture"])
def test_after_a_fit_on_the_labels_published_features_tell_it(images: Path, carry_table: Carry, teacher: str) -> None:
    """Nine validation images alone could not, and to the features of the fit the labelled ones are no new images."""
    rows = [
        (f"{name}/{number}.png", name if number < 21 else None, "val" if 18 <= number < 21 else "train")
        for name in COLOURS
        for number in range(60)
    ] + [(f"other/other-{number}.png", None, "train") for number in range(15)]
    table = pl.DataFrame(rows, schema=["image", "colour", "split"], orient="row")
    fit = "fit: {size: 32, epochs: 1, batch: 16, lr: 1e-3}"
    label = f"pseudo_label: {{keep: all, teacher: {teacher}}}"
    run = carry_table(images, table, fit, label, PROBE, model=ALL_STAGES)
    require_foreign_left_out(run, unlabelled=132, least=100)


def striped(names: list[str]) -> tuple[int, int]:
    """Return how many of the images are stripes, and how many are not."""
    stripes = sum("other-" in name for name in names)
    return stripes, len(names) - stripes


def details(run: Run, name: str) -> dict[str, Any]:
    of_step: dict[str, Any] = next(one["details"] for one in run.metrics["steps"] if one["name"] == name)
    return of_step


def test_a_fit_draws_no_images_of_another_kind(
    images: Path, table: pl.DataFrame, carry_table: Carry, drawn: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = carry_table(images, table, PROBE, FLEX % "", model=ALL_STAGES)
    stripes, colours = striped(drawn[-1])
    assert stripes == 0
    assert colours >= 50
    (note,) = details(run, "02-fit")["notes"]
    assert note.startswith(f"{15 + 54 - colours} of 69 unlabelled images are unlike the labelled ones and get no label")
    assert details(run, "02-fit")["unlabelled_images"] == colours
    weights = (run.folder / "model/model.safetensors").read_bytes()

    step, number = processes.Machine.optimizer_step, iter(range(9))

    def stopped(*given: Any, **options: Any) -> Any:
        if next(number) == 2:
            raise KeyboardInterrupt
        return step(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "due", lambda self: True)
        patch.setattr(processes.Machine, "optimizer_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            carry_table(images, table, PROBE, FLEX % "", model=ALL_STAGES, run="stopped")
    monkeypatch.setattr(foreign_images, "network_features", None)  # not asked again, so that none is another
    run = carry_table(images, table, PROBE, FLEX % "", model=ALL_STAGES, run="stopped")
    assert drawn[-1] == drawn[0]
    assert (run.folder / "model/model.safetensors").read_bytes() == weights
    carry_table(images, table, PROBE, FLEX % ", foreign: label", model=ALL_STAGES)
    assert striped(drawn[-1]) == (15, 54)


def test_an_image_with_a_label_of_any_head_is_drawn_for_the_others(
    images: Path, table: pl.DataFrame, carry_table: Carry, drawn: list[list[str]]
) -> None:
    """Without a model before it, too."""
    number = pl.col("image").str.extract(r"(\d+)\.png").cast(pl.Int64)
    warm = pl.when(~pl.col("image").str.contains("other") | (number < 5)).then((number % 2 == 0).cast(pl.Int64))
    table = table.with_columns(warm=warm, cold=pl.when(number < 2).then(1 - warm))
    heads = ", heads: {colour: {column: colour}, tags: {columns: [warm, cold]}}"
    run = carry_table(images, table, FLEX % "", heads=heads, model=ALL_STAGES)
    assert {name for name in drawn[-1] if "other-" in name} == {f"other/other-{number}.png" for number in range(5)}
    assert details(run, "01-fit")["notes"][0].startswith("10 of 10 unlabelled images")


def test_where_all_unlabelled_images_are_of_another_kind_a_fit_learns_from_labels_alone(
    images: Path, table: pl.DataFrame, carry_table: Carry, drawn: list[list[str]]
) -> None:
    only = table.filter(pl.col("colour").is_not_null() | pl.col("image").str.contains("other"))
    run = carry_table(images, only, FLEX % "", model=ALL_STAGES)
    assert not drawn
    assert details(run, "01-fit")["unlabelled_images"] == 0
    assert details(run, "01-fit")["notes"][0].startswith("15 of 15 unlabelled images")


def test_a_mixture_of_tags_is_refused_before_anything_is_trained(images: Path, carry_table: Carry) -> None:
    rows = [(f"{name}/0.png", int(name == "red"), int(name == "blue")) for name in COLOURS]
    table = pl.DataFrame(rows, schema=["image", "warm", "cold"], orient="row")
    label = "pseudo_label: {teacher: mixture}"
    with pytest.raises(PlanError, match="teacher: mixture is for multi-class heads, and 'tags' is multi-label"):
        carry_table(images, table, PROBE, label, PROBE, heads=", heads: {tags: {columns: [warm, cold]}}")


NO_DATA = "ASSAY_DATA" not in os.environ


@pytest.fixture
def with_garments(tmp_path: Path) -> Callable[[str], Run]:
    """Carry out a step after a probe on satellite images; of 170 without a label 60 are of garments."""
    data = Path(os.environ["ASSAY_DATA"])
    rows = []
    for folder in sorted((data / "eurosat").iterdir()):
        names = sorted(path.relative_to(data).as_posix() for path in folder.iterdir())[:36]
        parts = ["train"] * 10 + ["unlabelled"] * 11 + ["val"] * 15
        rows += [
            (name, None if part == "unlabelled" else folder.name, part) for name, part in zip(names, parts, strict=True)
        ]
    garments = sorted((data / "fashion/img").rglob("*.jpg"))[:60]
    table = pl.DataFrame(
        rows + [(path.relative_to(data).as_posix(), None, "unlabelled") for path in garments],
        schema=["image", "use", "split"],
        orient="row",
    ).with_columns(pl.col("split").replace("unlabelled", "train"))
    table.write_csv(tmp_path / "labels.csv")

    def carried(step: str) -> Run:
        (tmp_path / "plan.yaml").write_text(
            f"data: {{table: {tmp_path / 'labels.csv'}, root: {data}}}\nmodel: {{features: all_stages}}\nsteps:\n"
            f"  - probe: {{size: 64}}\n  - {step}\n  - probe: {{size: 64}}\n"
        )
        return assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")

    return carried


@pytest.mark.skipif(NO_DATA, reason="ASSAY_DATA names no folder with eurosat and fashion")
@pytest.mark.parametrize("teacher", ["model", "mixture"])
def test_garments_among_satellite_images_get_no_label(with_garments: Callable[[str], Run], teacher: str) -> None:
    run = with_garments(f"pseudo_label: {{keep: all, teacher: {teacher}}}")
    samples = Ledger.read(run.folder / "ledger.csv").apply(Samples.read(run.folder / "samples.parquet"))
    given = samples.table.filter(pl.col("origin:use") == "pseudo")["id"]
    assert given.str.contains("fashion").sum() <= 1
    assert len(given) >= 100
    assert noted(run)[0] >= 59


@pytest.mark.skipif(NO_DATA, reason="ASSAY_DATA names no folder with eurosat and fashion")
def test_garments_among_satellite_images_are_not_drawn(with_garments: Callable[[str], Run]) -> None:
    run = with_garments("fit: {size: 64, epochs: 1, freeze: all_but_last_stage, unlabelled: {ratio: 1}}")
    left_out = json.loads((run.folder / "steps/02-fit/foreign.json").read_bytes())["images"]
    garments = sum("fashion" in name for name in left_out)
    assert garments >= 59
    assert len(left_out) - garments <= 10
    assert details(run, "02-fit")["unlabelled_images"] == 170 - len(left_out)
