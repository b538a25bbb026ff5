"""A run is kept only while what it was made of is the same: weights, other runs and pinned hardware, by content."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

import assay
from assay.errors import PlanError
from assay.labels.readers.read import DataSettings
from assay.models.backbones import build_backbone
from assay.plan.plan import Plan
from assay.progress import Lines
from assay.settings import Settings, Source
from assay.steps import STEPS
from conftest import draw_nothing
from factories import SMALL, small_model, write_images

FP32 = "{precision: fp32, layout: contiguous}"
PROBE = "probe: {size: 32}"
FROZEN = "fit: {size: 32, epochs: 1, freeze: backbone, start: earlier}"


class Folder:
    """A folder with images, in which plans are carried out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []

    def train(self, *steps: str, run: str = "run", model: str = "{}", hardware: str | None = FP32) -> dict[str, Any]:
        """Write a plan, carry it out and return the metrics."""
        pinned = f"model: {small_model(model)}\n" + (f"hardware: {hardware}\n" if hardware else "")
        (self.path / "plan.yaml").write_text(
            f"data: {{folder: {self.path / 'images'}, split: {{val: 0.25, test: 0.25}}}}\n{pinned}"
            f"steps: [{', '.join(f'{{{step}}}' for step in steps)}]\n"
        )
        progress = Lines()
        self.lines = progress.lines
        return assay.train(self.path / "plan.yaml", run=self.path / run, device="cpu", progress=progress).metrics

    def kept(self) -> list[str]:
        """Return the steps that the last training did not run again."""
        return [line.partition(":")[0] for line in self.lines if "done before, kept" in line]

    @property
    def says_unchanged(self) -> bool:
        return self.lines[-1].endswith("is finished and unchanged")


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images, and two runs on them that differ in their weights alone."""
    path = tmp_path_factory.mktemp("runs")
    write_images(path / "images", each=8)
    fit = "fit: {{size: 32, epochs: 1, batch: 16, lr: {lr}, freeze: all_but_last_stage}}"
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        for name, lr in (("one", "1e-3"), ("two", "2e-3")):
            Folder(path).train(fit.format(lr=lr), run=name)
        yield path


@pytest.fixture
def folder(two_runs: Path, tmp_path: Path, plain_runs: None) -> Folder:
    (tmp_path / "images").symlink_to(two_runs / "images")
    shutil.copytree(two_runs / "one", tmp_path / "earlier")
    return Folder(tmp_path)


def test_a_weights_file_that_is_overwritten_runs_again(folder: Folder) -> None:
    file = folder.path / "weights.safetensors"
    tensors = build_backbone(SMALL, size=32).state_dict()
    save_file(tensors, file)
    before = folder.train(PROBE, model="{weights: weights.safetensors}")
    stat = file.stat()
    changed = {name: tensor * 1.5 if name == "conv_stem.weight" else tensor for name, tensor in tensors.items()}
    save_file(changed, file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # neither its size nor its time tells
    after = folder.train(PROBE, model="{weights: weights.safetensors}")
    assert folder.kept() == []
    assert after["key"] != before["key"]
    assert [json.loads(path.read_text()) for path in folder.path.glob("run/history/*/metrics.json")] == [before]

    torch.save({"state_dict": changed}, folder.path / "moved.pth")
    assert folder.train(PROBE, model="{weights: moved.pth}") == after  # the test was not opened again
    assert folder.kept() == ["01-probe"]
    assert folder.says_unchanged
    assert "moved.pth" in (folder.path / "run" / "plan.yaml").read_text()


@pytest.mark.parametrize(
    ("step", "model"),
    [
        (PROBE, "{init_from: earlier}"),
        (FROZEN, "{}"),
        (f"repeat: {{times: 1, steps: [{{{FROZEN}}}]}}", "{}"),
        ("ensemble: {members: [{run: earlier}, {run: other}]}", "{}"),
        (
            "ensemble: {members: [{run: earlier}, "
            f"{{model: {small_model('{init_from: other}')}, steps: [{{{PROBE}}}]}}]}}",
            "{}",
        ),
    ],
    ids=["init_from", "start", "start within a repeat", "member", "member and its weights"],
)
def test_a_run_trained_anew_runs_what_was_made_of_it_again(
    step: str, model: str, folder: Folder, two_runs: Path
) -> None:
    shutil.copytree(two_runs / "two", folder.path / "other")
    before = folder.train(step, model=model)
    shutil.move(folder.path / "earlier", folder.path / "moved")
    same = folder.train(step.replace("earlier", "moved"), model=model.replace("earlier", "moved"))
    assert folder.says_unchanged
    assert same == before
    assert folder.train(step, model=model) == before  # gone, and noted what it was
    assert any("earlier is gone" in line for line in folder.lines)
    shutil.copytree(two_runs / "two", folder.path / "earlier")
    after = folder.train(step, model=model)
    assert not folder.says_unchanged
    assert not any(name == "01-" + step.partition(":")[0] for name in folder.kept())
    assert after["scores"] != before["scores"]


def test_another_pinned_hardware_runs_again_what_computes_on_it(folder: Folder) -> None:
    before = folder.train(PROBE, "calibrate")
    after = folder.train(PROBE, "calibrate", hardware="{precision: fp32, layout: channels_last}")
    assert folder.kept() == []
    assert after["key"] != before["key"]
    assert "channels_last" in (folder.path / "run" / "plan.yaml").read_text()
    kept = next(folder.path.glob("run/history/*/metrics.json"))
    assert json.loads(kept.read_text())["test opened"] == before["test opened"]
    assert "contiguous" in (kept.parent / "plan.yaml").read_text()


def test_another_pinned_hardware_changes_nothing_where_nothing_computes(folder: Folder, two_runs: Path) -> None:
    shutil.copytree(two_runs / "two", folder.path / "other")
    members = "ensemble: {members: [{run: earlier}, {run: other}]}"
    before = folder.train(members, "calibrate: {examples: 0}")
    opened = (folder.path / "run" / "metrics.json").stat().st_mtime_ns
    assert folder.train(members, "calibrate: {examples: 0}", hardware="{precision: bf16, layout: contiguous}") == before
    assert folder.kept() == ["01-ensemble", "02-calibrate"]
    assert (folder.path / "run" / "metrics.json").stat().st_mtime_ns == opened
    assert "bf16" in (folder.path / "run" / "plan.yaml").read_text()


def test_a_finished_run_opens_no_test_again_in_a_new_process(folder: Folder) -> None:
    before = folder.train(PROBE, hardware=None)
    assert before["test"]["metrics"]["accuracy"]["n"] > 0
    chosen = (folder.path / "run" / "hardware.json").read_text()
    command = [sys.executable, "-m", "assay", "train", "plan.yaml", "--run", "run", "--device", "cpu"]
    said = subprocess.run(command, cwd=folder.path, capture_output=True, text=True, check=True)
    assert "01-probe: done before, kept" in said.stdout + said.stderr
    assert json.loads((folder.path / "run" / "metrics.json").read_text()) == before
    assert (folder.path / "run" / "hardware.json").read_text() == chosen


def test_results_of_other_content_are_moved_away_before_anything_runs(
    folder: Folder, two_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.train(PROBE, model="{init_from: earlier}")
    shutil.rmtree(folder.path / "earlier")
    shutil.copytree(two_runs / "two", folder.path / "earlier")
    monkeypatch.setattr("assay.steps.probe.fit_heads", _stop)
    with pytest.raises(KeyboardInterrupt):
        folder.train(PROBE, model="{init_from: earlier}")
    assert not (folder.path / "run" / "metrics.json").exists()  # no stale metrics beside a plan that they are not of
    assert not (folder.path / "run" / "model").exists()


def _stop(*given: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_a_member_is_no_step_of_an_earlier_plan(folder: Folder) -> None:
    folder.train(PROBE, FROZEN)
    with pytest.raises(PlanError, match="ensemble: step: '02-fit' comes after this step"):
        folder.train("ensemble: {members: [{step: 02-fit}, {run: earlier}]}", FROZEN)


def test_every_path_that_a_step_takes_weights_from_is_a_source() -> None:
    """Whatever names a file or a run is in keys by its content, is made absolute and is looked at for leaks."""
    marked, others = set(), set()
    for kind in _settings(set(), Plan, *(step.settings for step in STEPS.values())):
        for name, field in kind.model_fields.items():
            said = re.search(r"folder of a|finished run|path of|weights of", (field.description or "").lower())
            if any(isinstance(one, Source) for one in field.metadata):
                marked.add((kind.__name__, name))
            elif said and "str" in str(field.annotation):
                others.add((kind.__name__, name))
    assert marked == {
        ("ModelSettings", "weights"),
        ("ModelSettings", "init_from"),
        ("FitSettings", "start"),
        ("CleanLabelsSettings", "weights"),
        ("MemberPlan", "run"),
    }
    assert not others


def _settings(found: set[type[Settings]], *kinds: Any) -> set[type[Settings]]:
    """Return all settings that these hold, at any depth; those of data, which keys hold by their samples, left out."""
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, DataSettings):
            continue
        if isinstance(kind, type) and issubclass(kind, Settings):
            if kind not in found:
                found.add(kind)
                _settings(found, *(field.annotation for field in kind.model_fields.values()))
        else:
            _settings(found, *get_args(kind))
    return found


def test_the_two_runs_differ(two_runs: Path) -> None:
    one, two = (load_file(two_runs / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert any(not torch.equal(one[name], two[name]) for name in one if name.startswith("backbone."))
