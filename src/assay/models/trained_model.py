"""A trained classifier in a folder, the hashes of its weights, and the images that it was trained on."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from assay.arrays import Bools, Floats, Keys
from assay.errors import ModelError, PlanError, RunError
from assay.files import ModelFolder, RunFolder, whole, write_json
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.models.classifier import Classifier, from_spec, spec
from assay.models.decision_rule import DecisionRule
from assay.models.uncertainty import Uncertainty, write_uncertainty
from assay.models.weights import Tensors, read_tensors, without_prefixes

COUNTERS = "num_batches_tracked"
"""The end of the names of batch-norm counters, which nothing reads."""


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values; the order of the tensors makes no difference."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_backbone(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of a backbone without the counters of batch-norms, which older files lack."""
    return hash_tensors({name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)})


# The images whose labels a model was trained on, by content: it has learnt them and may not judge them.

HASHES_FILE = "trained_on.npy"
LEARNT_FILE = "learnt_from.npy"
"""Sorted, one number an image: the first 8 bytes of the SHA-256 of its file."""

NO_HASHES: Keys = np.empty(0, dtype=np.uint64)


def training_hashes(hashes: Iterable[str | None]) -> Keys:
    """Return the numbers of these SHA-256 hashes (hexadecimal; None is left out)."""
    return np.unique(_hash_numbers(hashes))


def read_training_hashes(folder: Path) -> Keys:
    """Return the images that the backbone of the model in a folder was trained on. Raises RunError."""
    return read_hashes(folder / HASHES_FILE)


def read_learnt_hashes(folder: Path) -> Keys:
    """Return the images whose labels any layer of the model in a folder was trained on. Raises RunError."""
    return np.union1d(read_training_hashes(folder), read_hashes(folder / LEARNT_FILE))


def read_hashes(path: Path) -> Keys:
    """Return the images that a file lists; none where it is missing. Raises RunError."""
    try:
        images: Keys = np.load(path)
    except FileNotFoundError:
        return NO_HASHES
    except (OSError, EOFError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}), so nobody knows on which images this model was trained. "
            "Train the run again."
        ) from error
    return images


def write_training_hashes(folder: Path, images: Keys, learnt: Keys = NO_HASHES) -> None:
    """Write the images that the backbone and the whole network were trained on."""
    write_hashes(folder / HASHES_FILE, images)
    learnt = np.union1d(images, learnt)
    write_hashes(folder / LEARNT_FILE, NO_HASHES if len(learnt) == len(images) else learnt)


def write_hashes(path: Path, images: Keys) -> None:
    """Write a list of images; an empty one removes the file."""
    if len(images) == 0:
        path.unlink(missing_ok=True)
        return
    held = io.BytesIO()  # numpy writing to a full disk raises an error that does not say so
    np.save(held, images)
    with whole(path) as beside:
        beside.write_bytes(held.getbuffer())


def count_trained_on(images: Keys, samples: Samples) -> int:
    """Return how many of the samples are among these images."""
    return int(trained_on_mask(images, samples).sum())


def trained_on_mask(images: Keys, samples: Samples) -> Bools:
    """Return which samples (N,) are among these images; those of unknown content are not."""
    known = samples.table["hash"].is_not_null().to_numpy().copy()
    known[known] = np.isin(_hash_numbers(samples.hash_names), images)
    return known


def require_unseen(images: Keys, samples: Samples, *, what: str) -> None:
    """Raise PlanError where weights are to judge labels that they were trained on; `what` names the step."""
    known = samples.take(np.flatnonzero(samples.labelled()))
    count = count_trained_on(images, known)
    if count:
        raise PlanError(
            f"{what}: the judge begins with weights that were trained on {count:,} of the {len(known):,} images whose "
            "labels it is to judge, and would only repeat them. Set weights: pretrained in this step, so that the "
            "earlier weights begin the other steps alone, or begin with a run that was trained on other images."
        )


def _hash_numbers(hashes: Iterable[str | None]) -> Keys:
    return np.fromiter((int(name[:16], 16) for name in hashes if name is not None), np.uint64)


# A trained classifier in a folder: model.safetensors and spec.json.

MODEL_FORMAT = 2
BACKBONE_HASH = "backbone_hash"


@dataclass(frozen=True)
class TrainedModel:
    """A classifier, its label space and its input format.

    Images are decoded to `side` by `resize` and resampled to `size`, as they were for validation. `trained_on` are
    the images whose labels the backbone was trained on; `learnt_from` are those whose labels any layer was trained
    on, the head included. `uncertainty` is that of its decision rule but for thresholds; None before it is calibrated.
    """

    classifier: Classifier
    space: LabelSpace
    size: int
    side: int
    resize: Resize
    decision_rule: DecisionRule
    details: Mapping[str, object] = field(default_factory=dict)
    trained_on: Keys = field(default_factory=lambda: NO_HASHES)
    learnt_from: Keys = field(default_factory=lambda: NO_HASHES)
    uncertainty: Uncertainty | None = None

    @property
    def networks(self) -> tuple[TrainedModel, ...]:
        """All networks: this one."""
        return (self,)

    def logits(self, raw: Sequence[Floats]) -> Floats:
        """Return the logits (N, W) that probabilities are taken of from the raw logits of the network."""
        (of_network,) = raw
        return self.decision_rule.logits(of_network)

    def save(self, folder: Path) -> None:
        """Write the training images, the weights, then the description."""
        write_training_hashes(folder, self.trained_on, self.learnt_from)
        write_uncertainty(self.uncertainty, folder)
        tensors = self.classifier.state_dict()
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with whole(ModelFolder(folder).weights) as beside:
            save_file(plain, beside)
        description = {
            "format": MODEL_FORMAT,
            "heads": self.space.to_json(),
            "network": spec(self.classifier),
            "size": self.size,
            "side": self.side,
            "resize": self.resize.model_dump(mode="json"),
            "deciding": self.decision_rule.to_json(self.space),
            BACKBONE_HASH: hash_backbone(self.classifier.backbone.state_dict()),
            **self.details,
        }
        write_json(ModelFolder(folder).spec, description)

    @staticmethod
    def load(folder: Path) -> TrainedModel:
        """Read a folder that `save` wrote.

        Raises RunError for another or a damaged folder; ModelError for an ensemble.
        """
        description = read_description(folder)
        if "kind" in description:
            raise ModelError(
                f"{folder}: is an ensemble of {len(description['members'])} models, and one network is "
                "needed here. Begin with start: pretrained or with the run of one member, or leave this step out."
            )
        tensors = read_network(folder)
        classifier = from_spec(description["network"])
        classifier.load_state_dict(tensors)
        known = {"format", "heads", "network", "size", "side", "resize", "deciding", BACKBONE_HASH}
        space = LabelSpace.from_json(description["heads"])
        return TrainedModel(
            classifier.eval(),
            space,
            description["size"],
            description["side"],
            Resize.model_validate(description["resize"]),
            DecisionRule.from_json(space, description["deciding"]),
            {key: value for key, value in description.items() if key not in known},
            read_training_hashes(folder),
            read_learnt_hashes(folder),
            Uncertainty.load(folder),
        )


def read_network(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the network in a folder, on the CPU. Raises RunError."""
    try:
        tensors: dict[str, Tensor] = load_file(ModelFolder(folder).weights)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    return tensors


def read_description(folder: Path) -> dict[str, Any]:
    """Return the spec.json of a model. Raises RunError where it is missing or of another version."""
    try:
        description: dict[str, Any] = json.loads(ModelFolder(folder).spec.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error
    if description["format"] != MODEL_FORMAT:
        raise RunError(
            f"{folder}: format {description['format']} is not the one this version reads ({MODEL_FORMAT}). "
            "Use the version of Assay that trained it."
        )
    return description


def _unreadable(folder: Path, error: Exception) -> RunError:
    reason = f"it has no {Path(error.filename).name}" if isinstance(error, FileNotFoundError) else str(error)
    return RunError(f"{folder}: holds no readable model ({reason}). Train the run to its end first.")


# Weights in a file, recognised as those of a run, which records what they were trained on.

LEVELS = 3  # a variant or a trial lies two folders below the run that holds it


def trained_on_in_runs(weights: Path, run: Path) -> Keys:
    """Return the images that the weights in a file were trained on, as recorded by the runs around `run`.

    A copy of a run's model is recognised by the hash of its backbone's tensors, under whatever name and in whatever
    file. Searched are the models of `run` and of the runs beside it, final ones and those of steps, and, as variants
    and trials lie within a run, of the runs beside the two folders above. Raises ModelError for a file without
    weights.
    """
    tensors = read_tensors(weights)
    hashes: dict[tuple[str, ...], str | None] = {}
    images = [NO_HASHES]
    for folder in _models(run):
        try:
            recorded, names = _recorded(folder)
        except (OSError, ValueError, SafetensorError):
            continue  # another run's model that is damaged, or gone by now, is nothing to recognise weights by
        if names not in hashes:
            hashes[names] = _hash_of(tensors, names)
        if names and hashes[names] == recorded:
            images.append(read_training_hashes(folder))
    return np.unique(np.concatenate(images))


def _models(run: Path) -> Iterator[Path]:
    """Yield the folders of the models of a run and of the runs around it."""
    for folder in sorted({one for parent in run.absolute().parents[:LEVELS] for one in _folders(parent)}):
        around = RunFolder(folder)
        if os.path.exists(around.samples):  # not Path.exists, which raises where a folder may not be entered
            for below in (around.model.path, around.steps):
                yield from (spec.parent for spec in sorted(below.rglob("spec.json")))


def _folders(parent: Path) -> list[Path]:
    if not os.access(parent, os.R_OK | os.X_OK):
        return []  # of another user, and so without runs of this one
    return [path for path in parent.iterdir() if path.is_dir()]


def _recorded(folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """Return the hash and the names of a backbone's tensors; no names of an ensemble, whose members follow."""
    recorded = json.loads(ModelFolder(folder).spec.read_text(encoding="utf-8")).get(BACKBONE_HASH)
    if recorded is None:
        return None, ()
    with safe_open(ModelFolder(folder).weights, "pt") as file:
        names = [name.removeprefix("backbone.") for name in file.keys() if name.startswith("backbone.")]  # noqa: SIM118
    return recorded, tuple(sorted(name for name in names if not name.endswith(COUNTERS)))


def _hash_of(tensors: Tensors, names: tuple[str, ...]) -> str | None:
    """Return the hash of these tensors of a file, prefixes of wrappers removed; None where one is missing."""
    given = without_prefixes(tensors, names)
    return hash_backbone({name: given[name] for name in names}) if given.keys() >= set(names) else None
