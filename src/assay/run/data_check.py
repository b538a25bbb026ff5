"""What is wrong with the data at first sight: copies, leaks, image quality, shortcuts. `assay audit` looks closer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import numpy as np

from assay.arrays import Ints, Pixels
from assay.files import RunFolder, fingerprint, write_json
from assay.images.cache import Cache
from assay.images.file_facts import FileFacts, read_file_facts
from assay.labels.samples import Samples
from assay.labels.space import conflicting
from assay.labels.split import given_sides, join_groups, labelled_folds
from assay.predictions.baselines import random_rows
from assay.progress import Progress, stage
from assay.repair.duplicates import clusters, exact_pairs
from assay.repair.image_quality import flagged_images, reduced
from assay.repair.shortcuts import all_cue_scores

VERSION = 3  # raise when the same data has other notes
IMAGES = 10_000
"""Images that are looked at: of more a random part, so that it takes seconds."""

FOLDS = 5
SHORTCUTS = 3
"""That have a line each."""

ALL_CLEAR = "Looked for copies across the split, images of low quality and shortcuts: nothing."


def data_notes(samples: Samples, cache: Cache, run: RunFolder, *, seed: int, progress: Progress) -> tuple[str, ...]:
    """Return a line on each kind of fault that the images of a run show at first sight, or that there is none.

    `samples` are split, and all in the cache. The lines are kept in the run, so that one that goes on has them.
    """
    key = fingerprint(str(VERSION), cache.key, samples.fingerprint(), str(seed))
    if run.data_check.exists():
        record = json.loads(run.data_check.read_text(encoding="utf-8"))
        if record["key"] == key:
            return tuple(record["notes"])
    began = time.perf_counter()
    with stage(progress, "looking for copies, low quality and shortcuts"):
        notes = tuple(_notes(samples, cache, seed=seed)) or (ALL_CLEAR,)
    write_json(run.data_check, {"key": key, "notes": notes, "seconds": round(time.perf_counter() - began, 1)})
    return notes


def _notes(samples: Samples, cache: Cache, *, seed: int) -> Iterator[str]:
    chosen = random_rows(np.arange(len(samples)), IMAGES, seed)
    of = "" if len(chosen) == len(samples) else f" among {IMAGES:,} of the images"
    samples = samples.take(chosen)
    images = reduced(cache.pixels[cache.rows_of(samples.ids)])
    facts = read_file_facts(samples.paths)
    cluster = clusters(exact_pairs(samples.hashes), len(samples))  # to lay near copies over each other takes minutes
    yield from (f"{note}{of}." for note in (*_leaks(samples, cluster), *_quality(samples, images, facts)))
    yield from _shortcuts(samples, images, facts, _folds(samples, cluster, seed=seed))


def _leaks(samples: Samples, cluster: Ints) -> Iterator[str]:
    """Yield how many sets of copies lie on both sides of the split; all others were told when the labels were read."""
    if leaks := int(conflicting(cluster, given_sides(samples)).sum()):
        yield (
            f"{leaks:,} sets of copies lie on several sides of the split, so that metrics flatter; `assay audit`, then "
            "`assay train --audit`, keeps copies together"
        )


def _quality(samples: Samples, images: Pixels, facts: FileFacts) -> Iterator[str]:
    """Yield how many images are of each fault, on one line."""
    flagged = flagged_images(samples, images, facts)
    counts = [f"{len(one.rows):,} {kind.replace('_', ' ')}" for kind, one in flagged.items() if len(one.rows)]
    if counts:
        yield f"Images of low quality or odd shape: {', '.join(counts)}"


def _shortcuts(samples: Samples, images: Pixels, facts: FileFacts, fold: Ints) -> Iterator[str]:
    """Yield what gives a class away that is not the subject."""
    rows = np.flatnonzero(fold >= 0)
    if not len(rows):
        return
    scores = all_cue_scores(samples.take(rows), images[rows], facts.take(rows), fold[rows])
    named = [score.text for score in scores if score.named]
    for text in named[:SHORTCUTS]:
        yield f"A shortcut: {text}"
    if len(named) > SHORTCUTS:
        yield f"{len(named) - SHORTCUTS:,} more shortcuts; `assay audit` lists them."


def _folds(samples: Samples, cluster: Ints, *, seed: int) -> Ints:
    """Return the fold (N,) of each labelled image, copies in one; -1 of the others."""
    ids = samples.ids
    copied = np.flatnonzero(cluster >= 0).tolist()
    grouped = join_groups(samples, [ids[row] for row in copied], [str(cluster[row]) for row in copied])
    return labelled_folds(grouped, FOLDS, seed=seed)
