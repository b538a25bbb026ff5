"""The built-in data: scikit-learn's handwritten digits as picture files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from assay.errors import DataError

COUNT = 1797
SIDE = 32  # pixels; a smooth 4x of the original 8 x 8, so that a person too can read them


def write_digits(folder: Path) -> None:
    """Write 1,797 grey PNG pictures of 32 x 32 pixels into `folder/0` ... `folder/9`, whole or not at all.

    The same bytes every time. A folder that has them already is left alone.
    Raises DataError for a folder that holds something else, OSError where the disk does not take them.
    Source: UCI Optical Recognition of Handwritten Digits, through scikit-learn.
    """
    if _holds_digits(folder):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder}: holds something else than the digits, and nothing is written over. "
            "Remove it, or choose another folder with --run."
        )
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)  # of a killed process that had the same number
    try:
        _write(beside)
        os.replace(beside, folder)  # an empty folder may be there
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
