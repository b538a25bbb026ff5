"""What choices against wrong labels are worth, on cifar10n with labels of which people got 40 % wrong.

    python -m benchmarks.noisy DATA [--seeds 0 1 2] [--only NAME ...] [--size 64] [--scale 1.0]

Every training is judged on DATA/cifar10n/test, which no training and no choice sees: after its last epoch, and at the
epoch that validation chose, whose labels are as wrong as those of training. The seed draws the split and all chance.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from assay.predictions.predictor import Predictor
from benchmarks.trainings import Comparison, Line, Training, measure, options, recipe_steps

SEEN: Line = {"crop": [0.5, 1.0], "flip": "horizontal"}
TRAINED: Line = {
    "lr": 5e-4, "optimizer": {"kind": "adamw", "weight_decay": 0.02}, "schedule": "one_cycle", "augment": SEEN,
    "monitor": "accuracy",
}  # fmt: skip
AVERAGED: Line = {"ema": 0.99}
GENERALISED: Line = {**AVERAGED, "loss": {"kind": "generalised_cross_entropy", "q": 0.7}}
MIXED: Line = {
    **AVERAGED, "loss": {"smoothing": 0.1}, "mix": {"mixup": 0.4},
    "augment": {**SEEN, "erase": {"probability": 0.5, "patches": 3, "fill": "noise"}},
}  # fmt: skip


RECIPE = "noisy-labels-fast"


def main() -> None:
    """Measure what is missing, and write the section."""
    given = options(__doc__ or "", size=64).parse_args()
    source = given.data / "cifar10n"
    trainings = {
        name: Training(partial(data, source, column), steps)
        for name, (column, steps) in plans(given.size, given.scale).items()
    }
    about = [
        f"cifar10n at {given.size} pixels: 10,000 images, a fifth of them for validation, judged on the 2,000 of the",
        "test folder, whose labels are right. Intervals: 95 %, over images, of the mean over seeds.",
        f"`python -m benchmarks.noisy DATA --size {given.size} --scale {given.scale:g}`",
    ]
    measure(Comparison("noisy", trainings, partial(right, source / "test"), about), given)


def plans(size: int, scale: float) -> dict[str, tuple[str, list[Line]]]:
    """Name of a training -> the column of labels, and its steps."""
    epochs = max(1, round(scale * 6))
    probe: Line = {"probe": {"size": size}}

    def fit(changes: Line) -> list[Line]:
        return [probe, {"fit": {"size": size, "epochs": epochs, **TRAINED, **changes}}]

    def cleaned(action: str, changes: Line) -> list[Line]:
        return [{"clean_labels": {"size": size, "action": action}}, *fit(changes)]

    unlabelled: Line = {"unlabelled": {"threshold": 0.95, "ratio": 1}}
    return {
        "plain": ("worse", fit({})),
        "averaged weights": ("worse", fit(AVERAGED)),
        "generalised cross-entropy": ("worse", fit(GENERALISED)),
        "smoothing, MixUp, erasing": ("worse", fit(MIXED)),
        "generalised cross-entropy, MixUp, erasing": ("worse", fit(MIXED | GENERALISED)),
        "suspects dropped": ("worse", cleaned("drop", AVERAGED)),
        "suspects dropped, MixUp, erasing, flat_cos": ("worse", cleaned("drop", MIXED | {"schedule": "flat_cos"})),
        "suspects unset, FixMatch": ("worse", cleaned("unset", AVERAGED | unlabelled)),
        f"`{RECIPE}`": ("worse", recipe_steps(RECIPE, size, epochs / 6)),
        f"`{RECIPE}`, on the aggregate": ("aggregate", recipe_steps(RECIPE, size, epochs / 6)),
        "plain, on the aggregate": ("aggregate", fit({})),
        "averaged weights, on the aggregate": ("aggregate", fit(AVERAGED)),
    }


def data(source: Path, column: str, place: Path, seed: int) -> Line:
    """The `data:` of one column of labels."""
    heads: dict[str, Any] = {"label": {"column": column}}
    split = {"val": 0.2, "seed": seed}
    return {"table": str((source / "train.csv").resolve()), "image": "image", "heads": heads, "split": split}


def right(test: Path, run: Path) -> dict[str, list[int]]:
    """Which test images the last and the chosen epoch of a run's fit name rightly, in the order of their names."""
    images = sorted(test.glob("*/*"))
    fit = max((run / "steps").glob("*-fit"))
    found = {}
    for epoch in ("last", "best"):
        parts = Predictor.load(fit / epoch, device="cpu").stream((str(path), path) for path in images)
        said = [name for part in parts for name in part.labels("label")]
        found[epoch] = [int(name == path.parent.name) for name, path in zip(said, images, strict=True)]
    return found


if __name__ == "__main__":
    main()
