"""What choices against wrong labels gain, on cifar10n with labels of which people got 40 % wrong.

    python -m benchmarks.noisy DATA [--seeds 0 1 2] [--only NAME ...] [--size 64] [--scale 1.0]

Scored on DATA/cifar10n/test after the last epoch, and at the epoch that validation chose. The seed draws the split.
"""

from assay.predictions.predictor import Predictor
from benchmarks.harness import Benchmark, Options, Record, by_seed, train
from benchmarks.trainings import FIT, recipe_steps, training_lines

AUGMENT: Record = {"crop": [0.5, 1.0], "flip": "horizontal"}
AVERAGED: Record = {"ema": 0.99}
GENERALISED: Record = {**AVERAGED, "loss": {"kind": "generalised_cross_entropy", "q": 0.7}}
ERASE: Record = {"probability": 0.5, "patches": 3, "fill": "noise"}
SMOOTH: Record = {"loss": {"smoothing": 0.1}, "mix": {"mixup": 0.4}, "augment": {**AUGMENT, "erase": ERASE}}
MIXED: Record = {**AVERAGED, **SMOOTH}
UNLABELLED: Record = {**AVERAGED, "unlabelled": {"threshold": 0.95, "ratio": 1}}
RECIPE = "noisy-labels-fast"
TRAININGS: dict[str, tuple[str, str | None, Record]] = {
    "plain": ("worse", None, {}),
    "averaged weights": ("worse", None, AVERAGED),
    "generalised cross-entropy": ("worse", None, GENERALISED),
    "smoothing, MixUp, erasing": ("worse", None, MIXED),
    "generalised cross-entropy, MixUp, erasing": ("worse", None, MIXED | GENERALISED),
    "suspects dropped": ("worse", "drop", AVERAGED),
    "suspects dropped, MixUp, erasing, flat_cos": ("worse", "drop", MIXED | {"schedule": "flat_cos"}),
    "suspects unset, FixMatch": ("worse", "unset", UNLABELLED),
    f"`{RECIPE}`": ("worse", RECIPE, {}),
    f"`{RECIPE}`, on the aggregate": ("aggregate", RECIPE, {}),
    "plain, on the aggregate": ("aggregate", None, {}),
    "averaged weights, on the aggregate": ("aggregate", None, AVERAGED),
}
"""The column of labels; the recipe, or what `clean_labels` does about suspects; and the settings of the fit."""


def measure(options: Options, case: tuple[str, str | None, Record], seed: int) -> Record:
    """Train, and return which test images the last and the chosen epoch of the fit name rightly."""
    column, action, changes = case
    size, epochs = options.size, max(1, round(options.scale * 6))
    fit = {"size": size, "epochs": epochs, **FIT, "augment": AUGMENT, "monitor": "accuracy", **changes}
    steps = [{"clean_labels": {"size": size, "action": action}}] if action else []
    steps += [{"probe": {"size": size}}, {"fit": fit}]
    if action == RECIPE:
        steps = recipe_steps(RECIPE, size, epochs / 6)
    labels = {"heads": {"label": {"column": column}}, "split": {"val": 0.2, "seed": seed}}
    images, correct = sorted((options.data / "cifar10n" / "test").glob("*/*")), {}
    with options.scratch() as folder:
        done = train({"data": {**options.data_of("cifar10n"), **labels}, "seed": seed, "steps": steps}, folder)
        for epoch in ("last", "best"):
            model = Predictor.load(max((folder / "run/steps").glob("*-fit")) / epoch, device="cpu")
            names = [
                name for part in model.stream((str(path), path) for path in images) for name in part.labels("label")
            ]
            correct[epoch] = [int(name == path.parent.name) for name, path in zip(names, images, strict=True)]
    return {"seconds": done.seconds, "correct": correct}


if __name__ == "__main__":
    Benchmark(
        "noisy", __doc__, by_seed(measure, TRAININGS), lines=training_lines, settings={"size": 64, "scale": 1.0}
    ).main()
