"""Finished runs held against one another: metrics, tests, plans, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from typer.testing import CliRunner

import assay
from assay import cli
from assay.errors import DataError, PlanError, RunError
from assay.experiments.compare import compare
from assay.labels.samples import Samples
from assay.metrics.metrics import EXACT_BELOW, mcnemar
from assay.plan.differences import differences
from assay.plan.plan import Plan, parse
from assay.predictions.predict import Predictions
from assay.report.comparison_page import write_comparison
from assay.run.label_review import correct
from factories import write_images

PROBE = "probe: {size: 32}"
FIT = "fit: {size: 32, epochs: 2, lr: 2e-3}"
UNTAUGHT = "fit: {size: 32, epochs: 1, lr: 1e-6}"
MODEL = "model: {backbone: test_efficientnet, weights: none}\nhardware: {precision: fp32, layout: contiguous}\n"
TAGS = 'heads: {colour: {column: colour}, size: {column: size}, tags: {column: tags, separator: ";", none: "-"}}'


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a plan of these steps; nothing but its model, metrics and answers is made."""
    base = tmp_path_factory.mktemp("compared")

    def trained(name: str, data: str, *steps: str) -> Path:
        (base / f"{name}.yaml").write_text(
            f"data: {{{data}}}\n{MODEL}steps:{''.join(f'{chr(10)}  - {step}' for step in steps)}\n", encoding="utf-8"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("assay.report.report.write_images", lambda folder, *given: None)
            patch.setattr("assay.run.train.baselines", lambda *given, **options: {})
            patch.setattr("assay.report.report.draw_run", lambda *given, **options: None)
            return assay.train(base / f"{name}.yaml", run=base / name, device="cpu").folder

    return trained


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images, and a table of them with three heads, some labels unknown."""
    folder = write_images(tmp_path_factory.mktemp("images") / "images", each=20)
    lines = [
        f"{colour}/{n}.png,{colour if n % 5 else ''},{'large' if n % 2 else 'small'},{('a;b', 'a', '-', '')[n % 4]}\n"
        for colour in ("red", "green", "blue")
        for n in range(20)
    ]
    (folder.parent / "labels.csv").write_text("image,colour,size,tags\n" + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def one(train: Callable[..., Path], images: Path) -> Path:
    return train("one", f"folder: {images}, split: {{val: 0.5}}", UNTAUGHT)


@pytest.fixture(scope="module")
def two(train: Callable[..., Path], images: Path) -> Path:
    return train("two", f"folder: {images}, split: {{val: 0.5}}", PROBE, FIT)


@pytest.fixture(scope="module")
def heads(train: Callable[..., Path], images: Path) -> list[Path]:
    """Two runs of three heads, of both kinds."""
    data = f"table: {images.parent / 'labels.csv'}, root: {images}, {TAGS}, split: {{val: 0.5}}"
    return [train("three-heads", data, PROBE), train("three-heads-fit", data, FIT)]


def copied(run: Path, target: Path) -> Path:
    return Path(shutil.copytree(run, target))


# Metrics


def test_on_test_images_by_the_predictions_of_the_opening(train: Callable[..., Path], images: Path) -> None:
    data = f"folder: {images}, split: {{val: 0.3, test: 0.4}}"
    runs = [train("tested-one", data, UNTAUGHT), train("tested-two", data, PROBE)]
    result = compare(runs, part="test")
    for index, run in enumerate(runs):
        metrics = assay.load(run).metrics["test"]["metrics"]
        assert {row.metric: row.values[index].to_json() for row in result.rows} == metrics
        last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["line"]
        assert last == f"compare --test: its test metrics were compared with {runs[1 - index]}"
    assert "test images" in result.basis
    page = write_comparison(runs[0].parent / "tested.html", result).read_text(encoding="utf-8")
    assert "a choice made by it makes the test a second validation" in page
    done = CliRunner().invoke(
        cli.app, ["compare", "--test", *map(str, runs), "--out", str(runs[0].parent / "other.html"), "--json"]
    )
    assert (done.exit_code, json.loads(done.stdout)["part"]) == (0, "test")


def test_a_test_split_that_was_not_opened_is_said(one: Path, two: Path) -> None:
    before = (one / "log.jsonl").read_text()
    with pytest.raises(DataError, match="its test split was not opened"):
        compare([one, two], part="test")
    assert (one / "log.jsonl").read_text() == before


def test_the_metrics_are_those_of_the_runs_and_differences_are_to_the_first(one: Path, two: Path) -> None:
    result = compare([one, two])
    for index, run in enumerate((one, two)):
        metrics = assay.load(run).metrics["scores"]["metrics"]
        assert {row.metric: row.values[index].to_json() for row in result.rows} == metrics
    assert result.chief.verdicts == ("", "better")  # than a network that was taught next to nothing
    for row in result.rows:
        assert row.changes[0] is None
        if row.metric == "calibration_error":  # its difference has no interval
            assert row.changes[1] is None
        else:
            assert row.changes[1].value == pytest.approx(row.values[1].value - row.values[0].value)
            assert row.changes[1].low <= row.changes[1].value <= row.changes[1].high
            assert row.verdicts[1] in ("better", "worse", "not told apart")
    turned = compare([two, one])
    assert [row.changes[1] and -row.changes[1].value for row in turned.rows] == pytest.approx(
        [row.changes[1] and row.changes[1].value for row in result.rows]
    )


def test_a_run_equals_its_copy(one: Path, tmp_path: Path) -> None:
    result = compare([one, copied(one, tmp_path / "copy")])
    assert {change.value for row in result.rows for change in row.changes if change} == {0.0}
    assert {verdict for row in result.rows for verdict in row.verdicts} <= {"", "not told apart"}
    (overlap,) = result.overlaps
    assert (overlap.test.p, overlap.counts["only first right"], overlap.differ.sum()) == (1.0, 0, 0)
    assert result.plans == ()
    text = write_comparison(tmp_path / "page.html", result).read_text(encoding="utf-8")
    assert "the plans say the same" in text
    assert text.count('<p class="quiet">None.</p>') == 3


def test_the_order_of_the_images_does_not_count(one: Path, two: Path, tmp_path: Path) -> None:
    turned = copied(two, tmp_path / "turned")
    samples = Samples.read(turned / "samples.parquet")
    samples.take(np.arange(len(samples))[::-1]).write(turned / "samples.parquet")
    path = turned / json.loads((turned / "metrics.json").read_text())["steps"][-1]["model"] / "predictions.parquet"
    answers = Predictions.read(path, samples.space, model="")
    answers.take(range(len(answers))[::-1]).write(path)
    straight, result = compare([one, two]), compare([one, turned])
    assert result.rows == straight.rows
    assert [overlap.counts for overlap in result.overlaps] == [overlap.counts for overlap in straight.overlaps]


def test_every_head_of_either_kind_has_metrics(heads: list[Path]) -> None:
    result = compare(heads)
    assert {row.head for row in result.rows} == {"", "colour", "size", "tags"}
    assert {row.metric for row in result.rows if row.head == "tags"} >= {"mean_average_precision", "hamming_loss"}
    tests = {overlap.head.name: overlap.test for overlap in result.overlaps}
    assert tests["tags"] is None
    assert tests["colour"] is not None
    known = {overlap.head.name: int(overlap.known.sum()) for overlap in result.overlaps}
    assert known["colour"] < len(result.entries[0].predicted.samples)  # unknown labels are in no count
    for overlap in result.overlaps:
        assert sum(overlap.counts.values()) == known[overlap.head.name]


def test_the_test_split_stays_closed(train: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    data = f"folder: {images}, split: {{val: 0.3, test: 0.3}}"
    runs = [train("with-test", data, PROBE), train("with-test-too", data, FIT)]
    before = [(run / "metrics.json").read_text() for run in runs]
    write_comparison(tmp_path / "page.html", compare(runs))
    assert [(run / "metrics.json").read_text() for run in runs] == before


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (3, 9), (12, 12), (0, 24), (5, 20), (30, 12), (400, 431)]
)
def test_mcnemar_is_that_of_scipy(first: int, second: int) -> None:
    right = np.array([True] * first + [False] * second + [True] * 50 + [False] * 7)
    other = np.array([False] * first + [True] * second + [True] * 50 + [False] * 7)
    result = mcnemar(right, other)
    assert (result.only_first, result.only_second) == (first, second)
    assert result.exact == (first + second < EXACT_BELOW)
    if result.exact:
        expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    else:
        expected = stats.chi2.sf(max(0, abs(first - second) - 1) ** 2 / (first + second), 1)
    assert result.p == pytest.approx(expected)
    assert mcnemar(other, right).p == result.p


# Plans


def plans(*steps: str) -> list[Plan]:
    return [parse(f"data: {{folder: photos}}\nsteps: [{text}]\n", "plan.yaml") for text in steps]


def compared(*steps: str) -> dict[str, tuple[str | None, ...]]:
    return {row.path: row.values for row in differences(plans(*steps))}


def test_plans_that_differ_in_values() -> None:
    result = compared("probe, fit: {lr: 1e-3}", "probe, fit: {lr: 2e-3, schedule: cosine}")
    assert result.pop("steps.1.fit.lr") == ("0.001", "0.002")
    assert result.pop("steps.1.fit.schedule.kind")[1] == "cosine"
    assert all(path.startswith("steps.1.fit.schedule.") for path in result)
    assert compared("probe", "probe") == {}


def test_a_default_written_out_is_no_difference() -> None:
    (default,) = plans("fit")
    assert compared("fit", f"fit: {{epochs: {default.steps[0].settings.epochs}}}") == {}


def test_a_step_put_in_between_parts_no_other() -> None:
    result = compared("probe, fit: {lr: 1e-3}", "clean_labels, probe, fit: {lr: 2e-3}", "probe")
    assert result == {
        "steps.+0.clean_labels": (None, "{}", None),
        "steps.1.fit.lr": ("0.001", "0.002", "0.001"),
        "steps.1.fit": ("{lr: 0.001}", "{lr: 0.001}", None),
    }


def test_steps_within_steps_are_matched_too() -> None:
    result = compared(
        "probe, {repeat: {times: 2, steps: [pseudo_label, fit: {lr: 1e-3}]}}",
        "probe, {repeat: {times: 3, steps: [fit: {lr: 1e-3}]}}",
    )
    assert result == {"steps.1.repeat.times": ("2", "3"), "steps.1.repeat.steps.0.pseudo_label": ("{}", None)}


# What is refused


def without_metrics(run: Path) -> None:
    (run / "metrics.json").unlink()


def without_answers(run: Path) -> None:
    for path in run.rglob("predictions.parquet"):
        path.unlink()


def without_labels(run: Path) -> None:
    samples = Samples.read(run / "samples.parquet")
    table = samples.table.with_columns(pl.lit(None, pl.String).alias("label:label"))
    type(samples)(table, samples.space, samples.root).write(run / "samples.parquet")


def with_a_settled_label(run: Path) -> None:
    samples = Samples.read(run / "samples.parquet").part("val")
    id_, label = samples.ids[0], samples.table["label:label"][0]
    table = run.parent / "settled.csv"
    table.write_text(f"image,label\n{id_},{'red' if label != 'red' else 'blue'}\n")
    correct(run, table)


def with_another_image(run: Path) -> None:
    samples = Samples.read(run / "samples.parquet")
    id_ = samples.part("val").ids[0]
    changed = pl.when(pl.col("id") == id_).then(pl.lit(bytes(32))).otherwise(pl.col("hash")).alias("hash")
    type(samples)(samples.table.with_columns(changed), samples.space, samples.root).write(run / "samples.parquet")


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (without_metrics, RunError, "is no finished run"),
        (without_answers, RunError, "predictions of validation images are gone"),
        (without_labels, DataError, "no validation image has a known label"),
        (with_a_settled_label, DataError, "spoilt was validated with other labels than one: 1 of them, such as"),
        (with_another_image, DataError, "spoilt was validated on other images than one: 1 of them, such as"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    one: Path, two: Path, tmp_path: Path, spoil: Any, error: type[Exception], says: str
) -> None:
    spoilt = copied(two, tmp_path / "spoilt")
    spoil(spoilt)
    with pytest.raises(error, match=says):
        compare([one, spoilt])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("folder: IMAGES, split: {val: 0.5, seed: 1}", "was validated on other images than one"),
        ("folder: IMAGES, split: {val: 0.25}", "was validated on other images than one"),
        ("table: LABELS, root: IMAGES, HEADS", "has the heads 'colour', 'size', 'tags', and one has 'label'"),
    ],
)
def test_other_images_and_questions_are_refused(
    train: Callable[..., Path], one: Path, images: Path, data: str, says: str, tmp_path: Path
) -> None:
    labels = str(images.parent / "labels.csv")
    data = data.replace("IMAGES", str(images)).replace("LABELS", labels).replace("HEADS", TAGS)
    other = train(f"other-{abs(hash(data))}", data, PROBE)
    result = CliRunner().invoke(cli.app, ["compare", str(one), str(other), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


def test_runs_that_are_none_or_one_or_twice_are_refused(one: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Name at least two"):
        compare([one])
    with pytest.raises(PlanError, match="named twice"):
        compare([one, one / ".." / one.name])
    with pytest.raises(RunError, match="is no finished run"):
        compare([one, tmp_path])


@pytest.mark.parametrize("out", ["", "page.png"])
def test_what_is_no_name_for_a_page_is_refused_before_anything_is_read(tmp_path: Path, out: str) -> None:
    result = CliRunner().invoke(cli.app, ["compare", str(tmp_path), str(tmp_path), "--out", str(tmp_path / out)])
    assert result.exit_code == 2
    assert "is no name for a page" in result.output


# The command and the page


def test_the_command_prints_a_table_and_writes_a_page(
    one: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["compare", str(one), str(two)])
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("accuracy", "one", "two", "McNemar p =", "comparison.html"))
    assert (tmp_path / "comparison.html").exists()
    result = CliRunner().invoke(cli.app, ["compare", str(one), str(two), "--out", "other.html", "--json"])
    record = json.loads(result.stdout)
    assert record["page"] == "other.html"
    assert [run["name"] for run in record["runs"]] == ["one", "two"]
    assert {row["metric"] for row in record["metrics"]} >= {"accuracy", "nll"}
    assert record["answers"][0]["mcnemar"]["p"] <= 1
    assert {"path": "steps.+0.probe", "values": [None, "{size: 32}"]} in record["plans"]


def test_runs_of_one_name_are_distinguished_by_their_paths(one: Path, tmp_path: Path) -> None:
    result = compare([one, copied(one, tmp_path / "one")])
    assert [entry.name for entry in result.entries] == [str(one), str(tmp_path / "one")]


def test_many_runs_and_images_that_are_gone(one: Path, two: Path, tmp_path: Path, images: Path) -> None:
    runs = [one, two, *(copied(one, tmp_path / f"copy-{n}") for n in range(8))]
    text = write_comparison(tmp_path / "page.html", compare(runs)).read_text(encoding="utf-8")
    assert text.count('<div class="row run') == 10 + 9
    shutil.rmtree(tmp_path / "copy-0" / "cache")
    spoilt = Samples.read(tmp_path / "copy-0" / "samples.parquet")
    type(spoilt)(spoilt.table, spoilt.space, tmp_path / "nowhere").write(tmp_path / "copy-0" / "samples.parquet")
    text = write_comparison(tmp_path / "page.html", compare([tmp_path / "copy-0", two])).read_text(encoding="utf-8")
    assert ">gone</span>" in text


def test_heads_of_both_kinds_have_a_page(heads: list[Path], tmp_path: Path) -> None:
    text = write_comparison(tmp_path / "page.html", compare(heads)).read_text(encoding="utf-8")
    assert "over all heads" in text
    assert all(f"<b>{name}</b>" in text for name in ("colour", "size", "tags"))
    assert text.count("is right about some tag") == 2
    assert text.count("Neither is right, each in its own way") == 2  # colour and size: of tags that cannot be
