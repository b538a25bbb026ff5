"""The built-in data: scikit-learn's handwritten digits as picture files, and labels with planted faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.files import whole, whole_folder

TRUTH, FAULTY = "truth.csv", "labels.csv"
HELD_BACK = 0.2  # for validation, whose labels stay true
HIDDEN = 0.6  # of the training labels
WRONG = 0.15  # of those that are left
COUNT = 1797
SIDE = 32  # pixels; a smooth 4x of the original 8 x 8, so that a person too can read them


def write_digits(folder: Path) -> None:
    """Write 1,797 grey PNG pictures of 32 x 32 pixels into `folder/0` ... `folder/9`, whole or not at all.

    The same bytes every time. A folder that has them already is left alone.
    Raises DataError for a folder that holds something else, SpaceError or RunError where the disk does not take them.
    Source: UCI Optical Recognition of Handwritten Digits, through scikit-learn.
    """
    if _holds_digits(folder):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder}: holds something else than the digits, and nothing is written over. "
            "Remove it, or choose another folder with --run."
        )
    with whole_folder(folder) as beside:  # an empty folder may be there
        _write(beside)


def write_labels(folder: Path, *, seed: int = 0) -> None:
    """Write two tables of the digits in `folder`: truth.csv, and labels.csv with faults in its training part.

    The columns are image, label and split. In labels.csv 60 % of the training labels are blank, and 15 % of the
    rest are another digit, each as likely. The same bytes for the same seed.
    """
    table = pl.DataFrame({"image": sorted(str(path.relative_to(folder)) for path in folder.glob("[0-9]/*.png"))})
    table = table.with_columns(label=pl.col("image").str.slice(0, 1))
    generator = np.random.default_rng(seed)
    train = generator.permutation(len(table)) >= round(HELD_BACK * len(table))
    rows = generator.permutation(np.flatnonzero(train))
    hidden, known = np.split(rows, [round(HIDDEN * len(rows))])
    wrong = known[: round(WRONG * len(known))]
    digits = table["label"].cast(pl.Int64).to_numpy().copy()
    digits[wrong] = (digits[wrong] + generator.integers(1, 10, len(wrong))) % 10
    blank = np.isin(np.arange(len(table)), hidden)
    faulty = pl.when(pl.Series(blank)).then(None).otherwise(pl.Series(digits).cast(pl.String))
    table = table.with_columns(split=pl.Series(np.where(train, "train", "val")))
    for name, labels in ((TRUTH, pl.col("label")), (FAULTY, faulty.alias("label"))):
        with whole(folder / name) as beside:
            table.with_columns(labels).write_csv(beside)


def _holds_digits(folder: Path) -> bool:
    return sum(1 for _ in folder.glob("[0-9]/*.png")) == COUNT


def _write(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images * (255 / 16)).round().astype("uint8")  # (1797, 8, 8), ink is bright
    for name in digits.target_names:
        (folder / str(name)).mkdir(parents=True)
    for number, (pixels, target) in enumerate(zip(grey, digits.target, strict=True)):
        picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(folder / str(target) / f"{number:04}.png")
