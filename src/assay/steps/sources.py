"""What a plan takes from files and from other runs: known by its content, and by what it was trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from assay.arrays import Keys
from assay.errors import PlanError, RunError
from assay.files import fingerprint, hash_file, write_json
from assay.labels.space import LabelSpace
from assay.models.classifier import ModelSettings
from assay.models.ensemble import model_files
from assay.models.trained_model import (
    NO_HASHES,
    hash_backbone,
    hash_tensors,
    read_description,
    read_hashes,
    read_learnt_hashes,
    read_network,
    read_training_hashes,
    trained_on_in_runs,
    write_hashes,
)
from assay.models.weights import read_tensors
from assay.settings import Settings, Source, Taken, sources, with_sources

RECORD = "sources.json"
"""In the run's folder: absolute path -> content, of all that the plan takes from elsewhere."""

ABSENT = "absent"

FOLDER = "sources"
"""In the run's folder: a list for each content of the images that it was trained on."""


def content_json(settings: Settings, base: Path, run: Path) -> str:
    """Return settings as JSON with the content of each source in the place of its path.

    So a key holds what a step is made of: a file moved is the same, a file overwritten or a run trained anew is
    another. Contents are noted in the folder `run`; of a source that is gone the one noted last stands.
    """

    def content(source: Source, path: str) -> str:
        return content_of(source, base / path, run)

    return with_sources(settings, content).model_dump_json()


def content_of(source: Source, path: Path, run: Path) -> str:
    """Return the hash of what a source holds; of one that never was there, `absent`: the step that needs it refuses.

    Raises AssayError where what is there cannot be read.
    """
    noted, name = _noted(run), os.path.abspath(path)
    place = _place(source, path)
    if place is None:
        return noted.get(name, ABSENT)
    content = fingerprint(source.taken, _CONTENT[source.taken](place))
    if noted.get(name) != content:
        write_json(run / RECORD, noted | {name: content})
    return content


def is_gone(source: Source, path: Path, run: Path) -> bool:
    """Return whether a source was there when this run used it, and is no more."""
    return _place(source, path) is None and os.path.abspath(path) in _noted(run)


def trained_on(source: Source, path: Path, run: Path, space: LabelSpace) -> Keys:
    """Return the images whose labels a source was trained on, as far as that is known.

    Of a network that a fit goes on from, its head counts where it answers for `space`, and so is kept. What is found
    is noted in the folder `run`, for when the source, or the run that tells of it, is gone.
    """
    noted = run / FOLDER / f"{content_of(source, path, run)}.npy"
    place = _place(source, path)
    if place is None:
        return read_hashes(noted)
    if source.taken == "weights":
        parts = [read_training_hashes(place.parent), trained_on_in_runs(place, run), read_hashes(noted)]
        found = np.unique(np.concatenate(parts))
    elif source.taken == "model":
        found = learnt_before(place, space)
    else:
        found = read_learnt_hashes(place) if source.taken == "member" else read_training_hashes(place)
    write_hashes(noted, found)
    return found


def learnt_before(folder: Path, space: LabelSpace) -> Keys:
    """Return the images whose labels a network was trained on that is to answer for `space`, its head if that stays."""
    keeps_head = read_description(folder)["heads"] == space.to_json()
    return read_learnt_hashes(folder) if keeps_head else read_training_hashes(folder)


def trained_on_at_start(settings: ModelSettings, base: Path, run: Path) -> Keys:
    """Return what the backbone of a plan was trained on before the first step."""
    nothing_asked = LabelSpace(())  # a backbone answers for no head
    found = [trained_on(source, base / path, run, nothing_asked) for _, source, path in sources(settings)]
    return np.unique(np.concatenate([NO_HASHES, *found]))


def other_run(start: str, base: Path, *, what: str = "start", instead: str = "previous, pretrained, or ") -> Path:
    """The model folder of another run. Raises PlanError where there is none."""
    found = model_folder(base / start)
    if found is None:
        raise PlanError(f"{what}: {start}: no finished run is there. Give {instead}the folder of a run.")
    return found


def member_run(name: str, base: Path) -> Path:
    """The model folder of a run that is combined with others. Raises PlanError where there is none."""
    return other_run(name, base, what="ensemble: run", instead="")


def run_of(folder: Path) -> Path:
    """The run that a model lies in. Raises RunError where it lies in none."""
    for place in folder.parents:
        if (place / "samples.parquet").exists():
            return place
    raise RunError(
        f"ensemble: {folder}: lies in no run, so nobody knows on which images it was validated. Give the run's folder."
    )


def answers_file(folder: Path) -> Path:
    """The validation answers of a model: beside it, or, of the final model of a run, beside the one that it came of."""
    beside = folder / "predictions.parquet"
    return beside if beside.exists() else _last_answers(run_of(folder))


def _last_answers(root: Path) -> Path:
    """The validation answers of a run's final model."""
    try:
        steps = json.loads((root / "metrics.json").read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError) as error:
        raise RunError(f"ensemble: {root}: is no finished run ({error}). Finish it first.") from error
    models = [step["model"] for step in steps if step["model"] is not None and "/" not in step["name"]]
    return root / str(models[-1]) / "predictions.parquet"


def model_folder(folder: Path) -> Path | None:
    """Return where the model of a run, or of a folder of a model, lies; None where there is none."""
    return next((place for place in (folder / "model", folder) if (place / "spec.json").exists()), None)


def _noted(run: Path) -> dict[str, str]:
    path = run / RECORD
    noted: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return noted


def _place(source: Source, path: Path) -> Path | None:
    """The file or the folder of the model that a source names; None where there is none."""
    if source.taken == "weights":
        return path if path.is_file() else None
    if source.taken == "backbone":
        return path / "model" if (path / "model" / "spec.json").exists() else None
    return model_folder(path)


def _of_weights(path: Path) -> str:
    return hash_tensors(read_tensors(path))


def _of_backbone(folder: Path) -> str:
    if "kind" in read_description(folder):
        return _of_files(folder)  # which no backbone can be taken of: the step says so
    below = "backbone."
    tensors = read_network(folder)
    return hash_backbone(
        {name.removeprefix(below): tensor for name, tensor in tensors.items() if name.startswith(below)}
    )


def _of_model(folder: Path) -> str:
    description = read_description(folder)
    if "kind" in description:
        return _of_files(folder)  # which no fit can go on from: the step says so
    described = json.dumps([description["network"], description["heads"]])
    return fingerprint(hash_tensors(read_network(folder)), described)


def _of_member(folder: Path) -> str:
    """The content of a model, decisions and validation answers included: a combination takes all of it."""
    return fingerprint(_of_files(folder), hash_file(answers_file(folder)))


def _of_files(folder: Path) -> str:
    files = model_files(folder)
    return fingerprint(*(part for file in files for part in (str(file.relative_to(folder)), hash_file(file))))


_CONTENT: dict[Taken, Callable[[Path], str]] = {
    "weights": _of_weights,
    "backbone": _of_backbone,
    "model": _of_model,
    "member": _of_member,
}
