"""What unlabelled images gain, on a set with labels for 10 images of each class.

    python -m benchmarks.unlabelled DATA [--set eurosat] [--seeds 0 1 2] [--only NAME ...] [--each 10] [--size 64]
        [--scale 1.0]

Scored on a fifth that no fault touches, after the last epoch. The seed draws the labels that are kept.
"""

from typing import Any

from benchmarks.harness import Benchmark, Options, Record, by_seed, train
from benchmarks.planted import faults, plant
from benchmarks.trainings import FIT, recipe_model, recipe_steps, training_lines, validation_codes

AUGMENT: Record = {"crop": [0.5, 1.0], "flip": "both"}
LAST: Record = {**FIT, "freeze": 2, "augment": AUGMENT, "ema": 0.95, "take": "last", "keep": "last"}
RECIPE = "missing-labels-fast"
TRAININGS: dict[str, tuple[str, Any]] = {
    "labelled images alone": ("fit", {}),
    "pseudo-labels, all kept, 2 rounds": ("rounds", "all"),
    "pseudo-labels from 0.95, 2 rounds": ("rounds", {"confidence": 0.95}),
    "FixMatch": ("fit", {"unlabelled": {"method": "fixmatch", "threshold": 0.95, "ratio": 7}}),
    "FlexMatch": ("fit", {"unlabelled": {"method": "flexmatch", "threshold": 0.95, "ratio": 7}}),
    f"`{RECIPE}`": ("recipe", None),
    "all labels known": ("all", None),
    f"`{RECIPE}`, all labels known": ("recipe", "all"),
}
"""With FixMatch and FlexMatch there are as many optimiser steps as on the labelled images alone."""


def measure(options: Options, case: tuple[str, Any], seed: int) -> Record:
    """Train, and return which validation images the model names rightly after its last epoch."""
    kind, settings = case
    with options.scratch() as folder:
        planted = faults(seed=seed, keep=None if kind == "all" or case == ("recipe", "all") else options.each)
        data = plant(options.data / options.set, folder / "labels.csv", planted)
        model = recipe_model(RECIPE) if kind == "recipe" else {}
        steps = steps_by(options, kind, settings)
        done = train({"data": data, "model": model, "seed": seed, "steps": steps}, folder)
        codes = zip(*validation_codes(folder / "run"), strict=True)
        return {"seconds": done.seconds, "correct": {"last": [int(truth == predicted) for truth, predicted in codes]}}


def steps_by(options: Options, kind: str, settings: Any) -> list[Record]:
    """Return the steps of a training."""
    fit = {"size": options.size, **LAST}
    labelled = {**fit, "batch": 16, "epochs": max(1, round(30 * options.scale))}
    everything = {**fit, "batch": 32, "epochs": max(1, round(5 * options.scale))}
    probe = {"probe": {"size": options.size}}
    again = {"times": 2, "steps": [{"pseudo_label": {"keep": settings}}, {"fit": everything}]}
    if kind == "recipe":
        first, labelled_fit, *others = recipe_steps(RECIPE, options.size, options.scale)
        return [first, *([] if settings == "all" else [labelled_fit]), *others]  # the last fit learns from all of them
    if kind == "rounds":
        return [probe, {"fit": labelled}, {"repeat": again}]
    return [probe, {"fit": everything if kind == "all" else {**labelled, **settings}}]


if __name__ == "__main__":
    settings = {"set": "eurosat", "each": 10, "size": 64, "scale": 1.0}
    Benchmark("unlabelled", __doc__, by_seed(measure, TRAININGS), lines=training_lines, settings=settings).main()
