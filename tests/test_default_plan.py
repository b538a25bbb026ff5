"""The plan made for data that comes without one."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from assay import cli
from assay.errors import PlanError
from assay.experiments.variants import variants
from assay.images.cache import Cache
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.plan.facts import (
    MIN_IMAGES,
    about_imbalance,
    about_size,
    about_unlabelled,
    choose_flips,
    facts_of,
    median_side,
)
from assay.plan.metric import by_metric
from assay.plan.plan import parse
from assay.plan.planner import REPAIR, default_stages
from assay.plan.stages import DEFAULT_SIZE, Facts, Speeds
from assay.plan.yaml_lines import write


def cache_of(pixels: np.ndarray) -> tuple[Cache, list[str]]:
    ids = [str(number) for number in range(len(pixels))]
    return Cache(pixels, {name: row for row, name in enumerate(ids)}), ids


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(50, 200, (count, 8, 8, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("brighter", "expected"),
    [
        (np.s_[:0], "both"),
        (np.s_[:, :3], "horizontal"),  # a sky
        (np.s_[:, :, :3], "vertical"),
        (np.s_[:, :3, :3], "none"),
    ],
)
def test_images_are_flipped_only_where_that_leaves_them_plausible(brighter: Any, expected: str) -> None:
    pixels = noise(400)
    pixels[brighter] += 50
    assert choose_flips(*cache_of(pixels))[0] == expected


def test_a_small_number_of_images_is_not_flipped() -> None:
    assert choose_flips(*cache_of(noise(MIN_IMAGES - 1)))[0] == "none"


def labelled(count: int, *, tagged: int = 0) -> Samples:
    """As many training images under a multi-class head, and as many validation ones with a tag."""
    lists = pl.List(pl.String)
    rows = count + tagged
    table = pl.DataFrame(
        {
            "split": ["train"] * count + ["val"] * tagged,
            "label:kind": ["a"] * count + [None] * tagged,
            "label:tags": pl.Series([None] * count + [["x"]] * tagged, dtype=lists),
            "unknown:tags": pl.Series([None] * rows, dtype=lists),
        }
    )
    heads = [Head("kind", ("a", "b"))] + [Head("tags", ("x", "y"), "multilabel")] * (tagged > 0)
    return Samples(table, LabelSpace(tuple(heads)), Path())


def default_steps(samples: Samples, *, flip: str = "none", **known: bool) -> list[Any]:
    facts = facts_of(samples, flip=flip, **known)
    return [stage.step for stage in default_stages(facts, Speeds.of_forward())]


@pytest.mark.parametrize(("images", "epochs"), [(20, 8), (3_000, 8), (6_500, 4), (200_000, 3)])
def test_the_fit_is_sized_to_the_data(images: int, epochs: int) -> None:
    probe, clean, fit = default_steps(labelled(images), flip="both")
    assert list(probe) == ["probe"]
    assert clean == {"clean_labels": {"size": DEFAULT_SIZE, **REPAIR}}
    assert fit["fit"]["epochs"] == epochs
    assert fit["fit"]["augment"]["flip"] == "both"
    assert fit["fit"]["loss"]["smoothing"] == 0.1
    assert fit["fit"]["monitor"] == "accuracy"
    assert "monitor" not in default_steps(labelled(images), metric=True)[2]["fit"]


def test_tags_are_not_smoothed_and_get_a_threshold_where_there_are_enough() -> None:
    _, clean, fit, thresholds = default_steps(labelled(30, tagged=20), flip="none")
    assert fit["fit"]["loss"]["smoothing"] == 0.0
    assert "monitor" not in fit["fit"]
    assert clean["clean_labels"]["action"] == "flag"  # nothing shows whether a repair of tags helps
    assert thresholds == {"tune_thresholds": {"heads": ["tags"]}}
    assert len(default_steps(labelled(30, tagged=19), flip="none")) == 3


def test_labels_are_not_cleaned_by_a_backbone_trained_on_them() -> None:
    steps = default_steps(labelled(30), flip="none", pretrained=True)
    assert [*map(list, steps)] == [["probe"], ["fit"]]


@pytest.mark.parametrize(("unlabelled", "rounds"), [(0, 0), (99, 0), (100, 2), (5_000, 2)])
def test_enough_unlabelled_images_are_labelled_if_that_betters_validation(unlabelled: int, rounds: int) -> None:
    samples = labelled(1_000)
    one = samples.table.head(1)
    blank = one.with_columns(pl.lit(None, pl.String).alias("label:kind"))
    validation = [one.with_columns(pl.lit("val").alias("split"))] * 30
    tables = [samples.table, *[blank] * unlabelled, *validation]
    whole = replace(samples, table=pl.concat(tables, how="vertical_relaxed"))
    fewer = replace(whole, table=whole.table.head(-1))
    assert not any("repeat" in step for step in default_steps(fewer, flip="none"))
    steps = default_steps(whole, flip="none")
    repeats = [step["repeat"] for step in steps if "repeat" in step]
    assert [one["times"] for one in repeats] == [rounds] * (rounds > 0)
    for one in repeats:
        label, fit = one["steps"]
        assert one["only_if_better"]
        assert label == {"pseudo_label": {"keep": "confidence"}}
        assert fit["fit"] == {**steps[2]["fit"], "start": "pretrained", "epochs": fit["fit"]["epochs"]}
        assert fit["fit"]["epochs"] == {100: 8, 5_000: 4}[unlabelled]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"labelled": 80, "per_class": 8.0},
            "and about 8 labelled ones a class are few: .* where held-out labels show",
        ),
        ({"labelled": 80, "per_class": 8.0, "smoothed": False}, "a model labels them, and a second one learns from"),
        ({"labelled": 900}, "^90 training images have no label: a model labels them"),
        ({"labelled": 900, "validation": 29}, "29 labelled validation images cannot tell whether labels for them help"),
        ({"labelled": 901}, "too few, beside 901 with one, .*; no model learns from them"),
        ({"labelled": 901, "unlabelled": 1}, "^1 training image has no label: too few"),
        ({"labelled": 80, "repairs": False}, None),
        ({"labelled": 80, "unlabelled": 0}, None),
    ],
)
def test_the_run_says_what_becomes_of_unlabelled_images_and_why(changed: dict[str, Any], says: str | None) -> None:
    line = about_unlabelled(Facts(**{"unlabelled": 90, "validation": 30, **changed}))
    assert line is None if says is None else line and re.search(says, line)


def with_classes(**counts: list[int]) -> Samples:
    """Training images with so many of each class a, b, ... of each head, and one of validation of the first class."""
    columns = {
        head: [chr(97 + k) for k, count in enumerate(of_head) for _ in range(count)] for head, of_head in counts.items()
    }
    rows = max(map(len, columns.values()))
    labels = {f"label:{head}": ["a", *names, *[None] * (rows - len(names))] for head, names in columns.items()}
    heads = tuple(Head(head, tuple(map(chr, range(97, 97 + len(of_head))))) for head, of_head in counts.items())
    return Samples(pl.DataFrame({"split": ["val"] + ["train"] * rows, **labels}), LabelSpace(heads), Path())


@pytest.mark.parametrize(
    ("counts", "metric", "says"),
    [
        (
            {"kind": [60, 30, 20]},
            None,
            "^classes are imbalanced: 60 training images of 'a', 20 of 'c'; .*balanced_accuracy",
        ),
        ({"kind": [60, 30, 20]}, "accuracy", "60 training images of 'a'"),
        ({"kind": [60, 30, 20]}, "balanced_accuracy", None),
        ({"kind": [60, 30, 20]}, "nll", None),
        ({"kind": [59, 30, 20]}, None, None),
        ({"kind": [60, 30, 0]}, None, None),  # what is not there cannot be learnt
        (
            {"kind": [60, 30], "colour": [8, 1, 0]},
            None,
            "^classes of 'colour' are .*8 training images of 'a', 1 of 'b'",
        ),
        ({"kind": [60, 0]}, None, None),
        ({"kind": [0, 0], "colour": [1, 1]}, None, None),
    ],
)
def test_the_run_says_how_imbalanced_classes_are(counts: dict[str, list[int]], metric: Any, says: str | None) -> None:
    line = about_imbalance(with_classes(**counts), metric)
    assert line is None if says is None else line and re.search(says, line)
    assert about_imbalance(with_classes(**counts), metric, repairs=False) is None


@pytest.mark.parametrize("unlabelled", [0, 5_000])
def test_without_repairs_labels_are_listed_and_stay_and_no_metric_weighs_classes(unlabelled: int) -> None:
    samples = labelled(1_000)
    blank = samples.table.head(1).with_columns(pl.lit(None, pl.String).alias("label:kind"))
    steps = default_steps(
        replace(samples, table=pl.concat([samples.table, *[blank] * unlabelled], how="vertical_relaxed")), repairs=False
    )
    assert [*map(list, steps)] == [["probe"], ["clean_labels"], ["fit"]]
    assert steps[1]["clean_labels"]["action"] == "flag"
    plan = parse(write({"data": {"folder": "photos"}, "metric": "balanced_accuracy", "steps": steps}), "plan")
    *_, fit = by_metric(plan, samples.space)[0].steps
    assert fit.settings.class_weights is None
    assert fit.settings.prior == "uniform"


def test_repairs_of_steps_that_a_plan_names_are_its_own() -> None:
    with pytest.raises(PlanError, match=r"repairs: false is for steps that are chosen.*`assay ablate`"):
        parse("data: {folder: photos}\nrepairs: false\nsteps: [probe]\n", "plan")


def test_an_ablation_leaves_out_each_repair_of_the_default_plan() -> None:
    samples = labelled(1_000)
    blank = samples.table.head(1).with_columns(pl.lit(None, pl.String).alias("label:kind"))
    validation = [samples.table.head(1).with_columns(pl.lit("val").alias("split"))] * 30
    tables = [samples.table, *[blank] * 500, *validation]
    whole = replace(samples, table=pl.concat(tables, how="vertical_relaxed"))
    plan = parse(write({"data": {"folder": "photos"}, "steps": default_steps(whole)}), "plan")
    titles = [variant.title for variant in variants(plan)]
    assert titles == ["whole plan", "without 02-clean_labels", "without 04-repeat/01-pseudo_label"]


def test_no_repairs_with_steps_of_a_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    words = ["train", str(tmp_path / "photos"), "--recipe", "noisy-labels-fast", "--no-repairs"]
    result = CliRunner().invoke(cli.app, [*words, "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "repairs: false is for steps that are chosen" in " ".join(result.output.split())


@pytest.mark.parametrize("page", ["README.md", "docs/plans.md", "docs/python-api.md", "src/assay/commands/options.py"])
def test_steps_that_documents_change_by_number_are_those_of_the_default_plan(page: str) -> None:
    text = (Path(__file__).parent.parent / page).read_text(encoding="utf-8")
    kinds = [next(iter(stage.step)) for stage in default_stages(facts_of(labelled(200)), Speeds.of_forward())]
    named = re.findall(r"steps\.(\d+)\.(\w+)\.epochs=4", text)
    assert named
    assert all(kinds[int(number)] == kind for number, kind in named)


def test_what_very_many_images_leave_out_is_said_with_its_number() -> None:
    judging, probing = about_size(Facts(labelled=950_000, unlabelled=0, validation=50_000, classes=1_000))
    assert "950,000 images of 1,000 classes would take 48 GB" in judging
    assert "about 66,137 of 950,000 images" in probing
    assert not [*about_size(Facts(labelled=100_000, unlabelled=0, validation=20_000, classes=10))]


def test_the_side_of_a_median_image_is_that_of_its_header(tmp_path: Path) -> None:
    sizes = [(64, 200), (64, 70), (64, 64), (300, 400), (10, 20)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    table = pl.DataFrame({"path": [f"{number}.png" for number in range(6)]})
    samples = Samples(table, LabelSpace(()), tmp_path)
    assert median_side(samples) == 64
    assert median_side(samples.take([5])) == DEFAULT_SIZE
