"""Averages of the weights of several networks of one architecture (model soups)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from assay.errors import ModelError
from assay.models.classifier import from_spec, spec
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import TrainedModel

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
    return replace(first, classifier=classifier, decision_rule=rule, details={}, trained_on=trained, learnt_from=learnt)


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
