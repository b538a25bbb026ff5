from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from rich.table import Table

import assay
from assay.commands.output import MAX_HEADS, Output, metric_blocks
from assay.labels.space import Head, LabelSpace
from assay.messages import plain_lines
from assay.metrics.metrics import score, to_json
from assay.predictions.baselines import majority
from assay.progress import NoProgress
from assay.report.tables import (
    baseline_lines,
    heads_rows,
    heads_table,
    metrics_rows,
    metrics_table,
    per_class_table,
    small_n_line,
    untagged_line,
)
from assay.run.summary import counts_table, split_tables

SPACE = LabelSpace((Head("kind[red]", ("a", "b\n\x1b[31m", "c")), Head("side", ("x", "y"))))


@pytest.fixture(scope="module")
def scores() -> Any:
    r = np.random.default_rng(0)
    codes = [r.integers(0, 3, 50), r.integers(0, 2, 50)]
    right = np.concatenate([np.eye(3)[codes[0]], np.eye(2)[codes[1]]], axis=1) * 0.8 + 0.05
    answers = {"untrained network": majority(SPACE, codes, count=50), "02-fit": right}
    return {name: to_json(score(SPACE, codes, p)) for name, p in answers.items()}


def printed(table: Table, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_baselines_and_steps_stand_side_by_side_in_80_columns(scores: Any) -> None:
    text = printed(metrics_table(scores, title="Validation"))
    assert "1.000 [0.963, 1.000]" in text
    assert "untrained network" in text
    fit = next(line for line in text.splitlines() if "02-fit" in line)
    assert fit.split()[1::3] == ["1.000", "1.000", "50"]


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        (["accuracy", "macro_f1", "micro_f1", "nll"], ["accuracy", "macro_f1"]),
        (["mean_average_precision", "macro_f1", "micro_f1", "nll"], ["micro_f1", "mean_average_precision"]),
        (["macro_f1", "micro_f1", "nll"], ["micro_f1", "macro_f1"]),  # what heads of both kinds share
    ],
)
def test_the_chief_metrics_are_shown(metrics: list[str], shown: list[str]) -> None:
    score = {"metrics": {name: {"value": 0.5, "n": 9, "low": None, "high": None} for name in metrics}, "heads": {}}
    assert list(metrics_rows({"02-fit": score})[0]) == ["step", "n", *shown]
    first = ["nll", next(name for name in shown if name != "nll")]
    assert list(metrics_rows({"02-fit": score}, chief="nll")[0]) == ["step", "n", *first]


def test_rows_are_plain_and_undefined_metrics_are_none(scores: Any) -> None:
    rows = metrics_rows(scores | {"empty": {"metrics": {}, "heads": {}}}, columns=["accuracy"])
    assert json.loads(json.dumps(rows)) == rows
    assert [row["step"] for row in rows] == ["untrained network", "02-fit", "empty"]
    assert rows[2]["accuracy"] is None
    assert "–" in printed(metrics_table(scores | {"empty": {"metrics": {}, "heads": {}}}))


def test_names_do_not_steer_the_terminal(scores: Any) -> None:
    text = printed(heads_table(scores["02-fit"]))
    assert "kind[red]" in text
    text = printed(per_class_table(scores["02-fit"]["heads"]["kind[red]"]["per_class"]))
    assert r"b\n\x1b[31m" in text
    assert "\x1b" not in text


def test_many_classes_show_those_of_lowest_f1(scores: Any) -> None:
    rows = scores["untrained network"]["heads"]["kind[red]"]["per_class"]
    text = printed(per_class_table(rows, most=1))
    assert "1 classes of lowest F1, of 3" in " ".join(text.split())


def test_a_class_without_a_image_has_no_metrics_and_is_not_the_lowest() -> None:
    row = {"class": "a", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    rows = [row, row | {"class": "b", "f1": 0.25, "support": 3}]
    lines = plain_lines(per_class_table(rows, head="kind"))
    assert [line.split() for line in lines if "a " in line] == [["a", "–", "–", "–", "0"]]
    never = row | {"precision": None, "support": 3}
    (line,) = (line for line in plain_lines(per_class_table([never], head="kind")) if "a " in line)
    assert line.split() == ["a", "–", "0.000", "0.000", "3"]
    assert lines[0].split() == ["kind", "precision", "recall", "F1", "support"]
    assert not any(line.startswith(" a ") for line in plain_lines(per_class_table(rows, most=1)))


def frequencies(
    head: str,
    classes: list[str | None] | list[str],
    train: list[int],
    val: list[int],
    shares: list[float | None] | list[float] | pl.Series,
) -> pl.DataFrame:
    zeros = [0] * len(classes)
    columns = {"head": [head] * len(classes), "class": classes, "train": train, "val": val, "test": zeros}
    nothing = pl.Series([None] * len(classes), dtype=pl.Float64)
    return pl.DataFrame({**columns, "train share": shares, "val share": shares, "test share": nothing})


def test_a_split_table_has_counts_shares_and_sums_of_all() -> None:
    rows = frequencies("kind", ["a", "b", "c"], [10, 2, 3000], [1, 0, 9], [0.0033, 0.0007, 0.996])
    lines = [line.split() for line in plain_lines(counts_table(rows, most=2))]
    assert lines[0] == ["kind", "train", "%", "val", "%"]  # nothing is in test
    assert lines[2:] == [
        ["a", "10", "0.3", "1", "0.3"],
        ["b", "2", "0.1", "0", "0.1"],
        ["all", "3,012", "10"],
        ["The", "2", "rarest", "classes,", "of", "3."],
    ]


def test_a_split_table_of_tags_ends_with_the_images_without_one() -> None:
    tags = frequencies("t\x1bags", ["p", None], [3, 40], [0, 9], [0.07, None])
    unknown = frequencies("kind", ["a"], [0], [0], pl.Series([None], dtype=pl.Float64))
    first, second = [
        [line.split() for line in plain_lines(table)] for table in split_tables(pl.concat([tags, unknown]))
    ]
    assert first[0][0] == r"t\x1bags"
    assert first[2:] == [["p", "3", "7.0", "0", "7.0"], ["no", "tag", "40", "–", "9", "–"]]
    assert second[2:] == [["a", "0", "–"], ["all", "0"]]


def test_images_without_a_tag_are_told_on_one_line() -> None:
    found = {"tags": {"train": {"share": 0.125, "n": 1200}, "val": {"share": 0.1, "n": 300}}, "more": {}}
    assert untagged_line(found).endswith("tags: 12.5 % of 1,200 in train, 10.0 % of 300 in val; more: not known of any")


def test_the_last_score_is_shown_by_class_and_a_baseline_with_its_share(
    scores: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    untagged = {"tags": {"train": {"share": 0.5, "n": 10}}}
    majority = scores["untrained network"] | {"without a tag": untagged}
    Output(NoProgress(), as_json=False).print(None, metric_blocks({"majority": majority, **scores}))
    text = capsys.readouterr().out
    assert "tags: 50.0 % of 10 in train" in text
    assert text.count("02-fit, by class") == 1
    assert "untrained network, by class" not in text
    x = next(line.split() for line in text.splitlines() if line.strip().startswith("x "))
    assert x[1:7] == ["1.000", "[0.845,", "1.000]", "1.000", "[0.845,", "1.000]"]  # 21 of 21


def test_heads_stand_beside_the_majority(scores: Any) -> None:
    rows = heads_rows(scores["02-fit"], majority=scores["untrained network"])
    assert list(rows[0]) == ["head", "n", "accuracy", "balanced_accuracy", "majority"]
    assert [row["majority"]["value"] for row in rows] == [
        head["metrics"]["accuracy"]["value"] for head in scores["untrained network"]["heads"].values()
    ]
    assert "balanced accuracy" in printed(heads_table(scores["02-fit"], majority=scores["untrained network"]))


def test_few_images_are_too_few_to_judge_by(scores: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert [small_n_line(n) for n in (0, 30, 500)] == [""] * 3
    assert small_n_line(12).startswith("n = 12 is too small to judge by: one image is 8.3 points")
    twelve = to_json(score(SPACE, [np.zeros(12, int), np.zeros(12, int)], np.tile([1.0, 0, 0, 1, 0], (12, 1))))
    Output(NoProgress(), as_json=False).print(None, metric_blocks({"02-fit": twelve}))
    text = capsys.readouterr().out
    assert "n = 12 is too small to judge by" in text
    assert "1.000 [0.758, 1.000]" in text  # 12 of 12
    assert "too few to judge them by" in text
    Output(NoProgress(), as_json=False).print(None, metric_blocks({"02-fit": scores["02-fit"]}))
    assert "too small" not in capsys.readouterr().out


def test_what_baselines_are_for_stands_beside_them(scores: Any) -> None:
    checked = {"leak check": {"largest difference": 0.0, "passed": True}}
    lines = baseline_lines({"majority": scores["02-fit"], "zero images": scores["02-fit"] | checked, "02-fit": {}})
    assert [line.split(":")[0].strip() for line in lines[:2]] == ["majority", "zero images"]
    assert lines[2].startswith("Leak check passed")


def test_of_many_heads_some_are_shown_by_class(scores: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one = scores["02-fit"]["heads"]["side"]
    heads = {f"h{number}": one for number in range(8)}
    Output(NoProgress(), as_json=False).print(None, metric_blocks({"02-fit": scores["02-fit"] | {"heads": heads}}))
    text = capsys.readouterr().out
    assert text.count("support") == MAX_HEADS == 6
    assert "The classes of the other 2 heads are in the metrics that --json prints." in text


def test_a_run_says_and_saves_how_its_classes_are_split(tiny_plan: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(tiny_plan("probe: {size: 32}"))
    run = assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    said = [json.loads(line)["line"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
    rows = [line.split() for line in said if line.split()[:1] in (["label"], ["red"], ["all"])]
    assert rows == [["label", "train", "%", "val", "%"], ["red", "12", "33.3", "3", "33.3"], ["all", "36", "9"]]
    saved = pl.read_csv(run.folder / "splits.csv")
    assert saved.filter(pl.col("class") == "red").rows()[0][:5] == ("label", "red", 12, 3, 0)


def test_no_rows_no_crash() -> None:
    assert "step" in printed(metrics_table({}))
