"""What the documents promise, where users are: default backbone, chosen layout, new processes, files on a disk."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

import assay
from assay.errors import RunError
from assay.files import RunFolder, write_text
from assay.labels.ledger import Selection
from assay.labels.readers.to_label import find_images
from assay.labels.samples import Samples
from assay.predictions.predict import Predictions
from assay.progress import Lines
from assay.report.report import write_report
from assay.run.label_review import undo
from factories import COLOURS

ROOT = Path(__file__).parent.parent
STEPS = "  - probe: {size: 48}\n  - fit: {size: 48, freeze: backbone, epochs: 1, lr: 1e-3}\n"
ASSAY = [sys.executable, "-m", "assay"]
PINNED = "hardware: {precision: fp32, layout: channels_last}\n"
SPY = """
import os, sys

data, file = os.environ["SPY_DATA"] + os.sep, os.open(os.environ["SPY"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
written = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
changes = {f"os.{name}" for name in "remove rename mkdir rmdir link symlink truncate chmod utime".split()}

def in_data(path):
    return isinstance(path, (str, bytes)) and os.path.realpath(os.fsdecode(path)).startswith(data)

def hear(event, arguments):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "urllib.")):
        os.write(file, f"network {event} {arguments[1:]!r}\\n".encode())
        raise OSError("there is no network here")
    if event == "pickle.find_class":
        os.write(file, f"pickle {arguments!r}\\n".encode())
    elif event == "open" and in_data(arguments[0]):
        os.write(file, f"{'change' if arguments[2] & written else 'read'} {arguments[0]!r}\\n".encode())
    elif event in changes and any(map(in_data, arguments)):
        os.write(file, f"change {event} {arguments!r}\\n".encode())

sys.addaudithook(hear)
"""
"""Runs before a program and notes what it does with the network, with pickles and with the files of a data folder."""


@dataclass(frozen=True)
class Project:
    """A folder with images, a plan, and the run that one command in a process of its own made of them."""

    folder: Path
    heard: str  # what the spy noted
    pid: int
    refusal: str  # what a second process was told while the first one trained
    before: dict[str, tuple[str, int]]  # the data folder as it was

    @property
    def images(self) -> Path:
        return self.folder / "photos"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "plan"


def draw(colour: tuple[int, int, int], generator: np.random.Generator, *, width: int, height: int) -> Image.Image:
    noisy = np.array(colour) + generator.normal(0, 40, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def write_images(folder: Path, *, each: int = 12) -> Path:
    """Write noisy images of three colours in a folder a colour, of several sizes and forms, a few under odd names."""
    generator = np.random.default_rng(0)
    names = ["two words.png", 'it\'s "quoted".png', "Grün 葉.png", "two\nlines.png", "-dash.png", "[5%] {x},;.png"]
    for colour, rgb in COLOURS.items():
        (folder / colour).mkdir(parents=True)
        for number in range(each):
            size = 48 + 7 * (number % 4)
            image = draw(rgb, generator, width=size, height=48 + 5 * (number % 3))
            image.save(folder / colour / (names[number] if number < len(names) else f"{number}.png"))
        image.convert("CMYK").save(folder / colour / "cmyk.tif")
        shutil.copy(folder / colour / "7.png", folder / colour / "a copy.png")
        save_turned(image, folder / colour / "turned.png")
    return folder


def save_turned(image: Image.Image, path: Path) -> None:
    """Save the image lying on its side, with the note in its EXIF data that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Return hash and time of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ASSAY, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    images = write_images(folder / "photos")
    (folder / "plan.yaml").write_text(f"data: {{folder: photos/, split: {{val: 0.25, test: 0.2}}}}\nsteps:\n{STEPS}")
    (folder / "spy").mkdir()
    (folder / "spy" / "sitecustomize.py").write_text(SPY)
    path = os.pathsep.join(filter(None, [str(folder / "spy"), os.environ.get("PYTHONPATH", "")]))
    before = state(images)
    spied = {"SPY": str(folder / "heard.txt"), "SPY_DATA": os.path.realpath(images), "PYTHONPATH": path}
    with subprocess.Popen(
        [*ASSAY, "train", "plan.yaml"],
        cwd=folder,
        env={**os.environ, **spied},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        printed = ""
        while not printed.endswith("reading plan\n"):  # the lines before are of a program that is loaded
            line = process.stdout.readline()
            assert line, printed
            printed += line
        with pytest.raises(RunError) as refused:
            assay.train(folder / "plan.yaml", run=folder / "runs" / "plan", device="cpu")
        printed += process.stdout.read()
    assert process.returncode == 0, printed
    return Project(folder, (folder / "heard.txt").read_text(), process.pid, str(refused.value), before)


def test_a_run_needs_no_network_and_no_pickle_and_leaves_the_data_as_it_is(project: Project) -> None:
    heard = project.heard.splitlines()
    assert sum(line.startswith("read ") for line in heard) >= len(project.before)  # the spy did listen
    assert [line for line in heard if not line.startswith("read ")] == []
    assert state(project.images) == project.before


def test_a_copied_model_answers_elsewhere_as_its_run_did_a_row_for_each_image_in_order(
    project: Project, tmp_path: Path
) -> None:
    model = shutil.copytree(project.run / "model", tmp_path / "shelf" / "model 1")
    space = assay.load(project.run).artifact.saved.space
    stored = Predictions.read(project.run / "steps/02-fit/best/predictions.parquet", space, model="")
    (tmp_path / "images").mkdir()
    for number, name in enumerate(stored.ids):
        shutil.copy(project.images / name, tmp_path / "images" / f"{number}{Path(name).suffix}")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    names = [f"{number}{Path(name).suffix}" for number, name in enumerate(stored.ids)]
    asked = ["broken.jpg", *reversed(names), "gone.png", names[0], "broken.jpg"]
    (tmp_path / "names.txt").write_text("\n".join(asked))
    (tmp_path / "cwd").mkdir()
    done = command("predict", model, "../names.txt", "--root", "../images", "--out", "out.csv", cwd=tmp_path / "cwd")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "cwd" / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == asked
    assert [bool(row["error"]) for row in rows] == [name in ("broken.jpg", "gone.png") for name in asked]
    answers = {row["image"]: row for row in rows}
    for number, name in enumerate(names):
        result = [float(answers[name][one]) for one in space["label"].classes]
        assert result == pytest.approx(stored.probabilities[number], abs=1e-4)


def test_evaluating_the_held_back_images_gives_the_metrics_of_the_run(project: Project, tmp_path: Path) -> None:
    run = assay.load(project.run)
    table = Samples.read(project.run / "samples.parquet").table
    for split, metrics in (("val", run.metrics["scores"]), ("test", run.metrics["test"])):
        rows = table.filter(split=split).select(image="id", label="label:label")
        rows.write_csv(tmp_path / f"{split}.csv")
        (tmp_path / "data.yaml").write_text(f"data: {{table: {split}.csv, root: {project.images}}}\n")
        result = assay.evaluate(run, assay.read(tmp_path / "data.yaml"))["scores"]
        assert result["heads"]["label"]["confusion"] == metrics["heads"]["label"]["confusion"]
        for name, metric in metrics["metrics"].items():
            assert result["metrics"][name] == pytest.approx(metric, abs=1e-3), name


def test_every_metric_of_a_run_has_its_n_and_an_interval_that_holds_it(project: Project) -> None:
    result = list(metrics_in(json.loads((project.run / "metrics.json").read_text())))
    assert len(result) > 50
    for metric in result:
        assert metric["n"] > 0
        assert metric["low"] <= metric["value"] <= metric["high"], metric


def metrics_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and "value" in value:
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from metrics_in(part)


def test_copies_of_an_image_are_on_one_side_of_the_split_whatever_their_names(project: Project) -> None:
    table = Samples.read(project.run / "samples.parquet").table
    copies = table.group_by("hash").agg(pl.col("split").n_unique(), n=pl.len()).filter(pl.col("n") > 1)
    assert len(copies) == len(COLOURS)
    assert copies["split"].to_list() == [1] * len(COLOURS)


def test_predictions_are_equal_for_every_format_of_the_same_pixels(project: Project, tmp_path: Path) -> None:
    image = draw(COLOURS["red"], np.random.default_rng(5), width=60, height=50)
    grey = image.convert("L")
    image.save(tmp_path / "plain.png")
    save_turned(image, tmp_path / "turned.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    image.save(tmp_path / "lossless.webp", lossless=True)
    grey.save(tmp_path / "grey.png")
    grey.convert("P").save(tmp_path / "palette.gif")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    names = ["plain.png", "turned.png", "alpha.png", "cmyk.tif", "lossless.webp"]
    greys = ["grey.png", "palette.gif", "grey16.png"]
    result = assay.load(project.run).predict([tmp_path / name for name in (*names, *greys)]).logits
    assert np.abs(result[: len(names)] - result[0]).max() < 1e-3, result
    assert np.abs(result[len(names) :] - result[-1]).max() < 1e-3, result
    assert np.abs(result[0] - result[-1]).max() > 0.1


def test_a_project_that_is_moved_goes_on_where_it_was_without_its_cache_too(project: Project, tmp_path: Path) -> None:
    moved = tmp_path / "another name"
    shutil.copytree(project.folder, moved)
    before = state(moved / "runs")
    lines = Lines()
    run = assay.train(moved / "plan.yaml", run=moved / "runs" / "plan", device="cpu", progress=lines)
    assert lines.lines[-1].endswith("is finished and unchanged")
    assert run.metrics == json.loads((project.run / "metrics.json").read_text())  # the test split was not opened again
    shutil.rmtree(run.folder / "cache")
    (run.folder / "report.html").unlink()
    write_report(run.folder, device="cpu")
    assert "data:image/webp" in (run.folder / "report.html").read_text(encoding="utf-8")
    kept = {name: named[0] for name, named in before.items() if "/steps/" in name or "/model/" in name}
    after = state(moved / "runs")
    assert {name: after[name][0] for name in kept} == kept


def test_a_second_process_is_kept_out_of_a_run_that_trains(project: Project) -> None:
    assert f"another process (pid {project.pid}) is writing to this run" in project.refusal
    lines = [json.loads(line)["line"] for line in (project.run / "log.jsonl").read_text().splitlines()]
    assert lines.count("reading plan") == 1  # it has not written a word


def weights(run: assay.Run) -> bytes:
    return (run.folder / "model" / "model.safetensors").read_bytes()


def test_labels_held_back_reach_nothing_that_is_learnt_or_repaired(
    project: Project, tmp_path: Path, plain_runs: None
) -> None:
    """All labels of validation and test are exchanged; weights and edits stay the same to the bit."""
    table = Samples.read(project.run / "samples.parquet").table
    table = table.select(image="id", label="label:label", split="split").with_row_index("row")
    hidden = (pl.col("row") % 4 == 0) & (pl.col("split") == "train")
    turned = pl.col("label").replace({"red": "green", "green": "blue", "blue": "red"})
    wrong, held_back = pl.col("row").is_in([5, 15, 25, 31]), pl.col("split") != "train"
    table = table.with_columns(label=pl.when(wrong & ~held_back).then(turned).when(~hidden).then("label"))
    exchanged = pl.when(held_back).then(turned).otherwise("label")
    steps = (
        "  - clean_labels: {action: unset, size: 48}\n"
        "  - probe: {size: 48}\n"
        "  - pseudo_label: {keep: all}\n"
        "  - fit: {size: 48, epochs: 1, freeze: all_but_last_stage, take: last, class_weights: inverse}\n"
    )
    runs = []
    for name, labels in (("given", table), ("exchanged", table.with_columns(label=exchanged))):
        labels.drop("row").write_csv(tmp_path / f"{name}.csv")
        data = f"data: {{table: {name}.csv, root: {project.images}}}\n"
        (tmp_path / f"{name}.yaml").write_text(f"{data}{PINNED}steps:\n{steps}")
        runs.append(assay.train(tmp_path / f"{name}.yaml", run=tmp_path / name, device="cpu"))
    given, other = runs
    assert weights(given) == weights(other)
    edits = [pl.read_csv(run.folder / "ledger.csv").drop("date") for run in runs]
    assert edits[0].equals(edits[1])
    assert edits[0]["step"].n_unique() == 2
    splits = dict(table.select("image", "split").iter_rows())
    assert {splits[name] for name in edits[0]["id"]} == {"train"}
    assert given.metrics["scores"] != other.metrics["scores"]


def test_undone_edits_leave_a_run_as_if_they_had_never_been(project: Project, tmp_path: Path, plain_runs: None) -> None:
    images = shutil.copytree(project.images, tmp_path / "photos")
    for number in (8, 9):
        (images / "red" / f"{number}.png").rename(images / "blue" / f"red {number}.png")
    runs = {}
    for action in ("drop", "flag"):
        steps = f"  - clean_labels: {{action: {action}, size: 48}}\n{STEPS}"
        (tmp_path / f"{action}.yaml").write_text(f"data: {{folder: photos}}\n{PINNED}steps:\n{steps}")
        runs[action] = assay.train(tmp_path / f"{action}.yaml", run=tmp_path / action, device="cpu")
    dropped = weights(runs["drop"])
    assert dropped != weights(runs["flag"])
    undo(runs["drop"].folder, Selection(step="01-clean_labels"))
    again = assay.train(tmp_path / "drop.yaml", run=tmp_path / "drop", device="cpu")
    assert weights(again) == weights(runs["flag"])
    assert again.metrics["scores"] == runs["flag"].metrics["scores"]


def test_what_changed_data_replaces_is_kept_to_the_byte(project: Project, tmp_path: Path, plain_runs: None) -> None:
    images = shutil.copytree(project.images, tmp_path / "photos")
    (tmp_path / "plan.yaml").write_text(f"data: {{folder: photos}}\n{PINNED}steps:\n  - probe: {{size: 48}}\n")
    run = assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    before = {name: digest for name, (digest, _) in state(run.folder).items()}
    (images / "red" / "8.png").unlink()
    assay.train(tmp_path / "plan.yaml", run=tmp_path / "run", device="cpu")
    after = {digest for digest, _ in state(run.folder).values()}
    lost = {name for name, digest in before.items() if digest not in after and not name.startswith("cache/")}
    assert lost == {"log.jsonl"}  # which grew
    assert [path.name for path in (run.folder / "history").iterdir()] == ["run-1"]


def test_a_run_among_the_images_is_no_data(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where `assay train .` is given in the folder of the images, twice."""
    monkeypatch.setattr("assay.run.train.baselines", lambda *given, **options: {})
    monkeypatch.setattr(
        "assay.report.report.write_report", lambda folder, **options: write_text(RunFolder(folder).report, "")
    )
    shutil.copytree(project.images, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "red", tmp_path / "searched" / "trials")
    (tmp_path / "searched" / "claims").mkdir()
    (tmp_path / "searched" / "claims" / ".lock").touch()
    monkeypatch.chdir(tmp_path)
    tiny = ["model.backbone=test_efficientnet", "model.weights=none", 'steps=[{"probe":{"size":48}}]']
    counts = []
    for _ in range(2):
        lines = Lines()
        run = assay.train(".", run="runs/own", overrides=tiny, device="cpu", progress=lines)
        counts.append(run.metrics["counts"])
        assert Samples.read(run.folder / "samples.parquet").space["label"].classes == ("blue", "green", "red")
    assert counts[0] == counts[1]
    assert lines.lines[-1].endswith("is finished and unchanged")
    assert "  note: 2 folders that hold runs were passed over: 'runs/own', 'searched'." in lines.lines
    assert list(Path("runs/own").rglob("*.png"))  # there was something to be taken for an image
    assert len(find_images(Path(".")).files) == sum(counts[0].values())


def test_all_that_is_imported_is_declared_and_listed_with_its_licence() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: set(map(plain_name, listed)) for name, listed in about["optional-dependencies"].items()}
    declared = set(map(plain_name, about["dependencies"])).union(*(extras[name] for name in extras if name != "dev"))
    providers = packages_distributions()
    absent = {"mlflow", "fastexcel", "openvino", "ray"}  # named to users, and may be not installed
    for module in sorted(imported() - absent):
        assert declared & set(map(plain_name, providers[module])), module
    table = (ROOT / "docs" / "DECISIONS.md").read_text().partition("\n## Dependencies")[2]
    rows = re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)[1:]
    named = {plain_name(name) for row in rows for name in re.sub(r"\(.*?\)", "", row).split(",")}
    assert declared - {plain_name(about["name"])} <= named  # one extra may ask for another


def plain_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~;]", requirement)[0].strip().lower().replace("_", "-")


def imported() -> set[str]:
    """Return the packages of others that the source names in an import, wherever it stands."""
    names: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"assay"}
