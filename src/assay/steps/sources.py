"""What a plan takes from files and from other runs: its content, and the images that it was trained on.

Validation and test keep none of these images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from assay.arrays import Keys
from assay.errors import DataError, PlanError, RunError
from assay.files import ModelFolder, RunFolder, StepName, fingerprint, hash_file, write_json
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.messages import SPLITS, quoted
from assay.models.classifier import ModelSettings
from assay.models.ensemble import model_files
from assay.models.trained_model import (
    NO_HASHES,
    count_trained_on,
    hash_backbone,
    hash_tensors,
    read_description,
    read_hashes,
    read_learnt_hashes,
    read_network,
    read_training_hashes,
    trained_on_in_runs,
    trained_on_mask,
    write_hashes,
)
from assay.models.weights import read_tensors
from assay.progress import Progress
from assay.settings import Settings, Source, Taken, sources, with_sources

RECORD = "sources.json"  # in the run's folder: absolute path -> hash of the content, of all sources of the plan
FOLDER = "sources"  # in the run's folder: a file for each content with the images that it was trained on
ABSENT = "absent"


def content_json(settings: Settings, base: Path, run: Path) -> str:
    """Return settings as JSON with the hash of each source instead of its path.

    So a key holds what a step is made of: a file moved is the same, a file overwritten or a run trained anew is
    another. Hashes are recorded in the folder `run`; for a source that is gone the recorded one stands.
    """

    def content(source: Source, path: str) -> str:
        return content_of(source, base / path, run)

    return with_sources(settings, content).model_dump_json()


def content_of(source: Source, path: Path, run: Path) -> str:
    """Return the hash of what a source holds; of one that never was there, `absent`: the step that needs it refuses.

    Raises AssayError where what is there cannot be read.
    """
    record, name = _record(run), os.path.abspath(path)
    existing = _existing(source, path)
    if existing is None:
        return record.get(name, ABSENT)
    content = fingerprint(source.taken, _CONTENT[source.taken](existing))
    if record.get(name) != content:
        write_json(run / RECORD, record | {name: content})
    return content


def is_gone(source: Source, path: Path, run: Path) -> bool:
    """Return whether a source was there when this run used it, and is no more."""
    return _existing(source, path) is None and os.path.abspath(path) in _record(run)


def trained_on(source: Source, path: Path, run: Path, space: LabelSpace) -> Keys:
    """Return the images whose labels a source was trained on, as far as that is known.

    Of a network that a fit goes on from, its head counts where it has the heads of `space`, and so is kept. The hashes
    are recorded in the folder `run`, for when the source, or the run that it came from, is gone.
    """
    recorded = run / FOLDER / f"{content_of(source, path, run)}.npy"
    existing = _existing(source, path)
    if existing is None:
        return read_hashes(recorded)
    match source.taken:
        case "weights":
            parts = [read_training_hashes(existing.parent), trained_on_in_runs(existing, run), read_hashes(recorded)]
            hashes = np.unique(np.concatenate(parts))
        case "model":
            hashes = learnt_before(existing, space)
        case "member":
            hashes = read_learnt_hashes(existing)
        case "backbone":
            hashes = read_training_hashes(existing)
    write_hashes(recorded, hashes)
    return hashes


def learnt_before(folder: Path, space: LabelSpace) -> Keys:
    """Return the images whose labels a network was trained on; those of its head count where `space` keeps it."""
    keeps_head = read_description(folder)["heads"] == space.to_json()
    return read_learnt_hashes(folder) if keeps_head else read_training_hashes(folder)


def trained_on_at_start(settings: ModelSettings, base: Path, run: Path) -> Keys:
    """Return what the backbone of a plan was trained on before the first step."""
    no_heads = LabelSpace(())
    hashes = [trained_on(source, base / path, run, no_heads) for _, source, path in sources(settings)]
    return np.unique(np.concatenate([NO_HASHES, *hashes]))


def other_run(start: str, base: Path, *, what: str = "start", instead: str = "previous, pretrained, or ") -> Path:
    """Return the model folder of another run. Raises PlanError where there is none."""
    folder = model_folder(base / start)
    if folder is None:
        raise PlanError(f"{what}: {start}: no finished run is there. Give {instead}the folder of a run.")
    return folder


def member_run(name: str, base: Path) -> Path:
    """Return the model folder of a run that is a member of an ensemble. Raises PlanError where there is none."""
    return other_run(name, base, what="ensemble: run", instead="")


def run_of(folder: Path) -> Path:
    """Return the run that a model lies in. Raises RunError where it lies in none."""
    for parent in folder.parents:
        if RunFolder(parent).samples.exists():
            return parent
    raise RunError(
        f"ensemble: {folder}: lies in no run, so nobody knows on which images it was validated. Give the run's folder."
    )


def predictions_file(folder: Path) -> Path:
    """Return the validation predictions of a model: in its folder, or in that of the step that made a final model."""
    beside = ModelFolder(folder).predictions
    return beside if beside.exists() else _last_predictions(run_of(folder))


def _last_predictions(root: Path) -> Path:
    try:
        steps = json.loads(RunFolder(root).metrics.read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError) as error:
        raise RunError(f"ensemble: {root}: is no finished run ({error}). Finish it first.") from error
    models = [step["model"] for step in steps if step["model"] is not None and StepName(step["name"]).depth == 0]
    return ModelFolder(root / str(models[-1])).predictions


def model_folder(folder: Path) -> Path | None:
    """Return the model folder of a run, or `folder` if it is one itself; None where there is no model."""
    candidates = (RunFolder(folder).model, ModelFolder(folder))
    return next((model.path for model in candidates if model.spec.exists()), None)


def _record(run: Path) -> dict[str, str]:
    path = run / RECORD
    record: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return record


def _existing(source: Source, path: Path) -> Path | None:
    """Return the file or the model folder of a source; None where there is none."""
    if source.taken == "weights":
        return path if path.is_file() else None
    if source.taken == "backbone":
        model = RunFolder(path).model
        return model.path if model.spec.exists() else None
    return model_folder(path)


# Hashes of what a step takes from a source.


def _of_weights(path: Path) -> str:
    return hash_tensors(read_tensors(path))


def _of_backbone(folder: Path) -> str:
    if "kind" in read_description(folder):
        return _of_files(folder)  # an ensemble, of which no backbone can be taken: the step refuses it
    below = "backbone."
    tensors = read_network(folder)
    return hash_backbone(
        {name.removeprefix(below): tensor for name, tensor in tensors.items() if name.startswith(below)}
    )


def _of_model(folder: Path) -> str:
    description = read_description(folder)
    if "kind" in description:
        return _of_files(folder)  # an ensemble, from which no fit can go on: the step refuses it
    described = json.dumps([description["network"], description["heads"]])
    return fingerprint(hash_tensors(read_network(folder)), described)


def _of_member(folder: Path) -> str:
    """Return the hash of a model with its decision rule and validation predictions: an ensemble takes all of it."""
    return fingerprint(_of_files(folder), hash_file(predictions_file(folder)))


def _of_files(folder: Path) -> str:
    files = model_files(folder)
    return fingerprint(*(part for file in files for part in (str(file.relative_to(folder)), hash_file(file))))


_CONTENT: dict[Taken, Callable[[Path], str]] = {
    "weights": _of_weights,
    "backbone": _of_backbone,
    "model": _of_model,
    "member": _of_member,
}


# Images that a source was trained on leave validation and test.

MEASURING = ("val", "test")
MIN_SHARE = 0.5
"""The share of its labelled images that a part must keep: the rest may be easy or rare ones only."""


@dataclass(frozen=True)
class Earlier:
    """Hashes of all images that sources of a plan were trained on, and the sources with validation or test images."""

    images: Keys
    names: tuple[str, ...]  # as the plan gives them: `start: runs/first`


def earlier(plan: Settings, samples: Samples, *, base: Path, run: Path, progress: Progress) -> Earlier:
    """Return what the sources of a plan were trained on; models within `run` itself are none. Raises AssayError."""
    images, names = [NO_HASHES], []
    measured = samples.take(np.flatnonzero(samples.table["split"].is_in(MEASURING).to_numpy()))
    for key, source, given in dict.fromkeys(sources(plan)):
        path = base / given
        if path.absolute().is_relative_to(run.absolute()):
            continue  # made by the steps of this run, on this run's training images
        if is_gone(source, path, run):
            progress.line(f"  {key}: {given} is gone: what was trained from it stays as it is")
        hashes = trained_on(source, path, run, samples.space)
        if count_trained_on(hashes, measured):
            images.append(hashes)
            names.append(f"{key}: {given}")
    return Earlier(np.unique(np.concatenate(images)), tuple(names))


def held_back(samples: Samples, before: Earlier) -> Samples:
    """Return the samples with images that were trained on before taken out of validation and test.

    They stay rows, with their labels, in no part. The notes say how many they are, and which classes have lost all
    their images of a part. Raises DataError where a part would keep fewer than half of its labelled images.
    """
    split = samples.table["split"]
    leave = trained_on_mask(before.images, samples) & split.is_in(MEASURING).to_numpy()
    if not leave.any():
        return samples
    no_part = pl.Series("split", [None] * len(split), dtype=split.dtype)
    kept = replace(samples, table=samples.table.with_columns(split=split.zip_with(pl.Series(~leave), no_part)))
    _require_enough(samples, kept, before.names)
    return replace(kept, notes=(*samples.notes, *_notes(samples, kept, before.names)))


def left_by_part(samples: Samples, kept: Samples) -> dict[str, list[str]]:
    """Return the ids of the images that left validation and test."""
    if kept is samples:
        return {part: [] for part in MEASURING}
    return {part: sorted(set(samples.part(part).ids) - set(kept.part(part).ids)) for part in MEASURING}


def _require_enough(samples: Samples, kept: Samples, names: Sequence[str]) -> None:
    for part in MEASURING:
        count, left = (int(one.part(part).labelled().sum()) for one in (samples, kept))
        if left < MIN_SHARE * count:
            raise DataError(
                f"{count - left:,} of the {count:,} labelled {SPLITS[part]} images were trained on by what the plan "
                f"begins with or takes in ({'; '.join(names)}), and fewer than half would be left to measure by. Give "
                "that run's data with its split (the same shares and seed, or its samples.parquet as a table, which "
                "assay.write_table writes), or begin with weights that were not trained on them."
            )


def _notes(samples: Samples, kept: Samples, names: Sequence[str]) -> list[str]:
    notes = []
    for part in MEASURING:
        part_text = SPLITS[part]
        before, after = samples.part(part), kept.part(part)
        if len(before) == len(after):
            continue
        notes.append(
            f"{len(before) - len(after):,} of {len(before):,} {part_text} images are left out: they were trained on by "
            f"what the plan begins with or takes in ({'; '.join(names)}), and metrics on them would flatter."
        )
        for head in samples.space:
            lost = (before.counts(head) > 0) & (after.counts(head) == 0)
            if lost.any():
                classes = quoted([name for name, gone in zip(head.classes, lost, strict=True) if gone])
                notes.append(f"{head.name}: {classes}: with them the last {part_text} image is gone.")
    return notes
