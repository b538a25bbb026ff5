"""Trackers: told of every epoch once, also across kills, and no part of what a run does."""

from __future__ import annotations

import json
import os
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import assay
from assay.errors import PlanError, RunError
from assay.plan.plan import json_schema, parse, to_yaml
from assay.progress import Lines
from assay.run import tracking
from assay.run.tracking import TrackerState, epoch_values
from assay.steps.history import read_history

FITS = ("fit: {size: 32, freeze: backbone, epochs: 2, batch: 8}", "fit: {size: 32, epochs: 2, batch: 16, lr: 1e-3}")
NAMES = ["01-fit", "02-fit"]


@pytest.fixture
def train(plain_runs: None, tiny_plan: Callable[..., str], tmp_path: Path) -> Callable[..., Path]:
    """Train two fits with these trackers; the lines that are said are kept in `train.said`."""

    def trained(track: str = "", run: str = "run", fits: tuple[str, str] = FITS) -> Path:
        plan = tiny_plan(*fits) + (f"track: {track}\n" if track else "")
        (tmp_path / "plan.yaml").write_text(plan)
        progress = Lines()
        trained.said = progress.lines
        return assay.train(tmp_path / "plan.yaml", run=tmp_path / run, device="cpu", progress=progress).folder

    return trained


def events(run: Path) -> dict[str, dict[int, list[float]]]:
    """What TensorBoard was told: name -> step -> values."""
    read = EventAccumulator(str(run / "track" / "tensorboard"), purge_orphaned_data=False, size_guidance={"scalars": 0})
    read.Reload()
    by_name: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in read.Tags()["scalars"]:
        for event in read.Scalars(name):
            by_name[name][event.step].append(event.value)
    return by_name


def histories(run: Path) -> dict[str, dict[int, float]]:
    """What the histories hold, under the same names, epochs counted on over the fits."""
    by_name: dict[str, dict[int, float]] = defaultdict(dict)
    before = 0
    for fit in NAMES:
        history = read_history(run / "steps" / fit / "history.csv")
        for row in history.iter_rows(named=True):
            name = f"{fit}/lr" if row["name"] == "lr" else f"{fit}/{row['part']}/{row['name']}"
            if row["name"] != "seconds":
                by_name[name][before + row["epoch"]] = row["value"]
        before += history["epoch"].max()
    return by_name


def require_all_logged(run: Path) -> None:
    logged, wanted = events(run), histories(run)
    assert logged.keys() == wanted.keys()
    for name, values in wanted.items():
        assert {step: value[0] for step, value in logged[name].items()} == pytest.approx(values, rel=1e-6), name
        assert all(len(set(value)) == 1 for value in logged[name].values())


def keys(run: Path) -> list[str]:
    return [json.loads((run / "steps" / fit / "done.json").read_text())["key"] for fit in NAMES]


def test_every_epoch_is_logged_with_the_name_of_the_fit(train: Callable[..., Path]) -> None:
    run = train("tensorboard")
    require_all_logged(run)
    logged = events(run)
    assert {"01-fit/training/loss", "01-fit/validation/accuracy", "02-fit/lr"} <= logged.keys()
    assert list(logged["01-fit/lr"]) == [1, 2]
    assert list(logged["02-fit/lr"]) == [3, 4]
    assert (next((run / "track" / "tensorboard").glob("*/hparams.yml"))).read_text().count("steps/1/fit/lr: 0.001") == 1


def test_a_tracked_run_is_the_same_run(train: Callable[..., Path]) -> None:
    run, plain = train("tensorboard"), train(run="plain")
    assert keys(run) == keys(plain)
    made = (plain / "metrics.json").stat()
    train("[tensorboard]", run="plain")
    assert any("nothing to do" in line for line in train.said)
    assert (plain / "metrics.json").stat().st_mtime_ns == made.st_mtime_ns
    assert not (plain / "history").exists()
    assert not (plain / "track").exists()  # there was nothing to tell
    assert "track: [tensorboard]" in (plain / "plan.yaml").read_text()


@pytest.mark.parametrize(
    "moment", ["before the checkpoint", "before it is told", "after it is told", "before it is noted"]
)
def test_a_killed_run_logs_every_epoch_once(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed in the second epoch of each fit, so after one that was told of."""
    from assay.training import loop

    left = [2]

    def killing(function: Any, *, before: bool) -> Any:
        def dying(*given: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and before:
                raise KeyboardInterrupt
            result = function(*given, **options)
            if left[0] == 0:
                raise KeyboardInterrupt
            return result

        return dying

    where, name, before = {
        "before the checkpoint": (loop.Checkpoint, "write", True),
        "before it is told": (loop.Checkpoint, "write", False),
        "after it is told": (tracking.TrackerProgress, "_log", False),
        "before it is noted": (tracking.TrackerProgress, "_write", True),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, killing(getattr(where, name), before=before))
        with pytest.raises(KeyboardInterrupt):
            train("tensorboard")
        left[0] = 2
        with pytest.raises(KeyboardInterrupt):
            train("tensorboard")
    require_all_logged(train("tensorboard"))


def test_another_plan_in_the_same_folder_is_logged_after_it(train: Callable[..., Path]) -> None:
    run = train("tensorboard")
    train("tensorboard", fits=(FITS[0], FITS[1].replace("1e-3", "1e-2")))
    logged = events(run)
    assert list(logged["01-fit/lr"]) == [1, 2]  # kept, so not told again
    assert list(logged["02-fit/lr"]) == [3, 4, 5, 6]


# Others, by doubles of their trackers


class Recorder:
    """A tracker that keeps what it is told."""

    made: list[Recorder]
    failing = False

    def __init__(self, run: Path, logged: TrackerState) -> None:
        self.name, self.rows, self.plan, self.finished = "double", [], {}, False
        type(self).made.append(self)

    def start(self) -> None:
        self.started = True

    def store_init_configuration(self, values: Any) -> None:
        self.plan = values

    def log(self, values: Any, step: Any) -> None:
        if self.failing:
            raise ConnectionError("no server there")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Double(Recorder):
        made: list[Recorder] = []  # noqa: RUF012

    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(tracking.TRACKERS, name, Double)
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    return Double


def test_several_trackers_log_the_same_and_end_with_the_run(train: Callable[..., Path], recorder: Any) -> None:
    train("[tensorboard, wandb]")
    (double,) = recorder.made
    assert [step for step, _ in double.rows] == [1, 2, 3, 4]
    assert double.plan["model/backbone"] == "test_efficientnet"
    assert double.finished


def test_a_tracker_that_fails_later_ends_no_run_and_is_reported(train: Callable[..., Path], recorder: Any) -> None:
    recorder.failing = True
    run = train("wandb")
    assert (run / "metrics.json").exists()
    assert sum("this epoch was not logged (no server there)" in line for line in train.said) == 4
    assert recorder.made[0].finished


def test_a_tracker_that_cannot_begin_stops_the_run_which_goes_on_without_it(
    train: Callable[..., Path], recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise ConnectionError("no account")

    monkeypatch.setattr(recorder, "start", refuse)
    with pytest.raises(RunError, match="track: wandb: it could not begin \\(no account\\)"):
        train("wandb")
    run = train()
    assert read_history(run / "steps" / "01-fit" / "history.csv")["epoch"].max() == 2


@pytest.mark.parametrize(("name", "install"), tracking.INSTALL.items())
def test_what_is_not_installed_is_refused_before_anything_is_read(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, install: Any
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda wanted: None)
    monkeypatch.setattr("assay.run.prepare.read", pytest.fail)
    with pytest.raises(PlanError, match="it is not installed") as refused:
        train(name)
    assert install in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Accelerate's trackers replaced by what they are given; mlflow by what it is told of its store."""
    given = {}
    monkeypatch.setattr(
        "accelerate.tracking.WandBTracker", lambda *args, **options: given.update(options, project=args[0])
    )
    monkeypatch.setattr("accelerate.tracking.MLflowTracker", lambda *args, **options: given.update(options))

    def set_uri(uri: str) -> None:
        given.update(uri=uri)
        os.environ["MLFLOW_TRACKING_URI"] = uri  # as mlflow does, for what it starts

    store = types.SimpleNamespace(set_tracking_uri=set_uri)
    monkeypatch.setitem(sys.modules, "mlflow", store)
    for name in (
        "WANDB_MODE",
        "WANDB_PROJECT",
        "WANDB_ERROR_REPORTING",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_DISABLE_TELEMETRY",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return given


def test_nothing_leaves_the_machine_unless_the_environment_says_so(
    doubled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.TRACKERS["wandb"](tmp_path / "photos", TrackerState(id="abc"))
    assert (doubled["mode"], doubled["id"], doubled["project"], doubled["resume"]) == ("offline", "abc", "assay", None)
    assert doubled["dir"] == str(tmp_path / "photos" / "track")
    tracking.TRACKERS["mlflow"](tmp_path / "photos", TrackerState(begun={"mlflow": "7"}))
    assert doubled["uri"] == f"sqlite:///{tmp_path / 'photos' / 'track' / 'mlflow.db'}"
    assert doubled["run_id"] == "7"
    assert doubled["logging_dir"] == (tmp_path / "photos" / "track" / "mlflow").as_uri()
    tracking.TRACKERS["mlflow"](tmp_path / "second", TrackerState())
    assert doubled["uri"] == f"sqlite:///{tmp_path / 'second' / 'track' / 'mlflow.db'}"
    assert tracking.os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert tracking.os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_what_the_environment_says_holds(doubled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    tracking.TRACKERS["wandb"](tmp_path, TrackerState())
    assert (doubled["mode"], doubled["project"], doubled["resume"]) == ("online", "mine", "allow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    tracking.TRACKERS["mlflow"](tmp_path, TrackerState())
    assert "uri" not in doubled
    assert doubled["logging_dir"] is None


# The plan


@pytest.mark.parametrize("track", ["tensorboard", "[tensorboard, mlflow]", "[]"])
def test_one_tracker_or_a_list(track: str) -> None:
    plan = parse(f"data: {{folder: photos}}\ntrack: {track}\n", "plan.yaml")
    assert parse(to_yaml(plan), "plan.yaml") == plan
    value = {"data": {"folder": "photos"}, "track": track if track == "tensorboard" else track.strip("[]").split(", ")}
    if track != "[]":
        assert Draft202012Validator(json_schema()).is_valid(value)


def test_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(PlanError, match=r"it must be 'tensorboard', 'mlflow' or 'wandb' \(did you mean tensorboard"):
        parse("data: {folder: photos}\ntrack: tensorbord\n", "plan.yaml")


def test_names_that_no_tracker_takes_are_changed_and_stay_distinct() -> None:
    row = {
        "epoch": 1,
        "lr": 0.1,
        "validation": {"<b>/accuracy": 1.0, "'b'/accuracy": 2.0, "../nll": 3.0, "x" * 999: 4.0},
    }
    by_name = epoch_values("03-repeat/round-1/02-fit", row)
    assert sorted(by_name.values()) == [0.1, 1.0, 2.0, 3.0, 4.0]
    assert {name for name in by_name if "accuracy" in name} == {
        "03-repeat/round-1/02-fit/validation/_b_/accuracy",
        "03-repeat/round-1/02-fit/validation/_b_/accuracy_",
    }
    assert "03-repeat/round-1/02-fit/validation/_/nll" in by_name
    assert max(map(len, by_name)) < 250
