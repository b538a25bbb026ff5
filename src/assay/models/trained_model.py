"""The content of weights as a hash, whatever the file that holds them is called."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from assay.arrays import Bools, Floats, Keys
from assay.errors import ModelError, PlanError, RunError
from assay.files import ModelFolder, whole, write_json
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.models.classifier import Classifier, from_spec, spec
from assay.models.decision_rule import DecisionRule

COUNTERS = "num_batches_tracked"
"""The end of the names of tensors that training counts up and nothing reads."""


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values; the order of the tensors makes no difference."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_backbone(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of what a backbone computes with: older files lack the counters of batch-norms."""
    return hash_tensors({name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)})


# The images whose labels a model was trained on, by content: it has them by heart, and may not judge them.

HASHES_FILE = "trained_on.npy"
LEARNT_FILE = "learnt_from.npy"
"""Sorted, one number an image: the first 8 bytes of the SHA-256 of its file."""

NO_HASHES: Keys = np.empty(0, dtype=np.uint64)


def training_hashes(hashes: Iterable[str | None]) -> Keys:
    """The images of these hashes (hexadecimal; None, of an image never read, is left out)."""
    return np.unique(_hash_numbers(hashes))


def read_training_hashes(folder: Path) -> Keys:
    """What the backbone of the model in a folder has seen; nothing where no file says so. Raises RunError."""
    return read_hashes(folder / HASHES_FILE)


def read_learnt_hashes(folder: Path) -> Keys:
    """Return the images whose labels any layer of the model in a folder was trained on. Raises RunError."""
    return np.union1d(read_training_hashes(folder), read_hashes(folder / LEARNT_FILE))


def read_hashes(path: Path) -> Keys:
    """Return the images that a file lists; none where there is no such file. Raises RunError."""
    try:
        found: Keys = np.load(path)
    except FileNotFoundError:
        return NO_HASHES
    except (OSError, EOFError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}), so nobody knows on which images this model was trained. "
            "Train the run again."
        ) from error
    return found


def write_training_hashes(folder: Path, images: Keys, learnt: Keys = NO_HASHES) -> None:
    """Write what the backbone and what the whole network was trained on beside a model."""
    write_hashes(folder / HASHES_FILE, images)
    learnt = np.union1d(images, learnt)
    write_hashes(folder / LEARNT_FILE, NO_HASHES if len(learnt) == len(images) else learnt)


def write_hashes(path: Path, images: Keys) -> None:
    """Write a list of images, or take away an earlier one where there is nothing to list."""
    if len(images) == 0:
        path.unlink(missing_ok=True)
        return
    held = io.BytesIO()  # numpy writing to a full disk raises an error that does not say so
    np.save(held, images)
    with whole(path) as beside:
        beside.write_bytes(held.getbuffer())


def count_trained_on(images: Keys, samples: Samples) -> int:
    """How many of the samples are among these images."""
    return int(trained_on_mask(images, samples).sum())


def trained_on_mask(images: Keys, samples: Samples) -> Bools:
    """Return which samples (N,) are among these images; one whose content is not known is not."""
    hashes = samples.hashes
    known = np.array([name is not None for name in hashes], dtype=np.bool_)
    known[known] = np.isin(_hash_numbers(hashes), images)
    return known


def require_unseen(images: Keys, samples: Samples, *, what: str) -> None:
    """Refuse to let a backbone judge labels that it was trained on; `what` names the step.

    Raises PlanError.
    """
    judged = samples.take(np.flatnonzero(samples.labelled()))
    count = count_trained_on(images, judged)
    if count:
        raise PlanError(
            f"{what}: the backbone was fine-tuned on {count:,} of the {len(judged):,} images whose labels it is to "
            "judge, and would only repeat what it was told. Judge by features of pretrained weights, or by "
            "fine-tuning anew in every fold."
        )


def _hash_numbers(hashes: Iterable[str | None]) -> Keys:
    return np.array([int(name[:16], 16) for name in hashes if name is not None], dtype=np.uint64)


# A trained classifier in a folder: model.safetensors and spec.json, nothing else needed.

MODEL_FORMAT = 2
BACKBONE_HASH = "backbone_hash"


@dataclass(frozen=True)
class TrainedModel:
    """A classifier, and what it must be fed with.

    Images are decoded to `side` by `resize` and resampled to `size`, as they were for validation. `trained_on`
    are the images whose labels the backbone was trained on; `learnt_from` are those whose
    labels any layer was trained on, the head included.
    """

    classifier: Classifier
    space: LabelSpace
    size: int
    side: int
    resize: Resize
    deciding: DecisionRule
    details: dict[str, Any] = field(default_factory=dict)
    trained_on: Keys = field(default_factory=lambda: NO_HASHES)
    learnt_from: Keys = field(default_factory=lambda: NO_HASHES)

    @property
    def networks(self) -> tuple[TrainedModel, ...]:
        """All networks: this one."""
        return (self,)

    def logits(self, raw: Sequence[Floats]) -> Floats:
        """From the raw logits of the one network to those (N, W) that probabilities are taken of."""
        (own,) = raw
        return self.deciding.logits(own)

    def save(self, folder: Path) -> None:
        """Write what they were trained on, the weights, then the description."""
        write_training_hashes(folder, self.trained_on, self.learnt_from)
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
            "deciding": self.deciding.to_json(self.space),
            BACKBONE_HASH: hash_backbone(self.classifier.backbone.state_dict()),
            **self.details,
        }
        write_json(ModelFolder(folder).spec, description)

    @staticmethod
    def load(folder: Path) -> TrainedModel:
        """Read a folder that `save` wrote.

        Raises RunError where it is none, or damaged; ModelError where it holds several networks that answer as one.
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
        )


def read_network(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the network in a folder, on the CPU. Raises RunError."""
    try:
        tensors: dict[str, Tensor] = load_file(ModelFolder(folder).weights)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    return tensors


def read_description(folder: Path) -> dict[str, Any]:
    """The spec.json of a model. Raises RunError where there is none that this version reads."""
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
    return RunError(f"{folder}: holds no readable model ({error}). Train the run to its end first.")
