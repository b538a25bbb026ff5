"""--no-repairs: the chosen steps list suspect labels, change none, add none, and weigh no class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from assay import cli
from assay.labels.ledger import Ledger
from assay.plan.plan import load
from assay.plan.planner import budgeted_stages
from assay.plan.stages import Facts, Speeds
from assay.run.contents import read_run
from factories import write_images

SMALL = ("model.backbone=test_efficientnet", "model.weights=none", "hardware.precision=fp32", "steps.0.probe.size=32")
SMALL += ("steps.1.clean_labels.size=32", "steps.2.fit.size=32", "steps.2.fit.epochs=1")


@pytest.mark.usefixtures("plain_runs")
def test_the_command_lists_suspects_and_leaves_labels_as_they_are(tmp_path: Path) -> None:
    """A fifth of red and green is exchanged, and half of the images have no label: the default plan has two repairs."""
    folder = write_images(tmp_path / "images", each=20)
    for number in range(4):
        for one, other in (("red", "green"), ("green", "red")):
            (folder / one / f"{number}.png").rename(folder / other / f"was-{one}-{number}.png")
    write_images(tmp_path / "more", each=20, seed=1).rename(folder / "unlabelled")
    words = [part for change in SMALL for part in ("--set", change)]
    run = tmp_path / "run"
    result = CliRunner().invoke(
        cli.app, ["train", str(folder), "--no-repairs", "--run", str(run), *words, "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    plan = load(run / "plan.yaml").plan
    assert [step.kind for step in plan.steps] == ["probe", "clean_labels", "fit", "calibrate"]
    assert plan.steps[1].settings.action.kind == "flag"
    assert Ledger.read(run / "ledger.csv").edits() == []
    contents = read_run(run)
    assert contents.samples.table.equals(contents.as_read.table)
    assert (run / "steps/02-clean_labels/suspects.csv").exists()
    assert not list(run.rglob("soft/*.parquet"))


FACTS = Facts(labelled=3_200, unlabelled=2_000, validation=800, side=64)
SPEEDS = Speeds(forward=0.003, training=0.02, upper=0.007, linear=0.0006)


def settings_in(value: Any) -> dict[str, list[Any]]:
    """Return every value under each key, at any depth."""
    held: dict[str, list[Any]] = {}
    for key, inner in value.items() if isinstance(value, dict) else ((None, one) for one in value):
        if key is not None:
            held.setdefault(key, []).append(inner)
        if isinstance(inner, dict | list | tuple):
            for name, values in settings_in(inner).items():
                held.setdefault(name, []).extend(values)
    return held


@pytest.mark.parametrize("per_class", [8.0, 400.0])
@pytest.mark.parametrize("seconds", [20, 260, 900, 7_200])
def test_within_minutes_no_stage_repairs(seconds: float, per_class: float) -> None:
    facts = replace(FACTS, per_class=per_class, repairs=False)
    repaired, plain = (
        settings_in([stage.step for stage in budgeted_stages(one, SPEEDS, seconds)])
        for one in (replace(facts, repairs=True), facts)
    )
    assert not {"pseudo_label", "unlabelled", "rebalance_head"} & plain.keys()
    assert {*map(str, plain.get("action", []))} <= {"flag"}
    assert {*map(str, plain.get("class_weights", []))} <= {"None"}
    assert seconds < 900 or repaired.keys() - plain.keys()
