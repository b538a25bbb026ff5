"""Train on labels that people got wrong, with and without repairs; score on labels that are right.

    python -m benchmarks.noisy_labels DATA [--seeds 0 1 2] [--size 96]

DATA holds `cifar10n`. A fifth of its training pictures, the same for every column and seed, is validation, its labels
as wrong as the others. The true labels of its `test/` are only scored on, after all is chosen. What was measured stays
in WORK/measured.jsonl: a run that was broken off goes on from there. Writes a section of docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import assay
from assay.figures.intervals import draws, with_interval
from assay.output.artifact import Artifact
from assay.progress import Silent
from assay.recipes import recipe_text
from assay.scoring import answers_for
from benchmarks.page import replace_section, table

Line = dict[str, Any]
RESAMPLES = 2_000
PLAIN = """\
steps:
  - probe: {size: SIZE}
  - fit:
      size: SIZE
      epochs: 3
      lr: 1e-3
      optimizer: {kind: adamw, weight_decay: 0.02}
      schedule: one_cycle
      augment: {crop: [0.5, 1.0], flip: horizontal}
      ema: 0.99
"""
REPAIRED = "noisy-labels-fast"
TRAININGS = {  # name -> the column of labels, the recipe
    "fine-tuned on `worse` as it is": ("worse", None),
    f"`{REPAIRED}` on `worse`": ("worse", REPAIRED),
    "fine-tuned on `aggregate` as it is": ("aggregate", None),
}


def main() -> None:
    """Measure what is missing, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=96, help="pixels of the plain trainings")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-noisy-labels")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    record = given.work / "measured.jsonl"
    lines: list[Line] = [json.loads(row) for row in record.read_text().splitlines()] if record.exists() else []
    done = {(line["training"], line["seed"]) for line in lines}
    for seed in given.seeds:
        for training, (column, recipe) in TRAININGS.items():
            if (training, seed) not in done:
                found = {"training": training, "seed": seed, **measured(given, column, recipe, seed)}
                sys.stderr.write(f"{training}, seed {seed}: {np.mean(found['best']):.4f}, {found['seconds']} s\n")
                lines.append(found)
                with record.open("a") as file:
                    file.write(json.dumps(found) + "\n")
    replace_section("noisy labels", section([line for line in lines if line["seed"] in given.seeds], given))


def measured(given: argparse.Namespace, column: str, recipe: str | None, seed: int) -> Line:
    """Train by the command; which test pictures the chosen and the last epoch get right, and the seconds."""
    place = given.work / "scratch"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    root = (given.data / "cifar10n").resolve()
    pictures = pl.read_csv(root / "train.csv").select("image", label=column)
    held_back = np.random.default_rng(0).permutation(len(pictures)) < len(pictures) // 5
    pictures.with_columns(split=pl.Series(np.where(held_back, "val", "train"))).write_csv(place / "labels.csv")
    steps = recipe_text(recipe) if recipe else PLAIN.replace("SIZE", str(given.size))
    data = f'data: {{table: labels.csv, root: "{root}", heads: {{label: {{column: label}}}}}}\nseed: {seed}\n'
    (place / "plan.yaml").write_text(data + steps)
    began = time.perf_counter()
    command = [sys.executable, "-m", "assay", "train", str(place / "plan.yaml"), "--run", str(place / "run"), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = round(time.perf_counter() - began, 1)
    last_fit = sorted((place / "run" / "steps").glob("*-fit"))[-1]
    return {
        "best": right(place / "run" / "model", root / "test"),
        "last": right(last_fit / "last", root / "test"),
        "seconds": seconds,
        "steps": {
            path.parent.name: json.loads(path.read_text())["seconds"]
            for path in (place / "run" / "steps").glob("*/done.json")
        },
    }


def right(model: Path, test: Path) -> list[int]:
    """Which test pictures a model names rightly, in the order of their names."""
    samples = assay.read(test)
    found = answers_for(Artifact.load(model, device="cpu"), samples, Silent())
    (head,), (codes,) = samples.space, samples.codes()
    said = found.labels("label")
    return [int(own == head.classes[code]) for own, code in zip(said, codes.tolist(), strict=True)]


def section(lines: list[Line], given: argparse.Namespace) -> list[str]:
    """The table: accuracy on true labels, and the difference to plain training at its last and its chosen epoch."""
    resampled = np.concatenate(list(draws(len(lines[0]["best"]), RESAMPLES, seed=0)), axis=1)

    def shown(values: np.ndarray, sign: str = "") -> str:
        mean = values.mean(axis=0)
        found = with_interval(float(mean.mean()), len(mean), mean @ resampled / len(mean))
        return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"

    def answers(training: str, which: str) -> np.ndarray:
        return np.array([line[which] for line in lines if line["training"] == training], np.float64)

    plain = next(iter(TRAININGS))
    rows = []
    for training in TRAININGS:
        best, last = answers(training, "best"), answers(training, "last")
        of_training = [line["seconds"] for line in lines if line["training"] == training]
        changes = [
            "" if training == plain else shown(best - answers(plain, which)[: len(best)], "+")
            for which in ("last", "best")
        ]
        rows.append([training, shown(best), shown(last), *changes, f"{np.median(of_training):.0f} s"])
    seeds = " ".join(str(seed) for seed in given.seeds)
    header = ["training", "at the epoch validation chose", "at the last epoch"]
    return [
        f"cifar10n, accuracy on the {len(lines[0]['best'])} true labels of `test/`; 8,000 training pictures, seeds "
        f"{seeds}. Intervals: 95 %, over pictures, of the mean over seeds. "
        f"`python -m benchmarks.noisy_labels DATA --seeds {seeds} --size {given.size}`",
        "",
        *table([*header, "above plain at its last epoch", "above plain as chosen", "whole command"], rows),
    ]


if __name__ == "__main__":
    main()
