"""Several models that predict as one: a mean of predictions, a tree of classes, or a mean of weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from assay.arrays import Floats, Keys, Reals
from assay.errors import ModelError, RunError
from assay.files import ModelFolder, link, whole_folder, write_json
from assay.images.decode import Resize
from assay.labels.space import LabelSpace
from assay.models.classifier import from_spec, spec
from assay.models.combiners import MeanCombiner, Tree
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import MODEL_FORMAT, NO_HASHES, TrainedModel, read_description, write_training_hashes
from assay.models.uncertainty import Uncertainty, write_uncertainty

KNOWN = frozenset({"format", "kind", "heads", "joining", "members", "deciding"})


class Combiner(Protocol):
    """How the predictions of members are combined."""

    @property
    def kind(self) -> str: ...

    def joined(self, space: LabelSpace, logits: Sequence[Reals]) -> Floats:
        """Return the logits (N, W) of the ensemble from those of each member."""

    def to_json(self) -> Mapping[str, object]: ...


COMBINERS: dict[str, Callable[[Any], Combiner]] = {
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
    """Models that predict as one: like `TrainedModel`, with heads, a decision rule and training images."""

    space: LabelSpace
    members: tuple[Member, ...]
    joining: Combiner
    decision_rule: DecisionRule
    details: Mapping[str, object] = field(default_factory=dict)
    uncertainty: Uncertainty | None = None

    @property
    def networks(self) -> tuple[TrainedModel, ...]:
        """All networks, in the order in which `logits` takes their outputs."""
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
        """Return the logits (N, W) that probabilities are taken of from the raw logits of each network."""
        of_members, first = [], 0
        for member in self.members:
            last = first + len(member.model.networks)
            of_members.append(member.model.logits(raw[first:last]))
            first = last
        return self.decision_rule.logits(self.joining.joined(self.space, of_members))

    def save(self, folder: Path) -> None:
        """Write the folders of the members, as links where the disk can, then the description."""
        names = [f"members/{number:02d}" for number in range(1, len(self.members) + 1)]
        for name, member in zip(names, self.members, strict=True):
            for file in model_files(member.folder):
                link(file, folder / name / file.relative_to(member.folder))
        write_training_hashes(folder, self.trained_on, self.learnt_from)
        write_uncertainty(self.uncertainty, folder)
        description = {
            "format": MODEL_FORMAT,
            "kind": self.joining.kind,
            "heads": self.space.to_json(),
            "joining": self.joining.to_json(),
            "members": names,
            "deciding": self.decision_rule.to_json(self.space),
            **self.details,
        }
        write_json(ModelFolder(folder).spec, description)


Model = TrainedModel | Ensemble
"""A trained model of one network, or of several."""


def load_model(folder: Path) -> Model:
    """Read a folder that either `save` wrote. Raises RunError for another or a damaged folder."""
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
        Uncertainty.load(folder),
    )


def replace_model(model: Model, folder: Path) -> None:
    """Write a model in place of the one in a folder: a kill leaves no weights of one beside decisions of the other."""
    with whole_folder(folder) as beside:
        model.save(beside)


def input_size(folder: Path) -> tuple[int, Resize]:
    """Return the image size and resizing of the first network of a model."""
    description = read_description(folder)
    if "kind" in description:
        return input_size(folder / description["members"][0])
    return description["size"], Resize.model_validate(description["resize"])


def member_of(folder: Path) -> Member:
    """Return the model in a folder, as a member of others. Raises RunError."""
    return Member(load_model(folder), folder)


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model, without its predictions for validation images."""
    names = json.loads(ModelFolder(folder).spec.read_text(encoding="utf-8")).get("members", ())
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".parquet"]
    return [*files, *(file for name in names for file in model_files(folder / name))]


# Averages of the weights of several networks of one architecture (model soups).

STATISTICS = ("running_mean", "running_var")


def average_weights(models: Sequence[TrainedModel]) -> TrainedModel:
    """Return one network with the mean weights of several (Izmailov et al. 2018; Wortsman et al. 2022).

    The shift of the logits is theirs; temperatures and thresholds were chosen for other logits and are reset.
    `models` must be alike (`require_alike`).
    """
    first = models[0]
    states = [model.classifier.state_dict() for model in models]
    mixed = {name: _mean([state[name] for state in states]) for name in states[0]}
    classifier = from_spec(spec(first.classifier))
    classifier.load_state_dict(mixed)
    rule = replace(DecisionRule.plain(first.space), shift=first.decision_rule.shift)
    trained = np.unique(np.concatenate([model.trained_on for model in models]))
    learnt = np.unique(np.concatenate([model.learnt_from for model in models]))
    classifier.eval()
    bare = replace(first, decision_rule=rule, details={}, uncertainty=None)
    return replace(bare, classifier=classifier, trained_on=trained, learnt_from=learnt)


def require_alike(models: Sequence[TrainedModel], names: Sequence[str]) -> None:
    """Raise ModelError, which names the first two that differ, for networks whose weights have no mean."""
    for name, model in zip(names, models, strict=True):
        if not model.classifier.is_linear:
            raise ModelError(
                f"soup: the last layer of {name} is not linear, and the mean of such layers is none of its kind. Take "
                "the model before its head was learnt again, or combine these as an ensemble."
            )
    facts = [
        {
            "network": spec(model.classifier),
            "size of images": model.size,
            "resize": model.resize.model_dump(),
            "class weights": model.decision_rule.shift.tolist(),
        }
        for model in models
    ]
    for name, other in zip(names, facts, strict=True):
        for what, value in other.items():
            if value != facts[0][what]:
                raise ModelError(
                    f"soup: {names[0]} and {name} differ in their {what} ({_shape_text(facts[0][what])}; "
                    f"{_shape_text(value)}), so their weights have no mean. "
                    "Take models of one kind, or combine these as an ensemble."
                )


def statistics_differ(models: Sequence[TrainedModel]) -> bool:
    """Return whether batch-norms of the models differ in their statistics, whose mean would fit no layer."""
    states = [model.classifier.state_dict() for model in models]
    return any(
        not torch.equal(state[name], states[0][name])
        for state in states[1:]
        for name in states[0]
        if name.endswith(STATISTICS)
    )


def take_statistics(network: nn.Module, batches: Iterator[Tensor]) -> None:
    """Estimate the statistics of batch-norms anew from batches on the network's device (Izmailov et al. 2018, 3.2)."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean in double precision; of counters, which are no weights, the first."""
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0).to(tensors[0].dtype)


def _shape_text(value: object) -> str:
    text = str(value["backbone"]) if isinstance(value, dict) and "backbone" in value else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
