"""Trainings beside each other, by several seeds, judged on the same images: for `unlabelled` and `noisy`.

What was measured stays in WORK/measured.jsonl, a line a training and seed, so that a measurement that was broken off
goes on from there; the section of docs/RESULTS.md is written from these lines alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from assay.plan.recipes import recipe_text
from assay.plan.yaml_lines import read, write
from benchmarks.page import replace_section, table
from benchmarks.record import Line, Record, require_same_settings
from benchmarks.resampling import draws, with_interval

Floats = npt.NDArray[np.float64]
RESAMPLES = 2_000


@dataclass(frozen=True)
class Training:
    """One way to train: the `data:` that it writes into a folder by a seed, and its steps."""

    data: Callable[[Path, int], Line]
    steps: Sequence[Line]


@dataclass(frozen=True)
class Comparison:
    """Trainings by name, the first of which the others are held against, and how a run is judged."""

    section: str
    trainings: Mapping[str, Training]
    judge: Callable[[Path], dict[str, list[int]]]  # a run -> name of a model of it -> which images it names rightly
    about: Sequence[str]  # lines before the table


def recipe_steps(name: str, size: int, scale: float = 1.0, **changes: Any) -> list[Line]:
    """The steps of a recipe, its probes and fits at another size, its fits as much longer; changes are of the fits."""

    def changed(step: Line) -> Line:
        ((kind, settings),) = step.items()
        if kind == "repeat":
            return {kind: {**settings, "steps": [changed(inside) for inside in settings["steps"]]}}
        if kind == "fit":
            return {kind: {**settings, "size": size, "epochs": max(1, round(scale * settings["epochs"])), **changes}}
        return {kind: {**settings, "size": size}} if kind == "probe" else step

    return [changed(step) for step in read(recipe_text(name), name).value["steps"]]


def options(about: str, *, size: int) -> argparse.ArgumentParser:
    """The command line of a comparison; more may be added to it."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds the data sets, unpacked")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="trainings by name")
    parser.add_argument("--size", type=int, default=size, help="side of the images, in pixels")
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of epochs")
    parser.add_argument("--work", type=Path, help="where measured lines are kept")
    parser.add_argument("--page", type=Path, default=Path("docs/RESULTS.md"))
    parser.add_argument("--report", action="store_true", help="measure nothing, write the section again")
    return parser


def measure(comparison: Comparison, given: argparse.Namespace) -> None:
    """Measure what is missing, all trainings by one seed before the next, and write the section."""
    work = given.work or Path(tempfile.gettempdir()) / f"assay-{comparison.section}"
    require_same_settings(work, [given.size, given.scale])
    record = Record(work / "measured.jsonl")
    done = {(line["name"], line["seed"]) for line in record.lines}
    for seed in [] if given.report else given.seeds:
        for name in given.only or comparison.trainings:
            if (name, seed) not in done:
                sys.stderr.write(f"{name}, seed {seed}\n")
                found = _trained(comparison.trainings[name], comparison.judge, work / "scratch", seed)
                record.keep({"name": name, "seed": seed, **found})
    replace_section(comparison.section, [*comparison.about, "", *_table(comparison, record.lines)], page=given.page)


def _trained(training: Training, judge: Callable[[Path], dict[str, list[int]]], place: Path, seed: int) -> Line:
    """Train in an empty folder; which images each model of it names rightly, and the seconds."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    plan = {"data": training.data(place, seed), "seed": seed, "steps": list(training.steps)}
    (place / "plan.yaml").write_text(write(plan), encoding="utf-8")
    command = [sys.executable, "-m", "assay", "train", str(place / "plan.yaml"), "--run", str(place / "run"), "--json"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"seconds": round(time.perf_counter() - began, 1), "right": judge(place / "run")}


def _table(comparison: Comparison, lines: Sequence[Line]) -> list[str]:
    """A row a training and model of it: its accuracy over its seeds, and how far above the first row it is."""
    found: dict[tuple[str, str], dict[int, Floats]] = {}
    for name in comparison.trainings:
        for line in (line for line in lines if line["name"] == name):
            for model, right in line["right"].items():
                found.setdefault((name, model), {})[line["seed"]] = np.array(right, np.float64)
    base = next(iter(found.values()))
    resampled = np.concatenate(list(draws(len(next(iter(base.values()))), RESAMPLES, seed=0)), axis=1)
    rows = []
    for (name, model), by_seed in found.items():
        above = [right - base[seed] for seed, right in by_seed.items() if seed in base and by_seed is not base]
        seconds = np.median([line["seconds"] for line in lines if line["name"] == name])
        seeds = ", ".join(f"{right.mean():.3f}" for right in by_seed.values())
        gain = _shown(above, resampled, sign="+") if above else ""
        rows.append([name, model, _shown(list(by_seed.values()), resampled), seeds, gain, f"{seconds:.0f} s"])
    return table(["training", "epoch", "accuracy", "by seed", "above the first row", "whole command"], rows)


def _shown(by_seed: Sequence[Floats], resampled: npt.NDArray[np.float32], *, sign: str = "") -> str:
    """The mean over seeds and images of values (N,), with its 95 % interval over images."""
    values = np.mean(by_seed, axis=0)
    found = with_interval(float(values.mean()), len(values), values @ resampled / len(values))
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"
