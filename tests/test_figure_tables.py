from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from assay.evidence.baselines import majority
from assay.evidence.tables import figures_rows, figures_table, heads_table, per_class_table, split_table
from assay.figures.metrics import score, to_json
from assay.labels.space import Head, LabelSpace

SPACE = LabelSpace((Head("kind[red]", ("a", "b\n\x1b[31m", "c")), Head("side", ("x", "y"))))


@pytest.fixture(scope="module")
def scores():
    r = np.random.default_rng(0)
    codes = [r.integers(0, 3, 50), r.integers(0, 2, 50)]
    right = np.concatenate([np.eye(3)[codes[0]], np.eye(2)[codes[1]]], axis=1) * 0.8 + 0.05
    answers = {"untrained network": majority(SPACE, codes, count=50), "02-fit": right}
    return {name: to_json(score(SPACE, codes, p, bootstrap=50)) for name, p in answers.items()}


def printed(table, width=80):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_baselines_and_steps_stand_side_by_side_in_80_columns(scores):
    text = printed(figures_table(scores, title="Validation"))
    assert "1.000 [1.000–1.000]" in text
    assert "untrained network" in text
    fit = next(line for line in text.splitlines() if "02-fit" in line)
    assert fit.split()[1::2] == ["1.000", "1.000", "50"]


def test_rows_are_plain_and_undefined_figures_are_none(scores):
    rows = figures_rows(scores | {"empty": {"figures": {}, "heads": {}}}, columns=["accuracy"])
    assert json.loads(json.dumps(rows)) == rows
    assert [row["step"] for row in rows] == ["untrained network", "02-fit", "empty"]
    assert rows[2]["accuracy"] is None
    assert "–" in printed(figures_table(scores | {"empty": {"figures": {}, "heads": {}}}))


def test_names_do_not_steer_the_terminal(scores):
    text = printed(heads_table(scores["02-fit"]))
    assert "kind[red]" in text
    text = printed(per_class_table(scores["02-fit"]["heads"]["kind[red]"]["per_class"]))
    assert r"b\n\x1b[31m" in text
    assert "\x1b" not in text


def test_many_classes_show_those_of_lowest_f1(scores):
    rows = scores["untrained network"]["heads"]["kind[red]"]["per_class"]
    text = printed(per_class_table(rows, most=1))
    assert "1 classes of lowest F1, of 3" in " ".join(text.split())


def test_split_table_sums_all(scores):
    text = printed(split_table(["a", "b", "c"], {"train": [10, 2, 3000], "val": [1, 0, 9]}, most=2))
    assert "3,012" in text
    assert "3,000" not in text
    assert "2 rarest classes, of 3" in " ".join(text.split())


def test_no_rows_no_crash():
    assert "step" in printed(figures_table({}))
