"""Which epoch to hand on where validation labels are wrong too: what the choice of each criterion is worth.

    python -m benchmarks.epoch_choice DATA [--seeds 0 1] [--images 800] [--size 96] [--epochs 10] [--only 'eurosat*']

The upper stages are trained on `--images` images with wrong labels. After each epoch they answer held-out images. Of
`eurosat`, 40 times a quarter of these validates, with as many labels flipped as in training, and the others score.
Of `cifar10n`, images of the training folder validate by their labels by people, and those of the test folder score.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from assay.arrays import Bools, Ints, Reals
from assay.labels.readers.read import DataSettings, read
from assay.labels.samples import Samples
from assay.predictions.predict import Predictions
from assay.run.train import train
from assay.steps import fit as fit_step
from benchmarks.harness import Benchmark, Options, Record, by_name, by_seed
from benchmarks.trainings import compare
from benchmarks.upper_fits import HELD, held_half, write_plan

LAST, DRAWS = "the last", 40
CASES: dict[str, tuple[str, float | None, bool]] = {
    "eurosat, 0 %": ("eurosat", 0.0, False),
    "eurosat, 40 %": ("eurosat", 0.4, False),
    "eurosat, 40 %, repaired": ("eurosat", 0.4, True),
    "cifar10n, worse": ("cifar10n", None, False),
    "cifar10n, worse, repaired": ("cifar10n", None, True),
}
"""Set, share of labels that are flipped or none for people's, and whether fits learn from soft labels."""

HEADER = "| set, wrong labels | seeds | epoch by | mean epoch | accuracy | above the last |"
ROW = "| {set} | {seeds} | {criterion} | {epoch:.1f} | {accuracy} | {gain} |"


def measure(options: Options, case: tuple[str, float | None, bool], seed: int) -> Record:
    """Train once, and choose an epoch by each criterion."""
    name, share, repaired = case
    folder = options.work / name
    folder.mkdir(exist_ok=True)
    samples = cifar10n(options, folder, seed) if share is None else held_half(options, name)
    repairs = [{"clean_labels": {"size": options.size, "action": {"soft": "wrong"}}}] if repaired else []
    flips = "horizontal" if share is None else "both"
    write_plan(options, folder, samples, share=share or 0.0, seed=seed, repairs=repairs, flips=flips)
    ids, epochs = answers(folder)
    validation = samples.part("val")
    rows = {image: row for row, image in enumerate(ids)}
    probabilities = epochs[:, [rows[image] for image in validation.ids]]
    codes = validation.codes()[0]
    np.savez(folder / f"answers-{share}-{repaired}-{seed}.npz", probabilities=probabilities, codes=codes)
    scores = np.array(["test/" in image for image in validation.ids]) if share is None else None
    return choices(probabilities, codes, share or 0.0, scores)


def cifar10n(options: Options, folder: Path, seed: int) -> Samples:
    """Return training and validation images by people's labels, and test images by right ones among the latter."""
    root = options.data / "cifar10n"
    drawn = pl.read_csv(root / "train.csv").sample(options.images + HELD // 2, seed=seed, shuffle=True)
    split = ["train"] * options.images + ["val"] * (HELD // 2)
    given = drawn.select("image", label="worse").with_columns(split=pl.Series(split))
    paths = sorted((root / "test").glob("*/*"))
    right = pl.DataFrame(
        {"image": [str(path.relative_to(root)) for path in paths], "label": [path.parent.name for path in paths]}
    )
    pl.concat([given, right.with_columns(split=pl.lit("val"))]).write_csv(folder / "drawn.csv")
    source = {
        "table": str(folder / "drawn.csv"),
        "root": str(root),
        "image": "image",
        "heads": {"label": {"column": "label"}},
    }
    return read(DataSettings.model_validate({**source, "split": {"column": "split"}}), base=folder)


def answers(folder: Path) -> tuple[Sequence[str], Reals]:
    """Train by the plan in a folder; return validation images, and their probabilities (E, N, K) after each epoch."""
    epochs: list[Predictions] = []

    class Kept(Predictions):
        """Predictions of every epoch: a fit keeps those of one."""

        @classmethod
        def of(cls, *given: Any, **settings: Any) -> Predictions:  # type: ignore[override]
            epochs.append(Predictions.of(*given, **settings))
            return epochs[-1]

    fit_step.Predictions = Kept  # type: ignore[misc]
    train(folder / "plan.yaml", run=folder / "run", device="cpu")  # in one folder, whose cache the plans share
    fit_step.Predictions = Predictions  # type: ignore[misc]
    return epochs[0].ids, np.stack([one.probabilities for one in epochs])


def choices(probabilities: Reals, codes: Ints, share: float, scores: Bools | None) -> Record:
    """Return by criterion how often each image that scores is named rightly, and the mean epoch, over draws."""
    draw, size, n = np.random.default_rng(0), probabilities.shape[2], len(codes)
    named = probabilities.argmax(axis=2) == codes  # (E, N)
    counted, right = np.zeros(n), {name: np.zeros(n) for name in CRITERIA}
    taken: dict[str, list[int]] = {name: [] for name in CRITERIA}
    for _ in range(DRAWS if scores is None else 1):
        validates = np.zeros(n, np.bool_)
        validates[draw.permutation(n)[: n // 4]] = True
        if scores is not None:
            validates = ~scores
        given = np.where(draw.random(n) < share, (codes + draw.integers(1, size, n)) % size, codes)
        counted += ~validates
        for name, criterion in CRITERIA.items():
            epoch = criterion(probabilities[:, validates], given[validates])
            taken[name].append(epoch + 1)
            right[name] += np.where(validates, 0, named[epoch])
    rows = np.flatnonzero(counted)
    return {
        "by epoch": named[:, rows].mean(axis=1).round(4).tolist(),
        "right": {name: (values[rows] / counted[rows]).round(4).tolist() for name, values in right.items()},
        "epoch": {name: float(np.mean(values)) for name, values in taken.items()},
    }


def of_given(probabilities: Reals, given: Ints) -> Reals:
    """Return the probabilities (E, N) of given labels (N,)."""
    return np.maximum(probabilities[:, np.arange(len(given)), given], 1e-7)


def agreement(probabilities: Reals, given: Ints) -> Reals:
    """Return the accuracy (E,) by given labels (N,)."""
    return np.asarray((probabilities.argmax(axis=2) == given).mean(axis=1))


CRITERIA: Mapping[str, Callable[[Reals, Ints], int]] = {
    LAST: lambda probabilities, given: len(probabilities) - 1,
    "loss": lambda probabilities, given: int(np.log(of_given(probabilities, given)).mean(axis=1).argmax()),
    "accuracy, the first of equal ones": lambda probabilities, given: int(agreement(probabilities, given).argmax()),
    "accuracy, the last of equal ones": lambda probabilities, given: (
        len(probabilities) - 1 - int(agreement(probabilities, given)[::-1].argmax())
    ),
}
"""Criterion -> the epoch by probabilities (E, N, K) of validation images and their given labels."""


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a row a set and criterion."""
    rows = []
    for name, chosen in by_name(records).items():
        models = [
            {"name": criterion, "seed": record["seed"], "correct": record["right"][criterion]}
            for criterion in CRITERIA
            for record in chosen
        ]

        def accuracy_of(record: Record, weights: Reals) -> Reals:
            return np.array([record["correct"]]) @ weights / len(record["correct"])

        texts = compare(models, accuracy_of, images=len(models[0]["correct"]), base=LAST, resamples=2_000)
        for criterion in CRITERIA:
            ((accuracy, gain),) = texts[criterion]
            epoch = np.mean([record["epoch"][criterion] for record in chosen])
            row = {"set": name, "seeds": len(chosen), "criterion": criterion, "epoch": epoch}
            rows.append({**row, "accuracy": accuracy, "gain": gain})
    return options.section(HEADER, ROW, rows)


if __name__ == "__main__":
    Benchmark(
        "epoch choice", __doc__, by_seed(measure, CASES), lines=lines, seeds=(0, 1),
        settings={"images": 800, "size": 96, "epochs": 10},
    ).main()  # fmt: skip
