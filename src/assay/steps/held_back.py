"""Validation and test keep no image that a model was trained on which the plan begins with or takes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from assay.arrays import Keys
from assay.errors import DataError
from assay.labels.build import quoted
from assay.labels.samples import Samples
from assay.models.trained_model import NO_HASHES, count_trained_on, trained_on_mask
from assay.progress import Progress
from assay.settings import Settings, sources
from assay.steps.sources import is_gone, trained_on

PARTS = {"val": "validation", "test": "test"}
LEAST = 0.5
"""The share of its labelled images that a part must keep: the rest may measure easy or rare ones only."""


@dataclass(frozen=True)
class Earlier:
    """What the sources of a plan were trained on, all together, and which of them saw validation or test images."""

    images: Keys
    names: tuple[str, ...]  # as the plan gives them: `start: runs/first`


def earlier(plan: Settings, samples: Samples, *, base: Path, run: Path, progress: Progress) -> Earlier:
    """Gather what the sources of a plan were trained on; models within `run` itself are none. Raises AssayError."""
    images, names = [NO_HASHES], []
    measured = samples.take(np.flatnonzero(samples.table["split"].is_in(list(PARTS)).to_numpy()))
    for key, source, path in dict.fromkeys(sources(plan)):
        place = base / path
        if place.absolute().is_relative_to(run.absolute()):
            continue  # made by the steps of this run, on this run's training images
        if is_gone(source, place, run):
            progress.line(f"  {key}: {path} is gone: what was trained from it stays as it is")
        found = trained_on(source, place, run, samples.space)
        if count_trained_on(found, measured):
            images.append(found)
            names.append(f"{key}: {path}")
    return Earlier(np.unique(np.concatenate(images)), tuple(names))


def held_back(samples: Samples, before: Earlier) -> Samples:
    """Return the samples with images trained on before in no part, where they were in validation or test.

    They stay rows, with their labels, and are neither trained on nor scored. How many, and which classes lost all
    their images of a part, is said in the notes. Raises DataError where a part would keep fewer than half of its
    labelled images.
    """
    split = samples.table["split"]
    leave = trained_on_mask(before.images, samples) & split.is_in(list(PARTS)).to_numpy()
    if not leave.any():
        return samples
    kept = replace(samples, table=samples.table.with_columns(split=split.zip_with(pl.Series(~leave), _none(split))))
    _require_enough(samples, kept, before.names)
    return replace(kept, notes=(*samples.notes, *_notes(samples, kept, before.names)))


def left_by_part(samples: Samples, kept: Samples) -> dict[str, list[str]]:
    """Return the ids of the images that left validation and test."""
    return {part: sorted(set(samples.part(part).ids) - set(kept.part(part).ids)) for part in PARTS}


def _require_enough(samples: Samples, kept: Samples, names: Sequence[str]) -> None:
    for part, said in PARTS.items():
        count, left = (int(one.part(part).labelled().sum()) for one in (samples, kept))
        if left < LEAST * count:
            raise DataError(
                f"{count - left:,} of the {count:,} labelled {said} images were trained on by what the plan begins "
                f"with or takes in ({'; '.join(names)}), and fewer than half would be left to measure by. Give that "
                "run's data with its split (the same shares and seed, or its samples.parquet as a table, which "
                "assay.write_table writes), or begin with weights that were not trained on them."
            )


def _notes(samples: Samples, kept: Samples, names: Sequence[str]) -> list[str]:
    notes = []
    for part, said in PARTS.items():
        before, after = samples.part(part), kept.part(part)
        if len(before) == len(after):
            continue
        notes.append(
            f"{len(before) - len(after):,} of {len(before):,} {said} images are left out: they were trained on by "
            f"what the plan begins with or takes in ({'; '.join(names)}), and metrics on them would flatter."
        )
        for head in samples.space:
            lost = (before.counts(head) > 0) & (after.counts(head) == 0)
            if lost.any():
                classes = quoted([name for name, gone in zip(head.classes, lost, strict=True) if gone])
                notes.append(f"{head.name}: {classes}: with them the last {said} image is gone.")
    return notes


def _none(split: pl.Series) -> pl.Series:
    return pl.Series("split", [None] * len(split), dtype=split.dtype)
