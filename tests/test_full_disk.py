"""A full disk, for real: every file of a run at which it may fill up, and every writer by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assay.cli import app
from factories import write_images

PLAN = """
data: {{folder: {images}}}
model: {{backbone: {backbone}}}
hardware: {{precision: fp32, layout: contiguous}}
cache: {{limit: 1}}
{more}
steps:
  - probe: {{size: 32}}
  - clean_labels: {{size: 32, by: neighbours, action: drop}}
  - fit: {{size: 32, epochs: 2}}
"""


NETWORKS = {
    "every file": {"backbone": "test_efficientnet, weights: none", "more": ""},
    "growing": {"backbone": "tf_efficientnet_lite0", "more": "track: tensorboard"},
}
"""How the disk fills up -> what is trained meanwhile."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("full") / "images", each=8)


@pytest.fixture(scope="module")
def filled_up(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each way: what commands said on a disk that filled up again and again, and a copy of the disk."""
    place = tmp_path_factory.mktemp("disks")
    for way, network in NETWORKS.items():
        folder = place / way
        folder.mkdir()
        (folder / "plan.yaml").write_text(PLAN.format(images=images, **network))
        commands = commands_in(folder / "disk", folder / "plan.yaml", images)
        (folder / "commands.json").write_text(json.dumps({"way": way, "commands": commands}))
    program = [sys.executable, str(Path(__file__).with_name("small_disk.py")), *(str(place / way) for way in NETWORKS)]
    done = subprocess.run(program, check=False, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]  # -7 is SIGBUS
    return place


def told_of(said: list[str]) -> set[str]:
    """The files at which the disk was full; each time that was the message, and the way out was in it."""
    files = set()
    for one in said:
        message = " ".join(one.split())
        assert one.startswith("2 ") or "no report was written" in message or "could not be noted" in message, one
        assert "the disk is full (" in message or "it would be larger than files may be here" in message, one
        assert "MiB are free in" in message, one
        assert "free some space and repeat" in message, one
        assert "Traceback" not in one, one
        files.add(message.split(": the disk is full")[0].rpartition("/")[2])
    return files


def commands_in(folder: Path, plan: Path, images: Path) -> list[list[str]]:
    run = str(folder / "run")
    train = ["train", str(plan), "--run", run, "--device", "cpu"]
    return [train, ["predict", run, str(images), "--out", str(folder / "labels.zip")]]


def require_same(folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came of commands on a disk that filled up is what comes of them on one that does not."""
    monkeypatch.setattr("assay.run.train.baselines", lambda *given, **options: {})  # as in `small_disk`
    found, other = folder / "copy", folder / "other"
    for command in commands_in(other, folder / "plan.yaml", images):
        assert CliRunner().invoke(app, command).exit_code == 0
    assert set(relative(other)) ^ set(relative(found)) == set()
    for name in ("run/model/model.safetensors", "run/splits.csv", "run/steps/02-clean_labels/suspects.csv"):
        assert (found / name).read_bytes() == (other / name).read_bytes()
    before, after = (json.loads((place / "run" / "metrics.json").read_text()) for place in (other, found))
    assert (after["key"], after["scores"]) == (before["key"], before["scores"])


def relative(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    ]


def test_a_disk_that_fills_up_at_every_file_costs_nothing_that_was_written(
    filled_up: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled_up / "every file"
    said = json.loads((folder / "said.json").read_text())
    every = {path.name for path in (folder / "copy").rglob("*") if path.is_file() and path.stat().st_size}
    assert not every - set.union(*map(told_of, said)) - {"hardware.json"}
    require_same(folder, images, monkeypatch)


def test_a_disk_that_fills_up_anywhere_while_the_default_backbone_is_trained(
    filled_up: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled_up / "growing"
    said = json.loads((folder / "said.json").read_text())
    assert {"checkpoint.safetensors", "model.safetensors"} <= set.union(*map(told_of, said))
    require_same(folder, images, monkeypatch)
