"""assay lr-find: a curve of the loss by learning rate, a suggestion, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

import assay
from assay import cli
from assay.errors import DivergedError
from assay.experiments import lr_finder
from assay.experiments.lr_finder import Bounds, RangeTest, smoothed, suggest
from assay.files import StepName
from assay.steps.fit_settings import FitSettings
from factories import printed_json

PROBE = "probe: {size: 32}"
FIT = "fit: {size: 32, epochs: 1, batch: 8, lr: 3e-3"
QUICK = ("--optimizer-steps", "30")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["lr-find", *arguments, "--device", "cpu"])


def run_json(*arguments: str) -> dict[str, Any]:
    return printed_json(invoke(*arguments, "--json"))


# What is suggested


def curve(
    *, falls: float = 2.0, at: float = -3.0, low: float = -1.5, noise: float = 0.05, seed: int = 0
) -> list[float]:
    """Losses over `Bounds().rates()`: a fall that is steepest at 10^at, and a rise behind 10^low."""
    x = np.log10(Bounds().rates())
    loss = 3.0 - falls / (1 + np.exp(-4 * (x - at))) + 2 * np.clip(x - low, 0, None) ** 2
    return (loss + np.random.default_rng(seed).normal(0, noise, len(x))).tolist()


@pytest.mark.parametrize("at", [-4.0, -3.0, -2.5])
def test_the_steepest_descent_is_suggested(at: float) -> None:
    result = suggest(Bounds().rates(), curve(at=at), diverged=False)
    assert result.lr is not None
    assert result.lowest is not None
    assert abs(np.log10(result.lr) - at) < 0.35
    assert result.lr < result.lowest
    assert result.check == result.lowest / 10


@given(st.integers(0, 200))
def test_noise_alone_suggests_nothing(seed: int) -> None:
    result = suggest(Bounds().rates(), curve(falls=0.0, noise=0.3, seed=seed, low=0.0), diverged=False)
    assert result.lr is None
    assert "by more than chance" in result.reason


RISING = (np.linspace(0.1, 3, 100) ** 2 + np.random.default_rng(0).normal(0, 0.02, 100)).tolist()
STILL_FALLING = curve(at=0.0, low=9.0, falls=20.0)


@pytest.mark.parametrize(
    ("rates", "losses", "diverged", "reason"),
    [
        (Bounds().rates(), RISING, True, ""),
        (Bounds(1e-6, 1e-3).rates(), STILL_FALLING, False, "raise --highest"),
        (Bounds().rates()[:3], [1.0, 2.0, 9.0], True, "lower --lowest"),
    ],
)
def test_no_rate_is_suggested(rates: list[float], losses: list[float], diverged: bool, reason: str) -> None:
    result = suggest(rates, losses, diverged=diverged)
    assert result.lr is None
    assert reason in result.reason


def test_rules_that_disagree_are_reported() -> None:
    result = suggest(Bounds().rates(), curve(at=-4.5, low=-0.8, noise=0.001), diverged=False)
    assert result.lr is not None
    assert "times apart" in result.reason


def test_smoothing_moves_nothing_along_the_curve() -> None:
    step = [1.0] * 50 + [0.0] * 50
    assert int(np.diff(smoothed(step)).argmin()) == 49


# Rates tried on a fit


def test_every_optimiser_step_has_its_rate(tiny_plan: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[float, float]] = []
    real = lr_finder.optimizer_step

    def spied(job: Any, *rest: Any) -> None:
        groups = [group["lr"] for group in job.optimizer.param_groups]
        used.append((min(groups), max(groups)))
        real(job, *rest)

    monkeypatch.setattr(lr_finder, "optimizer_step", spied)
    Path("plan.yaml").write_text(tiny_plan(f"{FIT}, discriminative: [1e-4, 1e-2]}}"))
    result = run_json("plan.yaml", *QUICK, "--lowest", "1e-5", "--highest", "1e-2")
    rates = [point["lr"] for point in result["curve"]]
    assert [high for _, high in used][: len(rates)] == pytest.approx(rates)
    assert rates[0] == pytest.approx(1e-5)
    assert all(high / low == pytest.approx(100) for low, high in used)
    assert result["the plan's"] == 1e-2
    assert len(rates) == 30 or result["diverged"]


def test_a_fit_from_nothing_is_suggested_a_rate(tiny_plan: Callable[..., str]) -> None:
    Path("plan.yaml").write_text(tiny_plan(f"{FIT}, optimizer: adam, batch_norm: train}}"))
    result = run_json("plan.yaml", "--optimizer-steps", "80")
    assert result["lr"] is not None, result["reason"]
    assert 1e-5 < result["lr"] < 1
    assert result["set"] == f"steps.0.fit.lr={result['lr']:.2g}"
    assert result["image"] == "plans/plan/lr.png"
    with Image.open(result["image"]) as image:
        assert min(image.size) > 300


def test_enough_batches_need_no_word() -> None:
    curve = pl.DataFrame({"lr": [1e-3] * 50})
    test = RangeTest(
        StepName("01-fit"), "steps.0.fit", FitSettings(), curve, False, suggest([], [], diverged=True), 4000, 32
    )
    assert test.basis == "50 optimiser steps of 32 on 4,000 training images"


def test_the_same_rates_give_the_same_curve(tiny_plan: Callable[..., str]) -> None:
    Path("plan.yaml").write_text(tiny_plan(PROBE, f"{FIT}, augment: {{flip: both}}}}"))
    once, again = (run_json("plan.yaml", *QUICK) for _ in range(2))
    assert once == again


def test_nothing_is_left_behind(
    tiny_plan: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_runs: None
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    Path("plan.yaml").write_text(tiny_plan(PROBE, f"{FIT}}}"))
    assay.train("plan.yaml", run="runs/plan", device="cpu")
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    done = invoke("plan.yaml", *QUICK, "--out", "there")
    assert done.exit_code == 0, done.output
    assert "01-probe: done before, kept" in done.stdout  # taken from the run
    assert "steps of 8 on 36 training images: 5 batches an epoch, so each image about" in done.stdout
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    assert [path.name for path in Path("there").iterdir()] == ["lr.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yaml", "runs", "scratch", "there"]
    assert list(scratch.iterdir()) == []


def test_a_loss_that_is_not_finite_ends_the_curve(
    tiny_plan: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = lr_finder.optimizer_step, iter(range(100))

    def broken(*given: Any) -> None:
        if next(steps) == 4:
            raise DivergedError("the loss is not finite")
        real(*given)

    monkeypatch.setattr(lr_finder, "optimizer_step", broken)
    Path("plan.yaml").write_text(tiny_plan(f"{FIT}}}"))
    result = run_json("plan.yaml", *QUICK)
    assert (len(result["curve"]), result["diverged"], result["lr"]) == (4, True, None)


def test_a_step_is_chosen_by_its_index(tiny_plan: Callable[..., str]) -> None:
    frozen = "fit: {size: 32, freeze: backbone, epochs: 1, batch: 8}"
    Path("plan.yaml").write_text(tiny_plan(frozen, PROBE, f"{FIT}}}"))
    assert run_json("plan.yaml", *QUICK)["step"] == "01-fit"
    assert run_json("plan.yaml", *QUICK, "--step", "2")["step"] == "03-fit"


def test_a_fit_that_is_compared_is_within_a_repeat(tiny_plan: Callable[..., str]) -> None:
    compared = f"repeat: {{times: 1, only_if_better: true, steps: [{FIT}}}]}}"
    Path("plan.yaml").write_text(tiny_plan(PROBE, compared))
    result = run_json("plan.yaml", *QUICK)
    assert result["step"] == "02-repeat/round-1/01-fit"
    assert result["set"] is None or result["set"].startswith("steps.1.repeat.steps.0.fit.lr=")


# Bad input


@pytest.mark.parametrize(
    ("steps", "arguments", "expected"),
    [
        ((PROBE,), (), ["none of the plan's steps is a fit", "Add one"]),
        ((PROBE, f"{FIT}}}"), ("--step", "0"), ["--step 0", "steps.0 is probe, and no fit", "1 (02-fit)"]),
        ((PROBE, f"{FIT}}}"), ("--step", "7"), ["--step 7", "is not there", "1 (02-fit)"]),
        ((PROBE, f"{FIT}}}"), ("--step", "-1"), ["is not there"]),
        ((f"{FIT}}}",), ("--lowest", "1", "--highest", "1e-3"), ["--lowest 1 --highest 0.001", "the lower one first"]),
        ((f"{FIT}}}",), ("--lowest", "0"), ["--lowest 0", "above 0"]),
        ((f"{FIT}}}",), ("--highest", "nan"), ["--highest nan"]),
        ((f"{FIT}}}",), ("--optimizer-steps", "3"), ["--optimizer-steps 3", "at least 20"]),
    ],
)
def test_bad_input(
    steps: tuple[str, ...], arguments: tuple[str, ...], expected: list[str], tiny_plan: Callable[..., str]
) -> None:
    Path("plan.yaml").write_text(tiny_plan(*steps))
    done = invoke("plan.yaml", *arguments)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    for part in expected:
        assert part in done.stderr
    assert not Path("plans").exists()
