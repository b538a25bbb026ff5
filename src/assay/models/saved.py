"""A trained classifier in a folder: model.safetensors and spec.json, nothing else needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from assay.errors import ModelError, RunError
from assay.files import whole, write_json
from assay.labels.space import LabelSpace
from assay.models.classifier import Classifier, from_spec, spec
from assay.models.deciding import Deciding, Floats
from assay.models.seen import NOTHING, Seen, read_learnt, read_seen, write_seen
from assay.models.tensor_hash import hash_backbone
from assay.pixels.decode import Resize

FORMAT = 2
BACKBONE_HASH = "backbone_hash"


@dataclass(frozen=True)
class Saved:
    """A classifier, and what it must be fed with.

    Pictures are decoded to `side` by `resize` and resampled to `size`, as they were for validation. `trained_on`
    are the pictures whose labels the backbone was trained on (`assay.models.seen`); `learnt_from` are those whose
    labels any layer was trained on, the head included.
    """

    classifier: Classifier
    space: LabelSpace
    size: int
    side: int
    resize: Resize
    deciding: Deciding
    details: dict[str, Any] = field(default_factory=dict)
    trained_on: Seen = field(default_factory=lambda: NOTHING)
    learnt_from: Seen = field(default_factory=lambda: NOTHING)

    @property
    def networks(self) -> tuple[Saved, ...]:
        """All networks: this one."""
        return (self,)

    def logits(self, raw: Sequence[Floats]) -> Floats:
        """From the raw logits of the one network to those (N, W) that probabilities are taken of."""
        (own,) = raw
        return self.deciding.logits(own)

    def save(self, folder: Path) -> None:
        """Write what they were trained on, the weights, then the description."""
        write_seen(folder, self.trained_on, self.learnt_from)
        tensors = self.classifier.state_dict()
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with whole(folder / "model.safetensors") as beside:
            save_file(plain, beside)
        description = {
            "format": FORMAT,
            "heads": self.space.to_json(),
            "network": spec(self.classifier),
            "size": self.size,
            "side": self.side,
            "resize": self.resize.model_dump(mode="json"),
            "deciding": self.deciding.to_json(self.space),
            BACKBONE_HASH: hash_backbone(self.classifier.backbone.state_dict()),
            **self.details,
        }
        write_json(folder / "spec.json", description)

    @staticmethod
    def load(folder: Path) -> Saved:
        """Read a folder that `save` wrote.

        Raises RunError where it is none, or damaged; ModelError where it holds several networks that answer as one.
        """
        description = read_description(folder)
        if "kind" in description:
            raise ModelError(
                f"{folder}: is a {description['kind']} of {len(description['members'])} models, and one network is "
                "needed here. Begin with start: pretrained or with the run of one member, or leave this step out."
            )
        tensors = read_network(folder)
        classifier = from_spec(description["network"])
        classifier.load_state_dict(tensors)
        known = {"format", "heads", "network", "size", "side", "resize", "deciding", BACKBONE_HASH}
        space = LabelSpace.from_json(description["heads"])
        return Saved(
            classifier.eval(),
            space,
            description["size"],
            description["side"],
            Resize.model_validate(description["resize"]),
            Deciding.from_json(space, description["deciding"]),
            {key: value for key, value in description.items() if key not in known},
            read_seen(folder),
            read_learnt(folder),
        )


def read_network(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the network in a folder, on the CPU. Raises RunError."""
    try:
        tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    return tensors


def read_description(folder: Path) -> dict[str, Any]:
    """The spec.json of a model. Raises RunError where there is none that this version reads."""
    try:
        description: dict[str, Any] = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error
    if description["format"] != FORMAT:
        raise RunError(
            f"{folder}: format {description['format']} is not the one this version reads ({FORMAT}). "
            "Use the version of Assay that trained it."
        )
    return description


def _unreadable(folder: Path, error: Exception) -> RunError:
    return RunError(f"{folder}: holds no readable model ({error}). Train the run to its end first.")
