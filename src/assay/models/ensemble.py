"""Several models that predict as one: a mean of predictions, or a tree of classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from assay.arrays import Floats, Keys, Reals
from assay.errors import RunError
from assay.files import ModelFolder, link, write_json
from assay.images.decode import Resize
from assay.labels.space import LabelSpace
from assay.models.combiners import MeanCombiner
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import MODEL_FORMAT, NO_HASHES, TrainedModel, read_description, write_training_hashes
from assay.models.tree import Tree

KNOWN = frozenset({"format", "kind", "heads", "joining", "members", "deciding"})


class Combiner(Protocol):
    """How the answers of members become one."""

    @property
    def kind(self) -> str: ...

    def joined(self, space: LabelSpace, logits: Sequence[Reals]) -> Floats:
        """From the logits of each member to those of the whole (N, W)."""

    def to_json(self) -> dict[str, Any]: ...


COMBINERS: dict[str, Callable[[dict[str, Any]], Combiner]] = {
    "average": MeanCombiner.from_json,
    "tree": Tree.from_json,
}


@dataclass(frozen=True)
class Member:
    """One of several models, and the folder that it was read from."""

    model: Model
    folder: Path


@dataclass(frozen=True)
class Ensemble:
    """Models that answer as one; like `Saved`, it says what its answers mean and what it was trained on."""

    space: LabelSpace
    members: tuple[Member, ...]
    joining: Combiner
    deciding: DecisionRule
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def networks(self) -> tuple[TrainedModel, ...]:
        """All networks, in the order in which `logits` takes their answers."""
        return tuple(network for member in self.members for network in member.model.networks)

    @property
    def trained_on(self) -> Keys:
        """The images whose labels any of the networks was trained on."""
        return np.unique(np.concatenate([NO_HASHES, *(member.model.trained_on for member in self.members)]))

    @property
    def learnt_from(self) -> Keys:
        """The images whose labels any layer of the networks was trained on."""
        return np.unique(np.concatenate([NO_HASHES, *(member.model.learnt_from for member in self.members)]))

    def logits(self, raw: Sequence[Reals]) -> Floats:
        """From the raw logits of each network to those (N, W) that probabilities are taken of."""
        answers, first = [], 0
        for member in self.members:
            last = first + len(member.model.networks)
            answers.append(member.model.logits(raw[first:last]))
            first = last
        return self.deciding.logits(self.joining.joined(self.space, answers))

    def save(self, folder: Path) -> None:
        """Put the members' folders there whole, as links to the same files where the disk can; then the description."""
        names = [f"members/{number:02d}" for number in range(1, len(self.members) + 1)]
        for name, member in zip(names, self.members, strict=True):
            for file in model_files(member.folder):
                link(file, folder / name / file.relative_to(member.folder))
        write_training_hashes(folder, self.trained_on, self.learnt_from)
        description = {
            "format": MODEL_FORMAT,
            "kind": self.joining.kind,
            "heads": self.space.to_json(),
            "joining": self.joining.to_json(),
            "members": names,
            "deciding": self.deciding.to_json(self.space),
            **self.details,
        }
        write_json(ModelFolder(folder).spec, description)


Model = TrainedModel | Ensemble
"""A trained model of one network, or of several."""


def load_model(folder: Path) -> Model:
    """Read a folder that either's `save` wrote. Raises RunError where it is none, or damaged."""
    description = read_description(folder)
    if "kind" not in description:
        return TrainedModel.load(folder)
    if description["kind"] not in COMBINERS:
        raise RunError(f"{folder}: a model of kind {description['kind']!r} is not known. Use the version that made it.")
    space = LabelSpace.from_json(description["heads"])
    return Ensemble(
        space,
        tuple(member_of(folder / name) for name in description["members"]),
        COMBINERS[description["kind"]](description["joining"]),
        DecisionRule.from_json(space, description["deciding"]),
        {key: value for key, value in description.items() if key not in KNOWN},
    )


def input_size(folder: Path) -> tuple[int, Resize]:
    """The size at which the first network of a model is shown images, and how they become squares."""
    description = read_description(folder)
    if "kind" in description:
        return input_size(folder / description["members"][0])
    return description["size"], Resize.model_validate(description["resize"])


def member_of(folder: Path) -> Member:
    """The model in a folder, as a member of others. Raises RunError."""
    return Member(load_model(folder), folder)


def model_files(folder: Path) -> list[Path]:
    """All that makes up a model; its answers for validation images are no part of it."""
    names = json.loads(ModelFolder(folder).spec.read_text(encoding="utf-8")).get("members", ())
    own = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".parquet"]
    return [*own, *(file for name in names for file in model_files(folder / name))]
