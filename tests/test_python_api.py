"""The Python API does what the commands do, and its values print as short tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import assay
from assay.errors import RunError
from assay.labels.space import Head, LabelSpace
from assay.predictions.predict import Predictions


@pytest.fixture
def run(tiny_plan: Callable[..., str], tmp_path: Path, plain_runs: None) -> assay.Run:
    steps = ("probe: {size: 32}", "clean_labels: {size: 32, by: neighbours, neighbours: 5}")
    (tmp_path / "plan.yaml").write_text(tiny_plan(*steps))
    return assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")


def test_a_run_lists_suspects_takes_corrections_and_is_compared(run: assay.Run, tmp_path: Path) -> None:
    listed = run.suspects()
    assert listed.columns[:6] == ["image", "head", "class", "given", "suggested", "label"]
    image = pl.read_parquet(run.folder / "samples.parquet").filter(split="train")["id"][0]
    review = run.correct(pl.DataFrame({"image": [image], "label": ["red"]}))
    assert [edit.id for edit in review.corrected] == [entry.edit.id for entry in run.ledger.entries] == [image]
    again = assay.train(tmp_path / "plan.yaml", run=run.folder, device="cpu")
    text = str(assay.compare(again.folder / "history" / "run-1", again))
    assert text.splitlines()[0].split() == ["metric", "run-1", "run"]
    assert "accuracy" in text


def test_a_run_its_metrics_and_predictions_print_as_short_tables(run: assay.Run, colours: Path) -> None:
    lines = str(run).splitlines()
    assert lines[0] == f"run {run.folder}"
    assert any(line.split()[0] == "01-probe" for line in lines)
    assert "training labels" in lines[-1]
    table = str(run.metrics).splitlines()
    assert (table[0].split(), table[2].split()[0]) == (
        ["of", "accuracy", "balanced_accuracy", "macro_f1", "n"],
        "validation",
    )
    predictions = run.predict(sorted(colours.rglob("*.png")))
    shown = str(predictions).splitlines()
    assert (shown[0].split(), shown[-1], len(shown)) == (["image", "label"], "... and 35 more", 13)
    assert max(map(len, [*lines[:-1], *shown])) <= 120


def test_predictions_of_tags_and_unreadable_images_print(tmp_path: Path) -> None:
    space = LabelSpace((Head("tags", ("a", "b"), "multilabel"), Head("day", ("x", "y"))))
    logits = np.array([[4, 4, 0, 9], [-4, -4, 9, 0]], np.float32)
    text = str(Predictions.of(["1.png", "2.png"], space, logits, model=""))
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["1.png", "a", "0.98,", "b", "0.98", "y", "1.00"], ["2.png", "none", "x", "1.00"]
    ]  # fmt: skip


def test_a_run_that_judged_no_labels_says_so(run: assay.Run) -> None:
    del run.metrics["suspects"]
    with pytest.raises(RunError, match="Add the step clean_labels"):
        assay.Run(run.folder, run.metrics).suspects()
