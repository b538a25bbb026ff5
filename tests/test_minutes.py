"""Runs within minutes, on images and a network that train in a moment."""

import json
import math
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import assay
from assay import cli
from assay.errors import PlanError
from assay.files import RunFolder
from assay.labels.ledger import ALL_EDITS
from assay.metrics.intervals import Metric
from assay.plan.plan import load
from assay.plan.stages import Facts, Speeds
from assay.predictions.predictor import Predictor
from assay.progress import GivenUpError, Lines
from assay.report.gallery import Gallery
from assay.report.sections.overview import headline
from assay.run.budget import Budget, Staging, print_usual
from assay.run.contents import read_run
from assay.run.environment import process_began
from assay.run.label_review import undo
from assay.run.train import Run, train
from assay.training.fit_task import TimeLimit


@pytest.fixture
def plan(colours: Path, tmp_path: Path, plain_runs: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan without steps; a fit ends after two epochs, however much time there is."""
    monkeypatch.setattr("assay.plan.fit_stages.MOST_EPOCHS", 2)
    for module in ("plan.stages", "steps.repeat", "run.conclusions"):  # images by which models can be compared
        monkeypatch.setattr(f"assay.{module}.SMALL_N", 5)
    for module in ("planner", "fit_stages"):
        monkeypatch.setattr(f"assay.plan.{module}.DEFAULT_SIZE", 32)
    path = tmp_path / "plan.yaml"
    model = "model: {backbone: test_efficientnet, weights: none}\nhardware: {precision: fp32, layout: contiguous}\n"
    path.write_text(f"data: {{folder: {colours}}}\n{model}minutes: 10\n")
    return path


def stages(run: Run) -> list[str]:
    return [stage["stage"] for stage in run.record.stages]


class Predicting(Lines):
    """Predicts an image by the model on disk whenever a stage begins."""

    def __init__(self, run: Path, image: Path) -> None:
        super().__init__()
        self.run, self.image, self.answers = run, image, list[int]()

    def line(self, text: str) -> None:
        super().line(text)
        if text.endswith(" are left"):
            predictor = Predictor.untimed(RunFolder(self.run).model.path, device="cpu")
            (answer,) = predictor.stream([("image", self.image)])
            self.answers.append(int(np.isfinite(answer.logits).all()))


def test_a_run_within_minutes_says_what_it_intends_and_what_came_of_it(
    plan: Path, colours: Path, tmp_path: Path
) -> None:
    lines = Predicting(tmp_path / "run", min(colours.rglob("*.png")))
    run = train(plan, run=tmp_path / "run", progress=lines)
    assert lines.answers == [1] * (len(run.record.stages) - 1)  # the model of the stages before
    assert "10 minutes. It is intended:" in lines.lines
    assert any("nothing is known that gains by more of the time" in line for line in lines.lines)
    images = len(run.artifact.saved.learnt_from)
    intended = [line for line in lines.lines if line.startswith("  whole network: ")]
    assert intended
    assert all(line.endswith(f", {images} images at 32 pixels") for line in intended)
    assert stages(run)[:4] == ["probe", "suspect labels", "whole network", "ensemble"]
    assert run.record.stages[2]["gain"] is not None
    shown = [row["label"] for row in headline(read_run(run.folder), Gallery())["rows"]]
    assert shown == ["01-probe", "03-whole network", "04-ensemble", "05-calibration"]
    assert "Of 10 minutes this run used" in str(run)
    carried_out = load(tmp_path / "run/plan.yaml").plan
    kinds = [step.kind for step in carried_out.steps]
    assert carried_out.model.features == "all_stages"
    assert kinds[:4] == ["probe", "clean_labels", "repeat", "repeat"]
    again = Lines()
    assert train(plan, run=tmp_path / "run", progress=again).metrics == run.metrics
    assert any("nothing to do" in line for line in again.lines)


def test_too_few_minutes_finish_the_probe(plan: Path, tmp_path: Path) -> None:
    lines = Lines()
    run = train(plan, run=tmp_path / "run", overrides=["minutes=0.001"], progress=lines)
    assert stages(run) == ["probe", "calibration"]
    (note,) = [line for line in lines.lines if "these minutes are too few" in line]
    assert re.search(r"the probe and the report take \d+ s more\. The probe is finished\.$", note)
    assert any("too few to look for copies" in line for line in lines.lines)
    assert run.artifact.saved.space.width == 3


def test_a_metric_decides_within_minutes_too(plan: Path, tmp_path: Path) -> None:
    given = ["minutes=0.001", "metric=balanced_accuracy"]
    run = train(plan, run=tmp_path / "run", overrides=given)
    assert load(tmp_path / "run/plan.yaml").plan.steps[0].settings.prior == "uniform"
    assert [stage["metric"] for stage in run.record.stages] == ["balanced_accuracy"] * 2
    assert run.record.headline == "balanced_accuracy"


def test_views_are_tried_where_no_fit_is_possible(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.plan.planner.LEAST_FIT", math.inf)
    monkeypatch.setattr("assay.run.prepare.choose_flips", lambda *given: ("both", "as asked"))
    lines = Lines()
    run = train(plan, run=tmp_path / "run", progress=lines)
    assert stages(run)[:2] == ["probe", "views"]  # nothing would learn from repaired labels
    assert any(line.startswith("  4 views of an image: accuracy better by ") for line in lines.lines)
    assert load(tmp_path / "run/plan.yaml").plan.steps[1].kind == "tune_views"


def label_few(plan: Path, colours: Path) -> None:
    """Take the labels of most images from the data of a plan."""
    images = sorted(colours.rglob("*.png"))
    rows = [f"{image},{image.parent.name if number % 15 < 6 else ''}" for number, image in enumerate(images)]
    path = plan.with_name("few.csv")
    path.write_text("\n".join(["image,label", *rows, ""]))
    table = f"table: {path}, root: {colours}, image: image, heads: {{label: {{column: label}}}}"
    plan.write_text(plan.read_text().replace(f"folder: {colours}", table))


def test_few_labels_are_fitted_first_and_the_model_of_an_epoch_is_that_of_the_run(
    plan: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.plan.fit_stages.LABELLED_EPOCHS", 2)
    hand_on = Staging._hand_on

    def and_forget(staging: Staging, **given: Any) -> None:  # how good it was: the first epoch is better
        hand_on(staging, **given)
        staging.best.clear()

    monkeypatch.setattr(Staging, "_hand_on", and_forget)
    images = sorted(colours.rglob("*.png"))
    label_few(plan, colours)
    lines = Predicting(tmp_path / "run", images[0])
    run = train(plan, run=tmp_path / "run", progress=lines)
    assert stages(run)[:4] == ["probe", "suspect labels", "labelled images", "pseudo-labels"]
    fit = load(tmp_path / "run/plan.yaml").plan.steps[2].settings
    assert (fit.keep, fit.epochs) == ("last", 2)
    assert lines.answers == [1] * (len(run.record.stages) - 1)


@pytest.mark.parametrize(
    ("metric", "before", "values", "kept"),
    [("accuracy", 0.5, [0.4, 0.9, 0.7], [0.9]), ("nll", 0.5, [0.6, 0.2, 0.3], [0.2])],
)
def test_the_model_of_an_epoch_is_that_of_the_run_where_it_is_better_by_the_metric_of_the_plan(
    metric: str, before: float, values: list[float], kept: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging: Any = Staging.__new__(Staging)
    staging.choice = SimpleNamespace(plan_with=lambda steps: SimpleNamespace(metric=metric))
    staging.budget, staging.context = SimpleNamespace(decided=[]), SimpleNamespace(run=RunFolder(tmp_path))
    staging.best = {metric: before}
    handed_on: list[float] = []
    monkeypatch.setattr("assay.run.budget.load_model", lambda path: None)
    monkeypatch.setattr("assay.run.budget.replace_model", lambda *given: handed_on.append(staging.best[metric]))
    for value in values:
        staging.after_epoch("03-fit", {"best": True, "validation": {"loss": 0.1, metric: value}})
    assert handed_on == kept


def test_a_worse_epoch_after_a_kill_does_not_replace_what_was_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that goes on has decided nothing yet, and asks what is best so far."""
    staging: Any = Staging.__new__(Staging)
    staging.choice = SimpleNamespace(plan_with=lambda steps: SimpleNamespace(metric="accuracy"))
    staging.budget, staging.context, staging.best = (
        SimpleNamespace(decided=[]),
        SimpleNamespace(run=RunFolder(tmp_path)),
        {},
    )
    handed_on: list[float] = []
    monkeypatch.setattr(Staging, "_hand_on", lambda self, before: self.best.update(accuracy=0.9))
    monkeypatch.setattr("assay.run.budget.load_model", lambda path: None)
    monkeypatch.setattr("assay.run.budget.replace_model", lambda *given: handed_on.append(staging.best["accuracy"]))
    for step, value in [
        ("02-fit", 0.8), ("03-repeat/round-1/01-fit", 0.92), ("04-clean_labels/fold-1/01-fit", 0.99), ("02-fit", 0.91),
    ]:  # fmt: skip
        staging.after_epoch(step, {"best": True, "validation": {"accuracy": value}})
    assert handed_on == [0.92]


class Ending(Lines):
    """Ends the run after the first epoch, as a kill would."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run, self.models = run, 0

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.models = len(list(self.run.glob("model/spec.json")))
        raise GivenUpError


def test_a_run_that_ended_early_goes_on_with_its_stages_and_its_time(plan: Path, tmp_path: Path) -> None:
    ended = Ending(tmp_path / "run")
    with pytest.raises(GivenUpError):
        train(plan, run=tmp_path / "run", progress=ended)
    assert ended.models == 1  # while the network is trained, the run has the model of the probe at least
    budget = RunFolder(tmp_path / "run").budget
    record = json.loads(budget.read_text())
    budget.write_text(json.dumps({**record, "spent": 100.0}))
    lines = Lines()
    run = train(plan, run=tmp_path / "run", progress=lines)
    assert stages(run)[:3] == ["probe", "suspect labels", "whole network"]
    assert run.record.stages[2]["intended"] == round(record["stages"][2]["seconds"], 1)
    assert any(line.startswith("10 minutes, 1:40 min of them spent before") for line in lines.lines)
    assert sum("done before, kept" in line for line in lines.lines) == 2
    assert run.record.seconds > 100


class Epochs(Lines):
    """Keeps the numbers of the epochs that end."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs = list[int]()

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.epochs.append(row["epoch"])


def live_until_killed(plan: Path, run: Path) -> None:
    """Train within minutes as the fixture `plan` has it, and die in the second epoch of the whole network."""
    from assay.plan import fit_stages, planner
    from assay.plan import stages as of_plan
    from assay.run import train as run_module
    from assay.steps import repeat
    from assay.training import processes

    fit_stages.MOST_EPOCHS, fit_stages.DEFAULT_SIZE, planner.DEFAULT_SIZE = 2, 32, 32
    of_plan.SMALL_N = repeat.SMALL_N = 5
    run_module.baselines = lambda *given, **options: {}
    step = processes.Machine.optimizer_step

    def deadly(*given: Any, **options: Any) -> Any:
        if list(run.glob("steps/*repeat/round-1/01-fit/checkpoint.safetensors")):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*given, **options)

    processes.Machine.optimizer_step = deadly
    run_module.train(plan, run=run, device="cpu")


def test_a_run_within_minutes_that_is_killed_has_a_model_and_goes_on(
    plan: Path, colours: Path, tmp_path: Path, forks: ForkServerContext
) -> None:
    process = forks.Process(target=live_until_killed, args=(plan, tmp_path / "run"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    predictor = Predictor.untimed(RunFolder(tmp_path / "run").model.path, device="cpu")
    (answer,) = predictor.stream([("image", min(colours.rglob("*.png")))])
    assert np.isfinite(answer.logits).all()
    record = json.loads(RunFolder(tmp_path / "run").budget.read_text())
    lines = Epochs()
    run = train(plan, run=tmp_path / "run", device="cpu", progress=lines)
    decided = [stage["name"] for stage in record["stages"]]
    assert decided == stages(run)[: len(decided)] == ["probe", "suspect labels", "whole network"]
    assert any(re.match(r"10 minutes, \d+ s of them spent before\. It is intended:", line) for line in lines.lines)
    assert lines.epochs[0] == 2
    assert run.record.seconds > record["spent"] > 0


def test_steps_that_an_undone_edit_makes_run_again_have_their_minutes(
    plan: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.plan.fit_stages.LABELLED_EPOCHS", 2)
    gain = Metric(0.1, 18, 0.05, 0.15)  # by which all images are labelled
    monkeypatch.setattr("assay.steps.pseudo_label.gain_of_mixture", lambda *given, **options: gain)
    label_few(plan, colours)
    train(plan, run=tmp_path / "run")
    budget = RunFolder(tmp_path / "run").budget
    budget.write_text(json.dumps({**json.loads(budget.read_text()), "spent": 600.0}))
    undo(tmp_path / "run", replace(ALL_EDITS, step="04-repeat"))
    lines = Epochs()
    after = train(plan, run=tmp_path / "run", progress=lines)
    assert any("minutes anew" in line for line in lines.lines)
    assert lines.epochs[-1] == 2
    assert 0 < after.record.seconds < 600


def test_another_plan_in_the_folder_is_kept_whole(plan: Path, tmp_path: Path) -> None:
    train(plan, run=tmp_path / "run", overrides=["minutes=0.02"])
    train(plan, run=tmp_path / "run")
    before, after = tmp_path / "run/history/run-1", tmp_path / "run"
    steps = [len(load(folder / "plan.yaml").plan.steps) for folder in (before, after)]
    assert steps[0] == 2 < steps[1]
    assert json.loads((before / "budget.json").read_text())["seconds"] == pytest.approx(1.2)


@pytest.mark.parametrize("minutes", ["0", "-1", "abc", "nan", "inf"])
def test_no_length_of_time_is_refused_before_anything_is_read(minutes: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["train", str(tmp_path), f"--minutes={minutes}"])
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"assay: --minutes {minutes}: is no length of time. Give a number above 0, such as 0.5 or 10.\n"
    )


@pytest.mark.parametrize("minutes", [0, -1.0, math.nan, math.inf, "abc"])
def test_no_length_of_time_is_refused_in_python_too(minutes: Any, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="minutes"):
        assay.train(tmp_path, run=tmp_path / "run", minutes=minutes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--set", "minutes=0"], "--set minutes=0: minutes is 0; it must be greater than 0."),
        (["--metric", "accurac"], "assay: --metric accurac: is none of accuracy, balanced_accuracy, "),
        (["--metric", "accurac"], "mean_average_precision, nll. Did you mean 'accuracy'?\n"),
        (["--metric", ""], "--metric : is none of accuracy, "),
        (["--set", "metric=accurac"], '--set metric=accurac: metric is "accurac"; it must be'),
        (["--metric", "mean_average_precision"], "mean_average_precision: the labels of this data do not define it"),
    ],
)
def test_no_minutes_and_a_metric_that_is_none_or_that_no_head_has_are_refused(
    options: list[str], expected: str, colours: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(cli.app, ["train", str(colours), "--run", str(tmp_path / "run"), *options])
    assert (result.exit_code, expected in result.stderr) == (2, True), result.stderr


def test_minutes_are_refused_where_several_processes_train() -> None:
    prepared: Any = SimpleNamespace(context=SimpleNamespace(processes=SimpleNamespace(num_processes=2)))
    with pytest.raises(PlanError, match="minutes: one process decides as it goes, and this run has several"):
        Staging(prepared, choice=None, budget=None)  # type: ignore[arg-type]


def test_a_plan_of_no_minutes_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("data: {folder: photos}\nminutes: 0\n")
    result = CliRunner().invoke(cli.app, ["train", str(path), "--run", str(tmp_path / "run")])
    assert (result.exit_code, "line 2: minutes is 0; it must be greater than 0." in result.stderr) == (2, True)


def test_a_clock_that_is_set_meanwhile_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget.open(RunFolder(tmp_path), 600, time.monotonic())
    assert budget.clock is TimeLimit(0.0).clock is time.monotonic
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert 0 <= budget.spent < 600


def test_the_default_plan_says_what_it_takes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, speeds = Facts(labelled=1_000, unlabelled=0, validation=0), Speeds(0.003, 0.02, 0.007, 0.001)
    monkeypatch.setattr("assay.run.budget._measured", lambda facts, state, context: (facts, speeds))
    lines = Lines()
    prepared: Any = SimpleNamespace(
        choice=SimpleNamespace(facts=facts), state=None, context=SimpleNamespace(progress=lines)
    )
    print_usual(prepared)
    assert lines.lines == [
        "  intended: probe 4 s, suspect labels 10 s, whole network 2:40 min; about 2:54 min before metrics and report. "
        "`--minutes` sets another budget"
    ]
    print_usual(SimpleNamespace(choice=None))  # type: ignore[arg-type]
    assert len(lines.lines) == 1  # a plan that names its steps


@pytest.mark.parametrize(
    ("text", "began"), [(f"7 (a) b) S {'0 ' * 18}9000 0", 30.0), ("7 (python) S 0", None), (None, None)]
)
def test_minutes_count_from_the_start_of_the_process(
    text: str | None, began: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat, clocks = tmp_path / "stat", {"clock_gettime": lambda clock: 100.0, "monotonic": lambda: 40.0}
    monkeypatch.setattr("assay.run.environment.time", SimpleNamespace(CLOCK_BOOTTIME=7, **clocks))
    monkeypatch.setattr("assay.run.environment.os", SimpleNamespace(sysconf=lambda name: 100))
    if text is not None:
        stat.write_text(text)
    assert process_began(stat) == began


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--recipe", "multi-label-fast"], "minutes chooses the steps, and the plan names its own"),
        (["--set", "steps.1.fit.lr=1"], "minutes chooses the steps as it goes"),
    ],
)
def test_minutes_and_steps_exclude_each_other(more: list[str], expected: str, colours: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["train", str(colours), "--run", str(tmp_path / "run"), "--minutes=1", *more])
    assert result.exit_code == 2
    assert expected in result.stderr
    assert not (tmp_path / "run").exists()
