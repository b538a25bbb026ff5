"""Weights in a file, recognised as those of a run: what they were trained on is known there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from assay.arrays import Keys
from assay.files import ModelFolder, RunFolder
from assay.models.trained_model import BACKBONE_HASH, COUNTERS, NO_HASHES, hash_backbone, read_training_hashes
from assay.models.weights import Tensors, read_tensors, without_prefixes

LEVELS = 3  # a variant or a trial lies two folders below the run that holds it


def trained_on_in_runs(weights: Path, run: Path) -> Keys:
    """Return what the weights in a file were trained on, as far as the runs around `run` tell.

    A copy of a run's model is recognised by the hash of its backbone's tensors, under whatever name and in whatever
    file. Looked through are the final models and those of the steps of `run` and of the runs beside it, and, as
    variants and trials lie within a run, of those beside the two folders above. Raises ModelError where the file
    holds no weights.
    """
    tensors = read_tensors(weights)
    hashes: dict[tuple[str, ...], str | None] = {}
    found = [NO_HASHES]
    for folder in _models(run):
        try:
            recorded, names = _recorded(folder)
        except (OSError, ValueError, SafetensorError):
            continue  # another run's model that is damaged, or gone by now, is nothing to recognise weights by
        if names not in hashes:
            hashes[names] = _hash_of(tensors, names)
        if names and hashes[names] == recorded:
            found.append(read_training_hashes(folder))
    return np.unique(np.concatenate(found))


def _models(run: Path) -> Iterator[Path]:
    """The folders of the models of a run and of those around it."""
    for folder in sorted({one for place in run.absolute().parents[:LEVELS] for one in _folders(place)}):
        other = RunFolder(folder)
        if os.path.exists(other.samples):  # unlike Path.exists, false for a folder that may not be entered
            for below in (other.model.path, other.steps):
                yield from (spec.parent for spec in sorted(below.rglob(other.model.spec.name)))


def _folders(place: Path) -> list[Path]:
    if not os.access(place, os.R_OK | os.X_OK):
        return []  # somebody else's: whoever may not look into it has no runs there
    return [path for path in place.iterdir() if path.is_dir()]


def _recorded(folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """The hash and the names of a backbone's tensors; no names of a model of several networks: its members count."""
    recorded = json.loads(ModelFolder(folder).spec.read_text(encoding="utf-8")).get(BACKBONE_HASH)
    if recorded is None:
        return None, ()
    with safe_open(ModelFolder(folder).weights, "pt") as file:
        names = [name.removeprefix("backbone.") for name in file.keys() if name.startswith("backbone.")]  # noqa: SIM118
    return recorded, tuple(sorted(name for name in names if not name.endswith(COUNTERS)))


def _hash_of(tensors: Tensors, names: tuple[str, ...]) -> str | None:
    """The hash of these tensors of a file, without what wrappers put before their names; None where one is missing."""
    given = without_prefixes(tensors, names)
    return hash_backbone({name: given[name] for name in names}) if given.keys() >= set(names) else None
