"""Two processes train as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import assay
from assay.training.answered import Answered
from assay.training.hardware import Hardware
from assay.training.job import Progress
from assay.training.loop import _restore, _Saver
from assay.training.machine import Machine
from assay.training.processes import Alone

LAUNCH = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
QUIET = ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
STEPS = (
    "probe: {size: 32}",
    "fit: {size: 32, epochs: 1, batch: 8, freeze: backbone, views: 2, augment: {flip: horizontal}, lr: 1e-2}",
    "fit: {size: 32, epochs: 2, batch: 8, accumulate: 2, ema: 0.9, early_stop: 2, lr: 1e-2, optimizer: sgd, "
    "augment: {per_class: {red: {more: 1.5}}}}",
    "repeat: {times: 1, steps: [fit: {size: 32, epochs: 1, batch: 5, freeze: all_but_last_stage}]}",
    "fit: {size: 32, epochs: 1, batch: 7, lr: 1e-3, unlabelled: {method: flexmatch, threshold: 0.5, ratio: 1}}",
)


def launch(plan: Path, run: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *LAUNCH, *QUIET, "-m", "assay", "train", str(plan), "--run", str(run), "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def counts(metrics: dict[str, Any]) -> list[Any]:
    scores = [step["scores"] for step in metrics["steps"]]
    return [
        [(name, figure["n"]) for name, figure in score["figures"].items()]
        + [np.sum(head["confusion"]).tolist() for head in score["heads"].values()]
        for score in scores
    ]


def history(run: Path) -> dict[tuple[str, str, str], float]:
    import polars as pl

    rows = pl.concat([pl.read_csv(path) for path in sorted(run.rglob("history.csv"))]).rows(named=True)
    return {(row["step"], row["epoch"], f"{row['part']} {row['name']}"): row["value"] for row in rows}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run of one process, the same of two, and what the two printed."""
    from conftest import write_pictures

    folder = tmp_path_factory.mktemp("processes")
    write_pictures(folder / "pictures", each=15)
    (folder / "pictures" / "red" / "broken.png").touch()
    write_pictures(folder / "unlabelled", each=3, seed=1)
    (folder / "unlabelled").rename(folder / "pictures" / "unlabelled")
    listed = "".join(f"\n  - {step}" for step in STEPS)
    (folder / "plan.yaml").write_text(
        "data: {folder: pictures}\n"
        "model: {backbone: test_efficientnet, weights: none}\n"
        f"hardware: {{precision: fp32, layout: contiguous}}\nsteps:{listed}\n"
    )
    assay.train(folder / "plan.yaml", run=folder / "one", device="cpu")
    done = launch(folder / "plan.yaml", folder / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "one", folder / "two", done.stdout


def test_validation_counts_every_picture_once(both: tuple[Path, Path, str]) -> None:
    one, two = (assay.load(run).metrics for run in both[:2])
    assert [step["name"] for step in two["steps"]] == [step["name"] for step in one["steps"]]
    assert counts(one) == counts(two)
    assert one["counts"] == two["counts"]
    assert two["left_out"] == [{"path": "red/broken.png", "reason": "empty file (0 bytes)"}]


def test_training_is_the_same_to_rounding(both: tuple[Path, Path, str]) -> None:
    one, two = (history(run) for run in both[:2])
    assert one.keys() == two.keys()
    for key, value in one.items():
        if not key[2].endswith(" seconds"):
            assert value == pytest.approx(two[key], rel=2e-3, abs=2e-3), key
    first, second = (load_file(run / "model" / "model.safetensors") for run in both[:2])
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-2, atol=1e-2)


def test_only_the_main_process_speaks_and_writes(both: tuple[Path, Path, str]) -> None:
    _, two, said = both
    assert said.count("reading plan\n") == 1
    assert said.count("The run is in") == 1
    lines = [json.loads(line)["line"] for line in (two / "log.jsonl").read_text().splitlines()]
    assert lines.count("02-fit") == 1
    assert not list(two.rglob("*.part"))


def test_one_process_goes_on_with_what_two_have_done(both: tuple[Path, Path, str]) -> None:
    before = (both[1] / "metrics.json").read_bytes()
    assay.train(both[1].parent / "plan.yaml", run=both[1], device="cpu")
    assert (both[1] / "metrics.json").read_bytes() == before


def test_a_plan_that_cannot_be_carried_out_ends_all_processes(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("data: {folder: nowhere}\n")
    done = launch(tmp_path / "plan.yaml", tmp_path / "run")
    assert done.returncode != 0
    assert "assay: " in done.stderr
    assert "nowhere" in done.stderr


class Second(Alone):
    """The second of two processes."""

    process_index = 1
    num_processes = 2
    is_main_process = False


def test_what_one_process_saw_of_an_unfinished_epoch_counts_once(tmp_path: Path) -> None:
    from test_loop import COURSE, job_of

    job = job_of()
    count = len(job.source.ids)
    answered = Answered(torch.ones(count, COURSE.width), torch.ones(count))
    saver = _Saver(job, None, Machine(Alone(), Hardware()), tmp_path / "checkpoint", 0.0)
    saver.write(Progress(batch=1, sums=[3.0, 1.0], counts=[4.0, 2.0]), answered)
    for together, share in ((Alone(), 1.0), (Second(), 0.0)):
        machine = Machine(together, Hardware())
        progress, seen = _restore(job_of(), COURSE, None, machine, tmp_path / "checkpoint")
        assert (progress.batch, progress.sums) == (1, [3.0 * share, share])
        assert progress.counts == [4.0 * share, 2.0 * share]
        assert seen.sums.unique().tolist() == seen.times.unique().tolist() == [share]


def test_several_processes_save_at_the_end_of_an_epoch_only(tmp_path: Path) -> None:
    from test_loop import job_of

    savers = [_Saver(job_of(), None, Machine(t, Hardware()), tmp_path / "x", -1.0) for t in (Alone(), Second())]
    assert [saver.due() for saver in savers] == [True, False]
