"""What sampling, class weights and augmentation by class are worth to the weakest class of plain fine-tuning.

    python -m benchmarks.imbalanced DATA [--seeds 0 1 2] [--epochs 4] [--size 128] [--work DIR]

DATA holds seedlings/, a folder a class. A fifth of it is put aside with seed 0, the same for all runs; of the rest a
fifth validates. Which class is the weakest is read off validation, where plain fine-tuning has the lowest recall over
all seeds, and the metrics are of the fifth put aside, so that being picked for a low metric flatters no other way. Runs
are kept in WORK/measured.jsonl: what is there is not measured again. Writes a section of docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import assay
from assay.labels.samples import Samples
from assay.metrics.tallies import macro_f1, ratio
from assay.plan.yaml_lines import write
from benchmarks.page import replace_section, table
from benchmarks.record import Record
from benchmarks.resampling import draws, interval

Floats = npt.NDArray[np.floating[Any]]
Way = Callable[[str], dict[str, Any]]

AUGMENT = {"flip": "both", "shift": 0.05}
STRONGER = {"rotate": 180, "scale": [0.8, 1.25], "shift": 0.1, "jitter": 0.2}
TAUGHT = {"prior": "trained"}
PLAIN = "plain fine-tuning"


def by_class(own: Mapping[str, Any]) -> Way:
    """What the weakest class is told beside the others."""
    return lambda weakest: {"augment": {**AUGMENT, "per_class": {weakest: dict(own)}}}


def weighed(weakest: str) -> dict[str, Any]:
    """The weakest class counts twice."""
    return {"class_weights": {"kind": "given", "weights": {"label": {weakest: 2.0}}}, "prior": "trained"}


WAYS: dict[str, Way] = {
    PLAIN: lambda weakest: {},
    "its images augmented more strongly": by_class(STRONGER),
    "the same, and shown twice as often": lambda weakest: {**by_class({**STRONGER, "more": 2})(weakest), **TAUGHT},
    "class weight 2 for it": weighed,
    "class weights, inverse": lambda weakest: {"class_weights": "inverse", **TAUGHT},
    "oversampling": lambda weakest: {"sampling": "oversample", **TAUGHT},
    "oversampling, answers by the data's shares": lambda weakest: {"sampling": "oversample"},
}


def main() -> None:
    """Measure what is missing, and write the section."""
    given = arguments()
    record = Record(given.work / "measured.jsonl")
    lines = [line for line in record.lines if line["settings"] == settings(given)]
    for way, make in WAYS.items():
        for seed in given.seeds:
            if any((line["way"], line["seed"]) == (way, seed) for line in lines):
                continue
            weakest = "" if way == PLAIN else weakest_of(lines, given.seeds)
            sys.stderr.write(f"{way}, seed {seed}\n")
            line = {"way": way, "seed": seed, "settings": settings(given), **measure(make(weakest), seed, given)}
            lines.append(line)
            record.keep(line)
    replace_section("imbalanced", section(lines, given))


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for metrics to be held against one another."""
    return {"data": given.data.name, "epochs": given.epochs, "size": given.size}


def measure(changes: Mapping[str, Any], seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train once, and answer for the fifth that was put aside."""
    fit = {"size": given.size, "epochs": given.epochs, "augment": AUGMENT, "ema": 0.99, **changes}
    steps = [{"probe": {"size": given.size}}, {"fit": fit}]
    data = {"folder": str((given.data / "seedlings").absolute()), "split": {"val": 0.16, "test": 0.2, "seed": 0}}
    with tempfile.TemporaryDirectory() as scratch:
        plan = Path(scratch) / "plan.yaml"
        plan.write_text(write({"data": data, "seed": seed, "steps": steps}))
        run = assay.train(plan, run=Path(scratch) / "run", device="cpu")
        test = Samples.read(run.folder / "samples.parquet").part("test")
        (head,) = test.space
        answers = run.predict(test.paths).probabilities.argmax(axis=1)
        details = run.metrics["steps"][-1]["details"]
        recalls = {row["class"]: row["recall"] for row in run.metrics["scores"]["heads"][head.name]["per_class"]}
    return {
        "classes": list(head.classes),
        "truth": test.codes()[0].tolist(),
        "answers": answers.tolist(),
        "validation": recalls,
        "seconds": details["training_seconds"],
        "shown": details["images_an_epoch"],
    }


def weakest_of(lines: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """The class of the lowest validation recall of plain fine-tuning, over all seeds."""
    plain = [line["validation"] for line in lines if line["way"] == PLAIN and line["seed"] in seeds]
    return min(plain[0], key=lambda name: float(np.mean([recalls[name] for recalls in plain])))


def metrics(truth: Floats, answers: Floats, weights: Floats, place: int, size: int) -> Floats:
    """Recall of one class and macro F1 (2, B) of weights (N, B)."""
    hits, predicted, support = (
        np.stack([(own == number) @ weights for number in range(size)])
        for own in (np.where(answers == truth, truth, -1), answers, truth)
    )
    return np.stack([ratio(hits[place], support[place]), macro_f1(hits, predicted, support)])


def section(lines: Sequence[Mapping[str, Any]], given: argparse.Namespace) -> list[str]:
    """The table, with differences to plain fine-tuning paired by image and meant over seeds."""
    weakest = weakest_of(lines, given.seeds)
    truth, classes = np.array(lines[0]["truth"]), lines[0]["classes"]
    place = classes.index(weakest)
    weights = np.concatenate([np.ones((len(truth), 1)), *draws(len(truth), 1000, seed=0)], axis=1)
    found = {}
    for way in WAYS:
        own = [line for line in lines if line["way"] == way and line["seed"] in given.seeds]
        of_seeds = [metrics(truth, np.array(line["answers"]), weights, place, len(classes)) for line in own]
        found[way] = np.mean(of_seeds, axis=0)  # (2, 1 + resamples)
    rows = []
    for way, values in found.items():
        own = [line for line in lines if line["way"] == way and line["seed"] in given.seeds]
        gains = values - found[PLAIN]
        cells = [cell(values[which]) for which in (0, 1)]
        cells += ["" if way == PLAIN else cell(gains[which], signed=True) for which in (0, 1)]
        rows.append([way, *cells, own[0]["shown"], f"{np.mean([line['seconds'] for line in own]):.0f}"])
    n = int((truth == place).sum())
    command = f"python -m benchmarks.imbalanced DATA --seeds {' '.join(map(str, given.seeds))}"
    return [
        "## The weakest class",
        "",
        f"`{command} --epochs {given.epochs} --size {given.size}`: plant seedlings, `tf_efficientnet_lite0`, a probe",
        f"and a fit of {given.epochs} epochs. The weakest class of plain fine-tuning on validation is *{weakest}*; the",
        f"metrics are of another fifth, put aside before (n = {len(truth)}, {n} of that class), means over",
        f"{len(given.seeds)} seeds with 95 % intervals over images, differences paired.",
        "",
        *table(
            [*("way", "recall of it", "macro F1", "recall gained", "macro F1 gained"), "images an epoch", "seconds"],
            rows,
        ),
    ]


def cell(values: Floats, *, signed: bool = False) -> str:
    """A metric, the first of the values, with the interval of the others."""
    low, high = interval(values[1:]) or (np.nan, np.nan)
    form = "+.3f" if signed else ".3f"
    return f"{values[0]:{form}} [{low:{form}}, {high:{form}}]"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds seedlings/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-imbalanced")
    return parser.parse_args()


if __name__ == "__main__":
    main()
