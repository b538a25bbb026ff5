from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from assay import cli
from assay.errors import DataError, PlanError
from assay.metrics.intervals import Metric

METRICS = {"accuracy": {"value": 0.9, "n": 40, "low": 0.8, "high": 0.97}}
HEAD = {"n": 40, "metrics": METRICS, "per_class": [], "confusion": None, "by_frequency": []}
SCORES = {"metrics": METRICS, "heads": {"label": HEAD}}
RUN_RECORD = {
    "scores": SCORES,
    "test": SCORES,
    "baselines": {"majority class": SCORES},
    "steps": [{"name": "01-probe", "scores": SCORES}, {"name": "02-other"}],
}


class Runs(ModuleType):
    """Stands in for the modules that train: notes how it was called, and does what it was told."""

    def __init__(self) -> None:
        super().__init__("assay.run.train")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: BaseException | None = None

    def train(self, source: Path, **settings: Any) -> Any:
        self.calls.append((str(source), settings))
        progress = settings["progress"]
        progress.begin("02-fit", 10)
        progress.advance(5, {"loss": 1.0})
        progress.line("epoch 1  loss 1.000")
        if self.error is not None:
            raise self.error
        progress.end()
        return self.load(settings["run"])

    def load(self, folder: Path) -> Any:
        handed_on = {"step": "01-probe", "better": None, "difference": None}
        given = {"alarms": (), "before": None, "suspects": None, "metric": None, "minutes": None, "corrected": {}}
        record = SimpleNamespace(handed_on=handed_on, not_corrected={}, **given)
        return SimpleNamespace(folder=folder, metrics=RUN_RECORD, record=record)

    def evaluate(self, run: Any, samples: Any, *, tta: Any, strict: bool, progress: Any) -> Any:
        beside = {"tta": {"plain": SCORES, "gain": METRICS, "seconds": {"plain": 1.0, "tta": 2.0}}}
        counts = {
            "n": len(samples),
            "unlabelled": 0,
            "left_out": [],
            "notes": [],
            "trained on": 2,
            "doubt": {"risk": [], "sets": [], "unlike": []},
        }
        return {"scores": SCORES, "validation": SCORES, **counts, **(beside if tta else {})}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    fake = Runs()
    for name in ("assay.commands.api", "assay.run.train"):
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "runs/x"):
        Path(folder).mkdir(parents=True)
    return fake


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def photos(folder: Path, names: str = "ab") -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 20), (number * 9, 0, 0)).save(folder / name / f"{number}.png")
    return folder


def test_train_hands_on_what_was_asked_for_and_says_what_came_of_it(runs: Runs) -> None:
    changes = ["--set", "seed=1", "--set", "model.backbone=x=y"]
    wanted = ["--metric", "macro_f1", "--device", "cpu", "--strict"]
    done = invoke("train", "photos", "--recipe", "quick", *changes, *wanted)
    ((source, settings),) = runs.calls
    del settings["progress"], settings["began"]
    assert source == "photos"
    assert settings == {
        "run": Path("runs/photos"),
        "recipe": "quick",
        "overrides": ("metric=macro_f1", "seed=1", "model.backbone=x=y"),
        "device": "cpu",
        "strict": True,
    }
    assert done.exit_code == 0
    assert done.stdout.startswith("epoch 1  loss 1.000\n")
    rows = re.findall(r"^ *(majority class|01-probe|02-other|test split) .*0\.900.*40", done.stdout, re.MULTILINE)
    assert rows == ["majority class", "01-probe", "test split"]
    assert "assay predict runs/photos IMAGES --out labels.csv" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("source", "run"),
    [
        ("a/photos.v2/", "photos.v2"),
        ("a/labels.csv", "labels"),
        ("a/plan.yaml", "plan"),
        (".", "here"),
        ("a/..", "here"),
    ],
)
def test_the_run_is_called_after_the_data_or_the_plan(
    source: str, run: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "a" / "photos.v2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for file in ("a/labels.csv", "a/plan.yaml"):
        Path(file).touch()
    assert invoke("train", source).exit_code == 0
    assert invoke("train", source, "--run", "there").exit_code == 0
    assert [settings["run"] for _, settings in runs.calls] == [Path("runs") / run, Path("there")]


def test_several_heads_are_listed_and_no_metrics_are_no_error(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUN_RECORD, "test", {"metrics": METRICS, "heads": {"season": HEAD, "scene": HEAD}})
    assert re.search(r"head .*\n.*\n *season .*\n *scene ", invoke("train", "photos").stdout)
    monkeypatch.setitem(RUN_RECORD, "test", None)
    monkeypatch.setitem(RUN_RECORD, "baselines", {})
    monkeypatch.setitem(RUN_RECORD, "steps", [])
    done = invoke("train", "photos")
    assert (done.exit_code, "there are no metrics" in done.stdout) == (0, True)


def test_json_is_one_object_on_stdout_and_the_rest_on_stderr(runs: Runs) -> None:
    done = invoke("train", "photos", "--json")
    assert json.loads(done.stdout) == {"run": "runs/photos", "metrics": RUN_RECORD}
    assert done.stderr == "epoch 1  loss 1.000\n"


def test_a_second_process_says_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    done = invoke("train", "photos")
    assert (done.exit_code, done.output) == (0, "")


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (DataError("photos: no images. Add some."), 2, "assay: photos: no images. Add some."),
        (PlanError("plan.yaml, line 3: eposch"), 2, "line 3: eposch"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (SystemExit(143), 0, "the same command goes on"),
        (ZeroDivisionError("oh"), 1, "ZeroDivisionError: oh"),
    ],
)
def test_exit_codes(error: BaseException, code: int, expected: str, runs: Runs) -> None:
    runs.error = error
    done = invoke("train", "photos")
    assert done.exit_code == code
    assert expected in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)
    assert done.stdout == "epoch 1  loss 1.000\n"


@pytest.mark.parametrize(
    "arguments", [["train"], ["predict", "runs/x", "more/"], ["tarin", "x"], ["train", "x", "--epochs", "3"]]
)
def test_wrong_usage_is_the_users_to_mend(arguments: list[str]) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert "Usage: assay" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *([command.__name__.replace("_", "-"), ""] for command in cli.COMMANDS if "source" in command.__annotations__),
        ["predict", "", "photos", "--out", "x.csv"],
        ["predict", "runs/x", "", "--out", "x.csv"],
        ["compare", "runs/x", ""],
        ["export", "", "--labels", "coco", "--out", "x"],
        ["train", "photos", "--run="],
        ["train", "photos", "--audit", ""],
        ["demo", "--run", ""],
    ],
)
def test_an_empty_path_is_not_the_working_folder(arguments: list[str], runs: Runs) -> None:
    done = invoke(*arguments)
    assert (done.exit_code, "the path is empty. Name one, or . for" in done.stderr) == (2, True), done.output
    assert runs.calls == []


def test_other_options_may_be_empty(runs: Runs) -> None:
    done = invoke("predict", "runs/y", "photos", "--none", "", "--out", "x.csv")
    assert "runs/y: there is no such folder" in done.stderr


class Answers:
    """Stands in for an artifact: every readable image is an owl."""

    def __init__(self, space: Any) -> None:
        networks = [SimpleNamespace(classifier=SimpleNamespace(flip="none"))]
        self.saved = SimpleNamespace(space=space, uncertainty=None, networks=networks)

    def stream(self, images: list[tuple[str, Path]], *, tta: Any, distances: bool, features: bool) -> Iterator[Any]:
        from assay.predictions.predict import Predictions

        for name, path in images:
            row = np.array([[0.25, 0.75]], dtype=np.float32)
            unreadable = {} if path.stat().st_size else {name: "empty file (0 bytes)"}
            yield Predictions([name], self.saved.space, row, row, row[0], "m", unreadable=unreadable)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    from assay.labels.space import Head, LabelSpace
    from assay.predictions.predictor import Predictor

    space, loaded = LabelSpace((Head("label", ("cat", "owl")),)), []

    def load(folder: Path, *, device: str) -> Answers:
        loaded.append((folder, device))
        return Answers(space)

    monkeypatch.setattr(Predictor, "load", load)
    return loaded


def test_predict_writes_every_image_and_names_the_unreadable(model: list[tuple[Path, str]], tmp_path: Path) -> None:
    more = photos(tmp_path / "more", "x")
    (more / "x" / "10.png").touch()
    (tmp_path / "run").mkdir()
    done = invoke("predict", tmp_path / "run", more, "--out", tmp_path / "x.csv", "--device", "cpu")
    assert done.exit_code == 0, done.output
    with open(tmp_path / "x.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["x/0.png", "x/1.png", "x/2.png", "x/10.png"]
    assert [row["label"] for row in rows] == ["owl", "owl", "owl", ""]
    assert "could not be read: 1 file, empty file (0 bytes). 'x/10.png'\n" in done.stdout
    assert "4 images, 1 unreadable" in done.stdout
    assert model == [(tmp_path / "run" / "model", "cpu")]


def test_predict_takes_the_folder_of_a_model_too_and_answers_in_json(
    model: list[tuple[Path, str]], tmp_path: Path
) -> None:
    (tmp_path / "spec.json").touch()
    image = photos(tmp_path / "more", "x") / "x" / "0.png"
    done = invoke("predict", tmp_path, image, "--out", tmp_path / "x.zip", "--top", "1", "--json")
    record = json.loads(done.stdout)
    assert (record["out"], record["images"], record["unreadable"]) == (str(tmp_path / "x.zip"), 1, {})
    assert model[0][0] == tmp_path


@pytest.mark.usefixtures("model")
def test_predict_refuses_in_words(tmp_path: Path) -> None:
    more = photos(tmp_path / "more", "x")
    done = invoke("predict", tmp_path, more, "--out", tmp_path / "x.json")
    assert (done.exit_code, "written as .csv" in done.stderr) == (2, True)
    done = invoke("predict", tmp_path, tmp_path / "none", "--out", tmp_path / "x.csv")
    assert (done.exit_code, "there is no such folder or file" in done.stderr) == (2, True)
    for name in ("plan.yaml", "samples.parquet"):
        (more / name).touch()
    done = invoke("predict", more, more, "--out", tmp_path / "x.csv")
    assert (done.exit_code, "is the folder of a run, not of images" in done.stderr) == (2, True)


def test_evaluate_shows_the_metrics_beside_those_of_validation(runs: Runs, tmp_path: Path) -> None:
    source = photos(tmp_path / "labelled")
    done = invoke("evaluate", "runs/x", source)
    assert done.exit_code == 0, done.output
    assert re.search(r"accuracy(.*\n)*.*validation(.*\n)*.*these images", done.stdout)
    assert "trained on 2 of these 6 images" in done.stdout
    assert json.loads(invoke("evaluate", "runs/x", source, "--json").stdout)["n"] == 6


def test_evaluate_says_what_views_gained_and_cost(runs: Runs, tmp_path: Path) -> None:
    done = invoke("evaluate", "runs/x", photos(tmp_path / "labelled"), "--tta", "flips")
    assert done.exit_code == 0, done.output
    assert re.search(r"these images +0\.900(.*\n)*.*these images, tta +0\.900", done.stdout)
    assert re.search(r"accuracy +\+0\.9000 +\[\+0\.8000, \+0\.9700\] +40", done.stdout)
    assert "Every interval holds 0" not in done.stdout
    assert "They took 2.0 s, the plain images 1.0 s.\n" in done.stdout


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ("flip", "flip"),
        ("{kind: flips, flop: both}", "did you mean flip?"),
        ("{kind: five_crops, share: 1.5}", "less than 1"),
        ("{kind: random, augment: {}}", "augment does nothing"),
        ("[", "broken YAML"),
    ],
)
def test_views_that_cannot_be_are_refused(views: str, expected: str, runs: Runs, tmp_path: Path) -> None:
    done = invoke("evaluate", "runs/x", tmp_path, "--tta", views)
    assert (done.exit_code, expected in done.stderr, "--tta" in done.stderr) == (2, True, True), done.stderr


def test_recipes_are_listed_and_printed() -> None:
    listed = invoke("recipes")
    assert re.search(r"^demo\n    The plan of `assay demo`", listed.stdout, re.MULTILINE)
    assert invoke("recipes", "demo").stdout.startswith("# The plan of `assay demo`")
    records = json.loads(invoke("recipes", "--json").stdout)
    assert [record["name"] for record in records] == re.findall(r"^\S+", listed.stdout, re.MULTILINE)
    one = json.loads(invoke("recipes", "demo", "--json").stdout)
    assert one == {**next(each for each in records if each["name"] == "demo"), "plan": invoke("recipes", "demo").stdout}
    assert one["summary"].startswith("The plan of `assay demo`")
    assert one["steps"] == ["clean_labels", "probe", "pseudo_label", "fit"]
    wrong = invoke("recipes", "demp")
    assert (wrong.exit_code, "demo" in wrong.stderr) == (2, True)


def test_the_schema_is_json() -> None:
    assert "steps" in json.loads(invoke("schema").stdout)["properties"]


def test_the_demo_prints_its_three_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from assay.experiments import demo

    metric = Metric(0.5, 359, 0.4, 0.6)
    run: Any = SimpleNamespace(folder=Path("runs/demo"), record=SimpleNamespace(step_seconds=7.0))
    change = Metric(0.1, 359, 0.05, 0.2)
    rows = [demo.DemoRun("faulty", run, metric, None), demo.DemoRun("repaired", run, metric, change)]
    calls: list[Any] = []
    monkeypatch.setattr(demo, "run_demo", lambda *given, **settings: calls.append((given, settings["recipe"])) or rows)
    monkeypatch.chdir(tmp_path)
    done = invoke("demo")
    assert done.exit_code == 0, done.output
    assert calls == [((Path("runs/demo-images"), Path("runs/demo")), "demo")]
    assert (tmp_path / "runs" / "demo-images" / "labels.csv").is_file()
    assert "+0.100 [+0.050, +0.200]" in done.stdout
    assert "assay ledger runs/demo" in done.stdout
    assert json.loads(invoke("demo", "--json").stdout)[1]["difference to the first"]["value"] == 0.1


def test_version() -> None:
    assert re.fullmatch(r"assay \d+\.\d+\.\d+\n", invoke("--version").stdout)


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "timm", "polars", "numpy", "sklearn", "pydantic", "PIL", "altair", "accelerate", "rich"}
    code = f"""
import sys
sys.argv = ["assay", "--help"]
from assay.cli import main
try:
    main()
except SystemExit as left:
    assert left.code == 0
print("heavy:", sorted({heavy!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")
    for command in ("train", "predict", "evaluate", "recipes", "schema", "demo"):
        assert command in done.stdout


def test_a_name_that_cannot_be_printed_is_written_out() -> None:
    command = [sys.executable, "-m", "assay", "recipes", "caf\udce9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert r"caf\udce9: there is no such recipe" in done.stderr
