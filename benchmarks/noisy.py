"""What choices against wrong labels gain, on cifar10n with labels of which people got 40 % wrong, or on planted ones.

    python -m benchmarks.noisy DATA [--set cifar10n] [--seeds 0 1 2] [--only NAME ...] [--size 64] [--scale 1.0]
        [--images 5000] [--epochs 5]

Scored on DATA/cifar10n/test after the last epoch, and at the epoch that validation chose. The seed draws the split.
Of another set 40 % of the training labels are flipped to other classes by the seed, and a fifth that no fault touches
is scored, after the last epoch.
The trainings `of the half` are on `--images` of those whose true label is known, for `--epochs`. True labels train the
ceiling alone: which share of the gap between it and plain training a repair closes is in a table of its own.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from assay.arrays import Reals
from assay.predictions.predictor import Predictor
from benchmarks.harness import Benchmark, Cell, Options, Record, by_name, by_seed, table, train
from benchmarks.planted import faults, plant
from benchmarks.trainings import (
    FIT,
    bounds_text,
    gap_shares,
    recipe_model,
    recipe_steps,
    training_lines,
    validation_codes,
)

AUGMENT: Record = {"crop": [0.5, 1.0], "flip": "horizontal"}
AVERAGED: Record = {"ema": 0.99}
GENERALISED: Record = {**AVERAGED, "loss": {"kind": "generalised_cross_entropy", "q": 0.7}}
ERASE: Record = {"probability": 0.5, "patches": 3, "fill": "noise"}
SMOOTH: Record = {"loss": {"smoothing": 0.1}, "mix": {"mixup": 0.4}, "augment": {**AUGMENT, "erase": ERASE}}
MIXED: Record = {**AVERAGED, **SMOOTH}
UNLABELLED: Record = {**AVERAGED, "unlabelled": {"threshold": 0.95, "ratio": 1}}
RECIPE = "noisy-labels-fast"
UPPER: Record = {
    **FIT, "epochs": 5, "batch": 64, "lr": 1e-3, "freeze": 6, "views": 5, "ema": 0.99, "take": "last",
    "augment": AUGMENT,
}  # fmt: skip
ALL_STAGES: Record = {"features": "all_stages"}
FLEXMATCH: Record = {"unlabelled": {"method": "flexmatch", "threshold": 0.95, "ratio": 1}}
UPPER_MORE: Record = UPPER | {"freeze": 5}
DROP, UNSET, SOFT = ({"action": action} for action in ("drop", "unset", "soft"))
TRAININGS: dict[str, tuple[str, str | Record | None, Record]] = {
    "plain": ("worse", None, {}),
    "averaged weights": ("worse", None, AVERAGED),
    "generalised cross-entropy": ("worse", None, GENERALISED),
    "smoothing, MixUp, erasing": ("worse", None, MIXED),
    "generalised cross-entropy, MixUp, erasing": ("worse", None, MIXED | GENERALISED),
    "suspects dropped": ("worse", DROP, AVERAGED),
    "suspects dropped, MixUp, erasing, flat_cos": ("worse", DROP, MIXED | {"schedule": "flat_cos"}),
    "suspects unset, FixMatch": ("worse", UNSET, UNLABELLED),
    f"`{RECIPE}`": ("worse", RECIPE, {}),
    f"`{RECIPE}`, on the aggregate": ("aggregate", RECIPE, {}),
    "plain, upper stages": ("worse", None, UPPER_MORE),
    "suspects dropped, upper stages": ("worse", DROP, UPPER_MORE),
    "soft labels by `wrong`, upper stages": ("worse", {"action": {"soft": "wrong"}}, UPPER_MORE),
    "soft labels, upper stages": ("worse", SOFT, UPPER_MORE),
    "soft labels, fine-tuned judge, upper stages": ("worse", {**SOFT, "by": "fine_tuned", "folds": 4}, UPPER_MORE),
    "suspects unset, FlexMatch, upper stages": ("worse", UNSET, UPPER_MORE | FLEXMATCH),
    "true labels, upper stages": ("truth", None, UPPER_MORE),
    "plain, on the aggregate": ("aggregate", None, {}),
    "averaged weights, on the aggregate": ("aggregate", None, AVERAGED),
}
"""The column of labels; the recipe, or the settings of `clean_labels`; and the settings of the fit."""

UPPER_ROWS = [*(name for name in TRAININGS if name.endswith("upper stages")), f"`{RECIPE}`"]
PLANTED = 0.4  # of the training labels of another set
CLEAN: Record = {"size": 128, "by": "fine_tuned", "folds": 4}
PLAIN, CEILING = "plain, of the half", "true labels, of the half"
HALF: dict[str, tuple[str, Record | None, Record]] = {
    PLAIN: ("worse", None, {}),
    "soft labels, of the half": ("worse", CLEAN | SOFT, {}),
    "soft labels by `wrong`, of the half": ("worse", {**CLEAN, "action": {"soft": "wrong"}}, {}),
    "soft labels by `wrong`, judge on features, of the half": ("worse", {"action": {"soft": "wrong"}}, {}),
    "suspects dropped, of the half": ("worse", {**CLEAN, "action": "drop"}, {}),
    "suspects unset, FlexMatch, judge on features, of the half": ("worse", {"action": "unset"}, FLEXMATCH),
    CEILING: ("truth", None, {}),
}
"""Trainings of the upper stages on images whose truth is known: labels, the repair, what it changes of the fit."""


def cells(options: Options) -> list[Cell]:
    """Return the trainings for which a set has labels: an aggregate and half of the truth, or all of the truth."""
    people = options.set == "cifar10n"
    unknown = "truth" if people else "aggregate"
    whole = {name: case for name, case in TRAININGS.items() if case[0] != unknown}
    return [*by_seed(measure, whole)(options), *(by_seed(measure_half, HALF)(options) if people else [])]


def measure(options: Options, case: tuple[str, str | Record | None, Record], seed: int) -> Record:
    """Train on all images."""
    column, repair, changes = case
    size, epochs = options.size, max(1, round(options.scale * 6))
    fit = {"size": size, "epochs": epochs, **FIT, "augment": AUGMENT, "monitor": "accuracy", "take": "last", **changes}
    if isinstance(repair, str):
        plan = {"model": recipe_model(repair)}
        steps = recipe_steps(repair, size, options.scale)
    else:
        plan = {"model": ALL_STAGES} if "freeze" in changes else {}
        steps = [{"clean_labels": {"size": size, **repair}}] if repair else []
        steps += [{"probe": {"size": size}}, {"fit": fit}]
    plan |= {"seed": seed, "steps": steps}
    if options.set != "cifar10n":
        return planted(options, plan, seed, share=None if column == "truth" else PLANTED)
    return trained({**options.data_of("cifar10n"), "heads": {"label": {"column": column}}}, plan, options)


def planted(options: Options, plan: Record, seed: int, *, share: float | None) -> Record:
    """Train on labels of which a share is flipped, and return which images of the untouched fifth are named rightly."""
    with options.scratch() as folder:
        data = plant(options.data / options.set, folder / "labels.csv", faults(seed=seed, flip=share))
        done = train({"data": data, **plan}, folder)
        correct = np.equal(*validation_codes(folder / "run")).astype(int).tolist()
    return {"seconds": done.seconds, "correct": {"last": correct}}


def measure_half(options: Options, case: tuple[str, Record | None, Record], seed: int) -> Record:
    """Train on images whose true label is known."""
    (column, repair, changes), path, root = case, options.work / f"half-{options.images}.csv", options.data / "cifar10n"
    if not path.exists():
        truth = pl.read_csv(root / "truth_half.csv").select("image", truth="label")
        chosen = pl.read_csv(root / "train.csv").join(truth, on="image", how="inner", maintain_order="left")
        chosen.sample(min(options.images, chosen.height), seed=0, shuffle=True).write_csv(path)
    data = {"table": str(path), "root": str(root), "image": "image", "heads": {"label": {"column": column}}}
    fit = {"fit": UPPER | {"size": options.size, "epochs": options.epochs} | changes}
    steps = [*([{"clean_labels": repair}] if repair else []), fit]
    return trained(data, {"seed": seed, "steps": steps}, options)


def trained(data: Record, plan: Record, options: Options) -> Record:
    """Train, and return which test images the last and the chosen epoch of the fit name rightly."""
    images, correct = sorted((options.data / "cifar10n" / "test").glob("*/*")), {}
    with options.scratch() as folder:
        data = {**data, "split": {"val": 0.2, "seed": plan["seed"]}}
        done = train({"data": data, **plan}, folder)
        for epoch in ("last", "best"):
            model = Predictor.load(max((folder / "run/steps").glob("*-fit")) / epoch, device="cpu")
            names = [
                name for part in model.stream((str(path), path) for path in images) for name in part.labels("label")
            ]
            correct[epoch] = [int(name == path.parent.name) for name, path in zip(names, images, strict=True)]
    return {"seconds": done.seconds, "correct": correct}


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a table of the trainings on all images, and one of the shares of a gap that a repair closes."""
    whole, half = ([record for record in records if (record["name"] in HALF) == of_half] for of_half in (False, True))
    known = [record for record in whole if options.set != "cifar10n" and record["name"] in UPPER_ROWS]
    return [
        *(training_lines(options, whole) if whole else [options.command]),
        *(gap_lines(known, "plain, upper stages", "true labels, upper stages") if known else []),
        *(gap_lines(half, PLAIN, CEILING) if half else []),
    ]


def gap_lines(records: Sequence[Record], base: str, ceiling: str) -> list[str]:
    """Return a row a training: its accuracy after the last epoch, and its share of the gap."""

    def accuracy_of(record: Record, weights: Reals) -> Reals:
        return np.array(record["correct"]["last"]) @ weights / len(record["correct"]["last"])

    images = len(records[0]["correct"]["last"])
    shares = gap_shares(records, accuracy_of, images=images, base=base, ceiling=ceiling)
    rows = []
    for name, chosen in by_name(records).items():
        seeds = [float(np.mean(record["correct"]["last"])) for record in chosen]
        share = bounds_text(shares[name].to_json(), "+.2f") if name in shares else ""
        rows.append((name, f"{np.mean(seeds):.3f}", ", ".join(f"{one:.3f}" for one in seeds), share))
    return ["", *table(("training", "accuracy", "by seed", "share of the gap closed"), rows)]


if __name__ == "__main__":
    Benchmark(
        "noisy",
        __doc__,
        cells,
        lines=lines,
        settings={"set": "cifar10n", "size": 64, "scale": 1.0, "images": 5_000, "epochs": 5},
    ).main()
