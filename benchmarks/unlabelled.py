"""What unlabelled images are worth, on eurosat with labels for 10 images of each class.

    python -m benchmarks.unlabelled DATA [--seeds 0 1 2] [--only NAME ...] [--each 10] [--size 64] [--scale 1.0]

Every training, by every seed, is judged on the same fifth of DATA/eurosat, which no fault touches and nothing is chosen
on: the last epoch is taken. The labels that are kept are drawn by the seed, and so is all chance of the training.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.predictions.predict import Predictions
from benchmarks.planted import keep, plant
from benchmarks.trainings import Comparison, Line, Training, measure, options, recipe_steps

TRAINED = {
    "freeze": 2, "batch": 16, "lr": 5e-4, "optimizer": {"kind": "adamw", "weight_decay": 0.02}, "schedule": "one_cycle",
    "augment": {"crop": [0.5, 1.0], "flip": "both"}, "ema": 0.95, "take": "last", "keep": "last",
}  # fmt: skip


RECIPE = "missing-labels-fast"


def main() -> None:
    """Measure what is missing, and write the section."""
    parser = options(__doc__ or "", size=64)
    parser.add_argument("--each", type=int, default=10, help="labels kept of each class")
    given = parser.parse_args()
    source, each = given.data / "eurosat", given.each

    def few(place: Path, seed: int) -> Line:
        return plant(source, place / "labels.csv", [partial(keep, each=each, seed=seed)])

    def whole(place: Path, seed: int) -> Line:
        return plant(source, place / "labels.csv", [])

    *partly, everything = plans(given.size, given.scale).items()
    trainings = {name: Training(few, steps) for name, steps in partly} | {everything[0]: Training(whole, everything[1])}
    about = [
        f"eurosat at {given.size} pixels, labels for {each} training images of each class, the rest unlabelled,",
        "judged on a fifth that no fault touches. Intervals: 95 %, over images, of the mean over seeds.",
        f"`python -m benchmarks.unlabelled DATA --each {each} --size {given.size} --scale {given.scale:g}`",
    ]
    measure(Comparison("unlabelled", trainings, right, about), given)


def plans(size: int, scale: float) -> dict[str, list[Line]]:
    """Name of a training -> its steps; with FixMatch and FlexMatch as many optimiser steps as on the labelled alone."""
    common = {"size": size, **TRAINED}
    few, many = (max(1, round(scale * epochs)) for epochs in (30, 5))  # over 100 images, and over all of them
    probe: Line = {"probe": {"size": size}}
    first = [probe, {"fit": {**common, "epochs": few}}]

    def rounds(chosen: Any) -> list[Line]:
        again = [{"pseudo_label": {"keep": chosen}}, {"fit": {**common, "batch": 32, "epochs": many}}]
        return [*first, {"repeat": {"times": 2, "steps": again}}]

    def consistent(method: str) -> list[Line]:
        own = {"method": method, "threshold": 0.95, "ratio": 7}
        return [probe, {"fit": {**common, "epochs": few, "unlabelled": own}}]

    return {
        "labelled images alone": first,
        "pseudo-labels, all kept, 2 rounds": rounds("all"),
        "pseudo-labels from 0.95, 2 rounds": rounds({"confidence": 0.95}),
        "FixMatch": consistent("fixmatch"),
        "FlexMatch": consistent("flexmatch"),
        f"`{RECIPE}`": recipe_steps(RECIPE, size, scale),
        "all labels known": [probe, {"fit": {**common, "batch": 32, "epochs": many}}],
    }


def right(run: Path) -> dict[str, list[int]]:
    """Which validation images the model of a run names rightly after its last epoch, in the order of their names."""
    validation = labelled(Samples.read(run / "samples.parquet").part("val"))
    (head,), (codes,) = validation.space, validation.codes()
    last = sorted((run / "steps").glob("*/done.json"))[-1]
    model = run / json.loads(last.read_text())["model"]
    found = Predictions.read(model / "predictions.parquet", validation.space, model=last.parent.name)
    said = dict(zip(found.ids, found.labels(head.name), strict=True))
    truth = dict(zip(validation.ids, codes.tolist(), strict=True))
    return {"last": [int(said[name] == head.classes[truth[name]]) for name in sorted(truth)]}


if __name__ == "__main__":
    main()
