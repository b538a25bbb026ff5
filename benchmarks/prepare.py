"""Make train/CLASS and val/CLASS, of hard links, from a folder that holds a folder per class.

python -m benchmarks.prepare IMAGES TARGET [--seed 0] [--limit 640]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
from pathlib import Path

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def prepare(images: Path, target: Path, *, seed: int = 0, limit: int | None = None) -> tuple[int, int]:
    """Link a stratified fifth of `images` as validation and the rest as training; give both counts.

    `limit` bounds the number of training images (every class keeps its share, validation is not cut).
    The rule: per class the sorted names are shuffled by (seed, class), the first fifth is validation.
    """
    classes = {folder.name: _images_of(folder) for folder in sorted(images.iterdir()) if folder.is_dir()}
    classes = {name: files for name, files in classes.items() if files}
    if not classes:
        raise SystemExit(f"{images}: no images in it. A folder per class is needed.")
    total = sum(len(files) - _fifth(files) for files in classes.values())
    share = 1.0 if limit is None else min(1.0, limit / total)
    counts = {"train": 0, "val": 0}
    for name, files in classes.items():
        order = list(files)
        random.Random(f"{seed}:{name}").shuffle(order)
        val, train = order[: _fifth(files)], order[_fifth(files) :]
        chosen = {"val": val, "train": train[: max(1, round(share * len(train)))]}
        for split, members in chosen.items():
            _link(members, target / split / name)
            counts[split] += len(members)
    return counts["train"], counts["val"]


def _images_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)


def _fifth(files: list[Path]) -> int:
    return max(1, round(len(files) / 5))


def _link(members: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    for path in members:
        try:  # a symbolic link would lead out of the data folder
            os.link(path.resolve(), folder / path.name)
        except OSError:  # another disk
            shutil.copyfile(path, folder / path.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="at most about so many training images")
    given = parser.parse_args()
    prepare(given.images, given.target, seed=given.seed, limit=given.limit)
