"""The built-in data: scikit-learn's handwritten digits as image files, and labels with planted faults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.experiments.shared_steps import estimate_of, share_steps
from assay.experiments.variants import without_repairs
from assay.files import whole, whole_folder
from assay.metrics.intervals import Metric, over_seeds
from assay.metrics.metrics import difference
from assay.plan.plan import LoadedPlan, anchored, from_source
from assay.progress import NoProgress, Progress
from assay.run.train import Draw, Run, train

TRUTH, FAULTY = "truth.csv", "labels.csv"
HELD_BACK = 0.2  # for validation, whose labels stay true
HIDDEN = 0.6  # of the training labels
WRONG = 0.15  # of those that are left
COUNT = 1797
SIDE = 32  # pixels; a smooth 4x of the original 8 x 8, so that a person too can read them


def write_digits(folder: Path) -> None:
    """Write 1,797 grey PNG images of 32 x 32 pixels into `folder/0` ... `folder/9`, whole or not at all.

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
        image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(folder / str(target) / f"{number:04}.png")


# Three trainings: on faulty labels, on the same repaired, on the true ones.


@dataclass(frozen=True)
class DemoRun:
    """One training: on which labels, its metric, and the difference to the first."""

    name: str
    run: Run
    metric: Metric
    change: Metric | None

    @property
    def cells(self) -> list[str]:
        """A row of the table: name, metric, difference, seconds."""
        change = "" if self.change is None else _signed(self.change)
        return [self.name, str(self.metric), change, f"{self.run.record.step_seconds:.0f}"]

    def to_json(self) -> dict[str, object]:
        change = self.change.to_json() if self.change else None
        return {
            "trained on": self.name,
            "run": str(self.run.folder),
            "metric": self.metric.to_json(),
            "difference to the first": change,
            "seconds": round(self.run.record.step_seconds, 1),
        }


def run_demo(
    images: Path, folder: Path, *, recipe: str, progress: Progress | None = None, draw: Draw | None = None
) -> list[DemoRun]:
    """Train by a recipe on faulty labels without its repairs, on the same with them, and on the true labels.

    `images` holds the tables of `write_labels`. The repaired run is in `folder`, the others beside it.
    All three are scored on the same validation images, whose labels are true.
    """
    progress = progress or NoProgress()
    whole = from_source(images / FAULTY, recipe=recipe)
    bare = _without_repairs(whole)
    truth = _without_repairs(from_source(images / TRUTH, recipe=recipe))
    parts = [
        ("faulty labels as they are", bare, folder.with_name(f"{folder.name}-as-they-are")),
        ("faulty labels, repaired", whole, folder),
        ("all true labels", truth, folder.with_name(f"{folder.name}-true-labels")),
    ]
    runs = []
    for name, plan, path in parts:
        progress.line(f"-- {name} --")
        share_steps(path, anchored(plan), [other for _, _, other in parts if other != path])
        # Only the repaired run is looked at: the others need no page.
        runs.append(train(plan, run=path, progress=progress, open_test=path == folder, draw=draw))
    metric = runs[0].record.headline
    first, *others = [estimate_of(run, metric) for run in runs]
    changes = [None, *(difference([first], [other]) for other in others)]
    return [
        DemoRun(name, run, over_seeds([estimate]), change)
        for (name, _, _), run, estimate, change in zip(parts, runs, (first, *others), changes, strict=True)
    ]


def _without_repairs(loaded: LoadedPlan) -> LoadedPlan:
    kept = without_repairs(loaded.plan.steps)
    return replace(loaded, plan=loaded.plan.model_copy(update={"steps": kept}))


def _signed(change: Metric) -> str:
    return f"{change.value:+.3f}{change.limits('+.3f')}"
