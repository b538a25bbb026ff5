"""Undoing and correcting what stands in the ledger of a run, and what training again makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

import assay
from assay import cli
from assay.errors import DataError
from assay.labels.ledger import Ledger, Selection
from assay.labels.samples import Samples
from assay.progress import Lines
from assay.run.environment import lock
from assay.steps import STEPS
from fake_steps import RELABEL

PROBE = "probe: {size: 32}"


class Project:
    """A plan of these steps, trained in the folder `run`."""

    def __init__(self, folder: Path, text: Callable[..., str]) -> None:
        self.folder, self.run, self._text = folder, folder / "run", text

    def train(self, *steps: str, **parts: str) -> list[str]:
        """Train, again too; the names of the steps that really ran."""
        (self.folder / "plan.yaml").write_text(self._text(*steps, **parts))
        progress = Lines()
        assay.train(self.folder / "plan.yaml", run=self.run, device="cpu", progress=progress)
        self.said = progress.lines
        return [line for line in progress.lines if line.startswith("0") and ":" not in line]

    @property
    def ledger(self) -> Ledger:
        return Ledger.read(self.run / "ledger.csv")

    @property
    def metrics(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.run / "metrics.json").read_text())
        return record

    def command(self, *arguments: str | Path) -> Result:
        return CliRunner().invoke(cli.app, ["ledger", str(self.run), *map(str, arguments)])

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.run.rglob("*") if path.is_file()}


@pytest.fixture
def project(
    tiny_plan: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_runs: None
) -> Project:
    monkeypatch.setitem(STEPS, "relabel", RELABEL)
    return Project(tmp_path, tiny_plan)


def test_edits_are_listed_and_counted(project: Project) -> None:
    project.train("relabel: {count: 4}", PROBE)
    record = json.loads(project.command("--json").stdout)
    assert record["counts"] == [{"step": "01-relabel", "action": "set", "edits": 4, "undone": 0}]
    assert [edit["line"] for edit in record["edits"]] == [2, 3, 4, 5]
    assert record["edits"][0].items() >= {"new": "red", "head": "label", "score": 0.9, "undone": False}.items()
    narrowed = json.loads(project.command("--min-score", 0.75, "--class", "red", "--json", "--limit", 1).stdout)
    assert (narrowed["counts"][0]["edits"], len(narrowed["edits"])) == (2, 1)
    printed = project.command("--limit", 2).stdout
    assert "looks like it" in printed
    assert "blue -> red" in printed
    assert "... and 2 more" in printed
    assert "No edits" in project.command("--image", "no such").stdout


def test_an_undone_edit_is_left_out_when_the_same_command_is_given_again(project: Project) -> None:
    steps = (PROBE, "relabel: {count: 3}", PROBE)
    assert project.train(*steps) == ["01-probe", "02-relabel", "03-probe"]
    first, *rest = [edit.id for edit in project.ledger.effective()]
    before = project.metrics
    result = project.command("--image", first, "--undo")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "undone: 1 set by 02-relabel",
        "kept as they are: 01-probe, 02-relabel",
        "To apply it, repeat the `assay train` of this run. Steps that run again: 03-probe",
    ]
    assert project.train(*steps) == ["03-probe"]
    assert [edit.id for edit in project.ledger.effective()] == rest
    assert project.metrics["key"] != before["key"]
    assert list((project.run / "history").rglob("metrics.json"))
    assert project.train(*steps) == []
    undone = json.loads(project.command("--undone", "--json").stdout)["edits"]
    assert [edit["image"] for edit in undone] == [first]
    assert project.train("relabel: {count: 3}", PROBE, "relabel: {count: 3}", PROBE)  # as another step it may
    assert project.train(*steps) == ["01-probe", "02-relabel", "03-probe"]
    assert [edit.id for edit in project.ledger.effective()] == rest  # the step ran anew, and proposed it anew


def test_what_builds_on_an_undone_edit_goes_with_it(project: Project) -> None:
    steps = ("relabel: {count: 1}", "relabel: {count: 40, to: blue}", PROBE)
    project.train(*steps)
    chained = project.ledger.edits(Selection(step="01-relabel"))[0].id
    result = json.loads(project.command("--step", "01-relabel", "--undo", "--json").stdout)
    assert [edit["image"] for edit in result["undone with them"]] == [chained]
    assert result["runs again"] == ["02-relabel", "03-probe"]
    assert project.train(*steps) == ["02-relabel", "03-probe"]


def test_an_edit_undone_in_a_round_runs_what_follows_it_in_that_round(project: Project) -> None:
    steps = (PROBE, "repeat: {times: 2, steps: [relabel: {count: 2}, probe: {size: 32}]}")
    names = [f"02-repeat/round-{number}/{step}" for number in (1, 2) for step in ("01-relabel", "02-probe")]
    assert project.train(*steps) == ["01-probe", "02-repeat", *names]
    image = project.ledger.edits(Selection(step=names[0]))[0].id
    result = json.loads(project.command("--step", names[0], "--image", image, "--undo", "--json").stdout)
    assert result["runs again"] == names[1:]
    assert project.train(*steps) == ["02-repeat", *names[1:]]
    assert image not in [edit.id for edit in project.ledger.of([names[0]]).effective()]
    assert project.train(*steps) == []


def test_a_repeat_that_goes_on_keeps_the_edits_of_the_rounds_done(project: Project) -> None:
    steps = ("repeat: {times: 2, steps: [relabel: {count: 2}, probe: {size: 32}]}",)
    project.train(*steps)
    before = project.ledger.effective()
    for step in ("01-repeat", "01-repeat/round-2/02-probe"):  # as a kill in the last step leaves them
        (project.run / "steps" / step / "done.json").unlink()
    assert project.train(*steps) == ["01-repeat", "01-repeat/round-2/02-probe"]
    assert project.ledger.effective() == before


def test_corrections_win_over_every_step_and_may_change_validation(project: Project, tmp_path: Path) -> None:
    steps = ("relabel: {count: 3}", PROBE)
    project.train(*steps)
    samples = Samples.read(project.run / "samples.parquet")
    image, validated = project.ledger.effective()[0].id, samples.part("val").ids[0]
    (tmp_path / "mine.csv").write_text(f"image,label\n{image},green\n{validated},red\n")
    result = project.command("--correct", tmp_path / "mine.csv")
    assert "2 labels settled" in result.stdout
    assert "run again: 01-relabel, 02-probe" in result.stdout
    assert project.train(*steps) == ["01-relabel", "02-probe"]
    assert project.metrics["settled by a person"]["train"]["labels"] == 1
    assert project.metrics["settled by a person"]["val"]["labels"] == 1
    assert "  labels that a person settled: 1 in train (1 changed), 1 in val (1 changed)" in project.said
    counted = pl.read_csv(project.run / "splits.csv").filter(pl.col("class") == "red")
    assert counted["val"].item() == 4
    made = project.ledger.apply(samples).table
    assert made.filter(id=image)["label:label"].item() == "green"
    support = {row["class"]: row["support"] for row in project.metrics["scores"]["heads"]["label"]["per_class"]}
    assert support["red"] == 4
    assert "0 labels settled" in project.command("--correct", tmp_path / "mine.csv").stdout


def test_corrections_of_a_plan_are_those_of_a_person(project: Project, colours: Path, tmp_path: Path) -> None:
    data = f"folder: {colours}, corrections: mine.csv"
    (tmp_path / "mine.csv").write_text("image,label\nblue/0.png,green\nblue/1.png,\n")
    project.train(PROBE, data=data)
    settled = project.metrics["settled by a person"].values()
    assert (sum(part["labels"] for part in settled), sum(part["changed"] for part in settled)) == (2, 2)
    assert [edit.step for edit in project.ledger.effective()] == ["person", "person"]
    assert project.train(PROBE, data=data) == []
    assert str(tmp_path / "mine.csv") in (project.run / "plan.yaml").read_text()
    (tmp_path / "data.yaml").write_text(f"data: {{{data}}}\n")
    assert assay.read(tmp_path / "data.yaml").table.filter(id="blue/0.png")["label:label"].item() == "green"


BAD = [
    (",02-relabel,blue/0.png,mood,,set,blue,red,,,\n", "line 5: there is no head 'mood'"),
    (",02-relabel,zebra.png,label,,set,blue,red,,,\n", "line 5: there is no image 'zebra.png'"),
    (",person,zebra.png,label,,set,blue,red,,,\n", "line 5: there is no image 'zebra.png'"),
    (",02-relabel,blue/0.png,label,set,blue,red\n", "line 5: 7 cells where a ledger has 11"),
    (None, "line 1: the column 'score' is missing"),
]


@pytest.mark.parametrize(("line", "says"), BAD)
def test_a_ledger_edited_by_hand_is_refused_and_nothing_is_lost(
    line: str | None, says: str, project: Project, tmp_path: Path
) -> None:
    steps = (PROBE, "relabel: {count: 3}")
    project.train(*steps)
    path, text = project.run / "ledger.csv", (project.run / "ledger.csv").read_text()
    path.write_text(text + line if line else text.replace("score,", "", 1))
    (tmp_path / "mine.csv").write_text("image,label\nblue/0.png,green\n")
    before = project.files()
    for options in ((), ("--step", "02-relabel", "--undo"), ("--correct", tmp_path / "mine.csv")):
        result = project.command(*options)
        assert (result.exit_code, says in result.stderr) == (2, True), result.stderr
    with pytest.raises(DataError, match=says):
        project.train(*steps)
    after = project.files()
    for name in before.keys() | after.keys():
        assert name.endswith("log.jsonl") or before[name] == after[name]


def test_a_run_that_is_training_is_left_alone(project: Project, tmp_path: Path) -> None:
    project.train("relabel: {count: 1}", PROBE)
    (tmp_path / "mine.csv").write_text("image,label\nblue/0.png,green\n")
    with lock(project.run):
        for options in (("--undo", "--class", "red"), ("--correct", tmp_path / "mine.csv")):
            result = project.command(*options)
            assert result.exit_code == 2
            assert "another process" in result.stderr
        assert project.command().exit_code == 0  # to look is no harm
    assert len(project.ledger.entries) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--undo",), "of which edits"),
        (("--undo", "--class", "mauve"), "nothing to undo"),
        (("--undo", "--undone", "--class", "red"), "cannot be undone again"),
        (("--correct", "mine.csv", "--class", "red"), "from the table alone"),
        (("--correct", "missing.csv"), "missing.csv"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: tuple[str, ...], says: str, project: Project) -> None:
    project.train("relabel: {count: 1}", PROBE)
    result = project.command(*options)
    assert (result.exit_code, says in result.stderr) == (2, True), result.stderr


def test_a_folder_that_is_no_run_is_refused_and_not_made(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["ledger", str(tmp_path / "none"), "--undo", "--class", "red"])
    assert (result.exit_code, "there is no such folder" in result.stderr) == (2, True)
    assert not (tmp_path / "none").exists()
