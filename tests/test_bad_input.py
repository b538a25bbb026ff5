"""Bad input: one message that names the thing, the rule and the way out, exit code 2, nothing half-written."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from assay import cli
from factories import write_images

TINY = "model: {backbone: test_efficientnet, weights: none}\nhardware: {precision: fp32, layout: contiguous}\n"
PROBE = "  - probe: {size: 32}\n"
FIT = "  - fit: {size: 32, epochs: 2, batch: 8}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("assay.report.report.write_images", lambda *given: None)  # slow, and tested elsewhere


def plan(steps: str = PROBE, data: str = "folder: images") -> Path:
    Path("plan.yaml").write_text(f"data: {{{data}}}\n{TINY}steps:\n{steps}")
    return Path("plan.yaml")


def images(each: int = 6) -> Path:
    return write_images(Path("images"), each=each)


def train(source: Path | str, *more: str) -> Result:
    return CliRunner().invoke(cli.app, ["train", str(source), "--run", "run", "--device", "cpu", *more])


def refused(result: Result, *expected: str) -> str:
    """The one message of a refusal that says all this and leaves nothing half-written."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("assay: ")
    assert result.stderr.count("assay: ") == 1
    for part in expected:
        assert re.search(part, result.stderr), result.stderr
    assert not list(Path("run").rglob("*.part"))
    assert not Path("run/metrics.json").exists()
    return result.stderr


def metrics() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path("run/metrics.json").read_text())
    return record


# Data


def make_empty() -> str:
    Path("images").mkdir()
    return "images"


def make_table() -> str:
    images()
    Path("labels.csv").write_text("file,colour\nimages/red/0.png,red\n")
    return str(plan(data="table: labels.csv, image: file, heads: {kind: {column: kind}}"))


def make_broken() -> str:
    for name in ("cat", "dog"):
        Path("images", name).mkdir(parents=True)
        Path("images", name, "0.jpg").touch()
        Path("images", name, "1.jpg").write_text("no image")
    return "images"


def make_way_out() -> str:
    images()
    Path("data").mkdir()
    Path("data/labels.csv").write_text("file,colour\n../images/red/0.png,red\n")
    return "data/labels.csv"


def make_link() -> str:
    images()
    Path("elsewhere").mkdir()
    shutil.move("images/red/0.png", "elsewhere/0.png")
    Path("images/red/0.png").symlink_to(Path("elsewhere/0.png").absolute())
    return "images"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_empty, ["images", "no images|is empty", "folder a class|[Aa]dd|[Gg]ive|[Pp]ut"]),
        (lambda: "nowhere", ["nowhere", "does not exist|not there|no such", "[Gg]ive|[Cc]heck|[Nn]ame"]),
        (make_table, ["labels.csv", "'kind'", "colour"]),
        (make_broken, ["no image that can be used", r"2 files, an empty file.*cat 1, dog 1", "2 files, a text file"]),
        (make_way_out, ["labels.csv", r"\.\./images/red/0\.png", "leav|outside", "[Cc]opy|[Mm]ove|root"]),
        (make_link, ["red/0.png", "leav|outside|leads", "[Cc]opy|[Mm]ove|[Rr]eplace"]),
    ],
)
def test_data_that_cannot_be_used(make: Callable[[], str], expected: list[str]) -> None:
    refused(train(make()), *expected)
    assert not Path("run/steps").exists()


NOWHERE = (
    *(f"{command} nowhere" for command in ("train", "audit", "plan", "lr-find", "ablate", "sweep", "review")),
    "shard nowhere --out shards",
    "export nowhere --labels table",
    "predict . nowhere --out labels.csv",
    "evaluate . nowhere",
)
NO_RUN = (
    *(f"{command} nowhere" for command in ("report", "explain", "serve", "ledger", "export", "submissions")),
    "predict nowhere . --out labels.csv",
    "evaluate nowhere .",
    "compare nowhere nowhere",
    "ensemble nowhere nowhere --out run",
)


def test_where_nothing_is_each_command_says_so_before_anything_heavy_is_imported() -> None:
    program = f"""
import sys
from typer.testing import CliRunner
from assay.cli import app
for line in {(*NOWHERE, *NO_RUN)}:
    done = CliRunner().invoke(app, line.split())
    print(done.exit_code, done.stderr.strip())
print({{"torch", "polars", "numpy", "PIL"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        *["2 assay: nowhere: there is no such folder or file. Check the path."] * len(NOWHERE),
        *["2 assay: nowhere: there is no such folder. Give the folder of a run, such as runs/photos."] * len(NO_RUN),
        "set()",
    ]
    assert not list(Path().iterdir())


def test_a_path_too_long_for_one_is_refused() -> None:
    refused(train("a" * 300), "a: there is no such folder or file")


# Plans


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("  - fit: {epoch: 2}\n", ["line 5", r"steps\.0\.fit\.epoch is not known", "did you mean epochs"]),
        ("  - fit: {epochs: many}\n", ["line 5", r'epochs is "many"; it must be a whole number']),
        ("  - fit: {lr: -1e-3}\n", ["line 5", r"lr is -0\.001; it must be greater than 0|lr is -1e-3"]),
        ("  - fit: {lr: 1\n", ["broken YAML", "line"]),
        ("  - fit: {epochs:2}\n", ["line 5", "epochs:2 is not known; a blank follows the colon: `epochs: 2`"]),
        ("  - fit: {keep: best, take: last}\n", ["take: last hands on what keep: best does not keep"]),
        (
            "  - fit: {freeze: backbone, views: 1, augment: {flip: horizontal}}\n",
            ["set views: fresh", "raise views to cache that many, or drop augment"],
        ),
        ("  - probe: {views: 4}\n", ["views: 4 are 3 augmented ones beside the plain image", "or drop both"]),
        ("  - probe: {augment: {flip: both}}\n", ["give both augment and views above 1, or drop both"]),
        ("  - fit: {size: 32, start: nowhere}\n", [r"start: .*nowhere: no finished run is there", "Give previous"]),
    ],
)
def test_plans_that_cannot_be_carried_out(steps: str, expected: list[str]) -> None:
    images(3)
    refused(train(plan(steps)), *expected)


def test_a_value_set_and_a_device_are_checked_too() -> None:
    images(3)
    refused(train(plan(FIT), "--set", "steps.0.fit.lr=-1"), r"lr is -1; it must be greater than 0")
    refused(train(plan(FIT), "--device", "tpu"), "'tpu'", "this machine has")


def test_the_command_itself_ends_with_2() -> None:
    command = [sys.executable, "-m", "assay", "train", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (2, "reading nowhere")
    assert re.fullmatch(r"assay: nowhere.*\n", done.stderr)


# Disks


def test_a_run_folder_that_is_read_only() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    images(3)
    Path("run").mkdir(mode=0o500)
    refused(train(plan()), "run", "cannot be written", "--run")


def test_a_run_folder_that_cannot_be_made() -> None:
    images(3)
    Path("run").write_text("a file")
    done = train(plan())
    assert (done.exit_code, "Traceback" in done.output) == (2, False)
    assert re.search(r"run: cannot be written \(.*\)\. Choose another folder with --run", done.stderr)


def test_a_disk_too_full_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    images(3)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    refused(train(plan()), "the features of the images", "MiB", "Free some space, or choose another")
    assert not [path for path in Path("run/cache").iterdir() if path.suffix != ".json"]


def test_a_disk_that_fills_up_during_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    images()
    assert train(plan(FIT + FIT), "--run", "whole").exit_code == 0
    left, failed = {"fsync": 0, "replace": 0}, 0

    def counting(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            left[call] -= 1
            if left[call] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*given, **named)

        return counted

    for call in left:
        monkeypatch.setattr(f"assay.files.os.{call}", counting(call, getattr(os, call)))
    for call, moment in (*itertools.product(left, (1, 5, 9, 3)), ("fsync", 12), ("replace", 14), ("replace", 400)):
        left[call] = moment
        done = train(plan(FIT + FIT))
        if done.exit_code == 0:
            break
        failed += 1
        refused(done, "the disk is full", "was written before is intact", "[Ff]ree some space")
        _readable(Path("run"))
    assert failed >= 8
    assert done.exit_code == 0, done.output
    same = Path("whole/model/model.safetensors").read_bytes() == Path("run/model/model.safetensors").read_bytes()
    assert same


def _readable(run: Path) -> None:
    """Every file that is there is whole."""
    from safetensors.torch import load_file

    for path in run.rglob("*.safetensors"):
        load_file(path)
    for path in run.rglob("*.json"):
        json.loads(path.read_text())


# Images


def png_of(width: int, height: int) -> bytes:
    """The header of an image, and one row of nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def put_broken(folder: Path) -> list[str]:
    """An image of every broken sort; their names."""
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image at all")
    Image.effect_noise((64, 64), 90).save(folder / "whole.jpg", quality=95)
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:1000])
    (folder / "whole.jpg").unlink()
    (folder / "vast.png").write_bytes(png_of(30_000, 30_000))
    return ["empty.png", "text.jpg", "truncated.jpg", "vast.png"]


def test_broken_images_among_good_ones_are_left_out_listed_and_counted() -> None:
    names = {f"red/{name}" for name in put_broken(images() / "red")}
    done = train(plan())
    assert done.exit_code == 0, done.output
    assert {one["path"] for one in metrics()["left_out"]} == names
    assert all(one["reason"] for one in metrics()["left_out"])
    assert sum(metrics()["counts"].values()) == 18
    lines = [line for line in done.stdout.splitlines() if "left out: 1 file, " in line]
    assert {name for name in names if any(f"(by class: red 1). {name!r}" in line for line in lines)} == names
    assert {one["reason"]: one["classes"] for one in metrics()["left_out_by_reason"]}["a text file"] == {"red": 1}


def test_broken_images_are_left_out_again_under_another_plan() -> None:
    put_broken(images() / "red")
    assert train(plan()).exit_code == 0
    first = metrics()["left_out"]
    assert train(plan(PROBE + FIT)).exit_code == 0
    assert metrics()["left_out"] == first


def test_strict_refuses_broken_images() -> None:
    put_broken(images() / "red")
    expected = refused(
        train(plan(), "--strict"), r"4 of 22 files cannot be used, and --strict allows none", "Mend them"
    )
    assert all(name in expected for name in ("red/empty.png'", "red/text.jpg'", "red/truncated.jpg'", "red/vast.png'"))


def test_broken_images_get_a_row_that_says_so(tmp_path: Path) -> None:
    images()
    assert train(plan()).exit_code == 0
    Path("new").mkdir()
    shutil.copy("images/blue/0.png", "new/good.png")
    names = put_broken(Path("new"))
    done = CliRunner().invoke(cli.app, ["predict", "run", "new", "--out", "labels.csv", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    with open("labels.csv", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*names, "good.png"}
    assert rows["good.png"]["label"] == "blue"
    assert all(rows[name]["error"] and not rows[name]["label"] for name in names)


@pytest.mark.parametrize(
    "names", [("-dash", 'it\'s "quoted"', "two words"), ("two\nlines", "Grün 葉 🌱"), ("[50%] {x}", "a,b;c")]
)
def test_odd_names_train_and_predict(names: tuple[str, ...]) -> None:
    images()
    for colour, name in zip(("red", "green", "blue"), names, strict=False):
        Path("images", colour).rename(Path("images") / name)
        for number in range(6):
            (Path("images") / name / f"{number}.png").rename(Path("images") / name / f"{name} {number}.png")
    run = f"./{''.join(names)}"  # of the same names
    done = train(plan(), "--run", run)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(cli.app, ["predict", run, "images", "--out", "labels.csv", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    with open("labels.csv", newline="", encoding="utf-8") as file:
        rows = {row["image"]: row["label"] for row in csv.DictReader(file)}
    assert [rows[f"{name}/{name} 0.png"] for name in names] == list(names)
    assert len(rows) == 18


# Training


def test_a_loss_that_is_not_finite_names_its_images() -> None:
    images()
    done = train(plan("  - fit: {size: 32, epochs: 3, batch: 4, lr: 1e30, optimizer: sgd, schedule: constant}\n"))
    refused(done, r"the loss is not finite \(epoch \d, optimiser step \d\)", "Lower lr", r"(red|green|blue)/\d\.png")


@pytest.mark.parametrize("epochs", [1, 2])
def test_weights_that_are_spoilt_by_the_last_optimiser_step(epochs: int) -> None:
    images()
    steps = f"  - fit: {{size: 32, epochs: {epochs}, batch: 64, lr: 1e38, optimizer: sgd, schedule: constant}}\n"
    refused(train(plan(steps)), "not finite|no number", "Lower lr|[Ll]ower")


def test_too_little_memory_names_the_batch_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    from assay.models.classifier import Classifier

    images()
    forward = Classifier.forward

    def greedy(self: Classifier, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, x)

    monkeypatch.setattr(Classifier, "forward", greedy)
    refused(train(plan(FIT)), "a batch of 8 does not fit into memory", "batch: 4 and accumulate: 2")
