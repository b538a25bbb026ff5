"""A training that is asked to stop: by SIGTERM or --stop-at, at any place, with what it needs to go on."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
from datetime import datetime
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file

from assay.commands.endings import GOES_ON, exit_codes, seconds_until, stop_at
from assay.commands.output import command
from assay.errors import PlanError
from assay.run.environment import environment, memory_limit
from assay.training.stopping import finishing, graceful_stop, interruptible, leave, stop_requested
from factories import write_images
from test_loop import job_of, network, same, trained

NOW = datetime(2026, 1, 31, 22, 30)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7h50m", 28200), ("90m", 5400), ("45s", 45), ("1d12h", 129600), ("1.5H", 5400), ("7h 50m", 28200),
     ("23:00", 1800), ("06:30", 28800), ("22:30", 86400)],
)  # fmt: skip
def test_a_duration_or_a_time_of_day(text: str, seconds: float) -> None:
    assert seconds_until(text, NOW) == seconds


@pytest.mark.parametrize("text", ["", "7", "0s", "h", "7h50", "24:00", "7:5", "-3h", "soon"])
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=re.escape(f"--stop-at {text}: is neither a duration nor a time of day")):
        seconds_until(text, NOW)


def send(number: int = signal.SIGTERM) -> None:
    signal.raise_signal(number)


def send_and_go_on() -> None:
    send()
    raise AssertionError("the block went on")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_outside_of_the_loop_a_signal_ends_at_once(number: int, error: type[BaseException]) -> None:
    with pytest.raises(error), graceful_stop():
        send(number)


def test_the_loop_finishes_and_then_asks() -> None:
    asked = []

    def loop() -> None:
        with finishing():
            send()
            asked.append(stop_requested())

    with pytest.raises(SystemExit), graceful_stop():
        loop()
    assert asked == [True]


def test_its_evaluation_does_not() -> None:
    with pytest.raises(SystemExit), graceful_stop(), finishing(), interruptible():
        send_and_go_on()


def test_an_error_after_a_signal_is_the_end_of_another_process() -> None:
    def swallowed() -> None:
        with contextlib.suppress(SystemExit):  # as some library does
            send()
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(SystemExit), graceful_stop():
        swallowed()
    with pytest.raises(SystemExit, match="143"):
        leave()


@pytest.mark.parametrize(("stopped", "code"), [(GOES_ON, 0), ("Nothing was written.", 143)])
def test_sigterm_is_no_failure_of_what_goes_on(stopped: str, code: int) -> None:
    with pytest.raises(typer.Exit) as left, exit_codes(stopped=stopped):
        send()
    assert left.value.exit_code == code


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_fit_stopped_in_an_evaluation_repeats_no_optimiser_step(ema: float | None, tmp_path: Path) -> None:
    _, wanted, _ = trained(tmp_path / "whole", job_of(model=network(0.5)), ema=ema)
    job = dataclasses.replace(job_of(model=network(0.5)), evaluate=lambda *given: send_and_go_on() or {})
    with pytest.raises(SystemExit), graceful_stop():
        trained(tmp_path / "two", job, ema=ema)
    before = len(job.source.seen)
    _, weights, later = trained(tmp_path / "two", job_of(model=network(0.5)), ema=ema)
    assert before + len(later.source.seen) == 6
    assert same(weights, wanted)


def test_stop_at_sends_sigterm() -> None:
    script = "import time\nfrom assay.commands.endings import stop_at\nwith stop_at('0.3s'):\n    time.sleep(30)\n"
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == -signal.SIGTERM
    with stop_at(None):
        pass


PLAN = """
data: {{folder: {folder}}}
model: {{backbone: test_efficientnet, weights: none}}
hardware: {{precision: fp32, layout: contiguous}}
steps: [fit: {{size: 32, epochs: 3, batch: 4, lr: 1e-3, take: last, keep: last}}]
"""


def child(plan: Path, run: Path, at: int) -> None:
    """Train as the command does, and be sent SIGTERM before the optimiser step `at`."""
    from assay.run import train as run_module
    from assay.training import processes

    torch.set_num_threads(1)
    steps, step = itertools.count(1), processes.Machine.optimizer_step

    def stopping(*given: Any, **named: Any) -> None:
        if next(steps) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        step(*given, **named)

    processes.Machine.optimizer_step = stopping  # type: ignore[method-assign]
    run_module.baselines = lambda *given, **options: {}  # type: ignore[assignment]
    try:
        with command(stopped=GOES_ON):
            run_module.train(plan, run=run, device="cpu")
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


def run_child(forks: ForkServerContext, plan: Path, run: Path, *, at: int) -> int | None:
    process = forks.Process(target=child, args=(plan, run, at))
    process.start()
    process.join()
    return process.exitcode


def test_a_process_that_was_sent_sigterm_ends_with_0_and_goes_on_to_the_same_weights(
    tmp_path: Path, forks: ForkServerContext
) -> None:
    write_images(tmp_path / "data", each=4)
    (tmp_path / "plan.yaml").write_text(PLAN.format(folder=tmp_path / "data"))
    assert run_child(forks, tmp_path / "plan.yaml", tmp_path / "whole", at=0) == 0
    assert run_child(forks, tmp_path / "plan.yaml", tmp_path / "part", at=4) == 0
    assert not (tmp_path / "part" / "metrics.json").exists()
    assert (tmp_path / "part" / "steps" / "01-fit" / "checkpoint.safetensors").exists()
    assert run_child(forks, tmp_path / "plan.yaml", tmp_path / "part", at=0) == 0
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_environment_has_memory_and_gpus(tmp_path: Path) -> None:
    about = environment(processes=1)
    assert isinstance(about["memory"], float)
    assert about["gpus"] == [] or torch.cuda.is_available()
    assert "driver" in about
    (tmp_path / "memory.max").write_text("1048576\n")
    assert memory_limit(tmp_path) == 1.0
    (tmp_path / "memory.max").write_text("max\n")
    assert (memory_limit(tmp_path) or 0) > 1
