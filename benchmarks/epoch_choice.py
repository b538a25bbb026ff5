"""Which epoch to hand on where validation labels are wrong too: what the choice of each criterion is worth.

    python -m benchmarks.epoch_choice DATA [--seeds 0 1] [--images 800] [--size 96] [--epochs 10] [--only 'eurosat*']

The upper stages are trained on `--images` images with wrong labels. After each epoch they answer held-out images. Of
`eurosat`, 40 times a quarter of these validates, with as many labels flipped as in training, and the others score.
Of `cifar10n`, images of the training folder validate by their labels by people, and those of the test folder score.
Label Wave needs no validation: it counts the training images whose predicted class an epoch changed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from assay.arrays import Bools, Ints, Reals
from assay.labels.readers.read import DataSettings, read
from assay.labels.samples import Samples
from assay.predictions.predict import Predictions
from assay.run.train import train
from assay.steps import fit as fit_step
from assay.steps.trainable import Trainable, trainable
from assay.training.sources import StoredSource
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
    ids, epochs, predicted = answers(folder)
    validation = samples.part("val")
    rows = {image: row for row, image in enumerate(ids)}
    probabilities = epochs[:, [rows[image] for image in validation.ids]]
    codes = validation.codes()[0]
    kept = {"probabilities": probabilities, "codes": codes, "predicted": predicted}
    np.savez(folder / f"answers-{share}-{repaired}-{seed}.npz", **kept)  # type: ignore[arg-type]
    scores = np.array(["test/" in image for image in validation.ids]) if share is None else None
    return choices(probabilities, codes, share or 0.0, scores, (predicted[1:] != predicted[:-1]).sum(axis=1))


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


def answers(folder: Path) -> tuple[Sequence[str], Reals, Ints]:
    """Train by the plan in a folder; return what the model of each epoch predicts.

    These are the validation images, their probabilities (E, N, K), and the classes (E, M) of the training images.
    """
    epochs: list[Predictions] = []
    parts: list[Trainable] = []
    predicted: list[Ints] = []

    class Kept(Predictions):
        """Predictions of every epoch: a fit keeps those of one."""

        @classmethod
        def of(cls, *given: Any, **settings: Any) -> Predictions:  # type: ignore[override]
            epochs.append(Predictions.of(*given, **settings))
            predicted.append(classes_of(parts[-1]))
            return epochs[-1]

    @contextmanager
    def kept(*given: Any) -> Iterator[Trainable]:
        with trainable(*given) as part:
            parts.append(part)
            yield part

    fit_step.Predictions, fit_step.trainable = Kept, kept  # type: ignore[misc,assignment]
    train(folder / "plan.yaml", run=folder / "run", device="cpu")  # in one folder, whose cache the plans share
    fit_step.Predictions, fit_step.trainable = Predictions, trainable  # type: ignore[misc]
    return epochs[0].ids, np.stack([one.probabilities for one in epochs]), np.stack(predicted)


def classes_of(part: Trainable) -> Ints:
    """Return the predicted class (M,) of each training image by its plain view."""
    assert isinstance(part.source, StoredSource)
    plain = part.source.views[0]
    part.network.eval()
    with torch.inference_mode():
        blocks = [
            part.network(torch.from_numpy(plain[rows].astype(np.float32))).argmax(dim=1).numpy()
            for rows in np.array_split(np.arange(len(plain)), -(-len(plain) // 100))
        ]
    return np.concatenate(blocks)


def choices(probabilities: Reals, codes: Ints, share: float, scores: Bools | None, changes: Ints) -> Record:
    """Return by criterion how often each image that scores is named rightly, and the mean epoch, over draws.

    `changes` (E - 1,) is how many training images are predicted otherwise than after the epoch before.
    """
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
            epoch = criterion(probabilities[:, validates], given[validates], changes)
            taken[name].append(epoch + 1)
            right[name] += np.where(validates, 0, named[epoch])
    rows = np.flatnonzero(counted)
    return {
        "by epoch": named[:, rows].mean(axis=1).round(4).tolist(),
        "changes": changes.tolist(),
        "right": {name: (values[rows] / counted[rows]).round(4).tolist() for name, values in right.items()},
        "epoch": {name: float(np.mean(values)) for name, values in taken.items()},
    }


def of_given(probabilities: Reals, given: Ints) -> Reals:
    """Return the probabilities (E, N) of given labels (N,)."""
    return np.maximum(probabilities[:, np.arange(len(given)), given], 1e-7)


def agreement(probabilities: Reals, given: Ints) -> Reals:
    """Return the accuracy (E,) by given labels (N,)."""
    return np.asarray((probabilities.argmax(axis=2) == given).mean(axis=1))


def label_wave(probabilities: Reals, given: Ints, changes: Ints, *, mean_of: int) -> int:
    """Return the epoch of the first local minimum of the changes, each the mean of `mean_of` epochs; else the last.

    Label Wave (Yuan, Feng & Liu 2024, "Early stopping against label noise without validation data").
    """
    means = np.convolve(changes, np.full(mean_of, 1 / mean_of), "valid")
    rises = np.flatnonzero(np.diff(means) > 0)
    return int(rises[0]) + mean_of if len(rises) else len(probabilities) - 1


CRITERIA: Mapping[str, Callable[[Reals, Ints, Ints], int]] = {
    LAST: lambda probabilities, given, changes: len(probabilities) - 1,
    "loss": lambda probabilities, given, changes: int(np.log(of_given(probabilities, given)).mean(axis=1).argmax()),
    "accuracy, the first of equal ones": lambda probabilities, given, changes: int(
        agreement(probabilities, given).argmax()
    ),
    "accuracy, the last of equal ones": lambda probabilities, given, changes: (
        len(probabilities) - 1 - int(agreement(probabilities, given)[::-1].argmax())
    ),
    **{f"Label Wave, means of {count}": partial(label_wave, mean_of=count) for count in (2, 3)},
}
"""Criterion -> the epoch by probabilities (E, N, K) of validation images, their given labels, and changes (E - 1,)."""


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
