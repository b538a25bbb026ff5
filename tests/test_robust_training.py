"""What helps against wrong labels, together: every pair of choices trains, and each still does what it does alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import assay
from assay.files import write_text
from assay.steps.history import read_history

CHOICES = {
    "loss": [
        "loss: {smoothing: 0.1}",
        "loss: {kind: generalised_cross_entropy, smoothing: 0.1}",
        "loss: {kind: focal, gamma: 1}",
        "loss: mean_squared_error",
    ],
    "mix": ["", "mix: {mixup: 0.4}", "mix: {mixup: 0.4, cutmix: 1, probability: 0.5}"],
    "augment": ["augment: {flip: horizontal, erase: {probability: 0.5, patches: 3, fill: noise}}", ""],
    "average": ["ema: 0.9", ""],
    "stop": ["early_stop: 1, monitor: accuracy", ""],
    "step": ["accumulate: 2, clip: 1.0", "batch_norm: train", "class_weights: inverse"],
}


def covering() -> list[str]:
    """Few combinations that hold every pair of choices: each time the one with most pairs not seen yet."""
    names = list(CHOICES)
    every = list(itertools.product(*(range(len(CHOICES[name])) for name in names)))

    def pairs(chosen: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(chosen), 2))

    left = set().union(*map(pairs, every))
    found = []
    while left:
        best = max(every, key=lambda chosen: len(pairs(chosen) & left))
        left -= pairs(best)
        found.append(", ".join(filter(None, (CHOICES[name][i] for name, i in zip(names, best, strict=True)))))
    return found


@pytest.mark.parametrize("settings", covering())
def test_every_pair_of_choices_trains(
    settings: str, tiny_plan: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "assay.report.report.write_images", lambda folder, *given: write_text(folder / "curves.svg", "drawn")
    )
    plan = tmp_path / "plan.yaml"
    plan.write_text(tiny_plan(f"fit: {{size: 32, epochs: 2, batch: 12, lr: 3e-3, {settings}}}"))
    run = assay.train(plan, run=tmp_path / "run", device="cpu")
    history = read_history(run.folder / "steps" / "01-fit" / "history.csv")
    losses = history.filter((pl.col("name") == "loss") & (pl.col("part") == "training"))["value"].to_list()
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
