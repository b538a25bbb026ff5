"""Network, hardware, speed, plan and versions, by which a run can be repeated."""

from __future__ import annotations

import shlex
from pathlib import Path

from assay.export.submissions import LoggedSubmission, submissions_of
from assay.files import RunFolder
from assay.messages import either
from assay.models.backbones import stages
from assay.models.combiners import MeanCombiner, Tree
from assay.models.ensemble import Ensemble, Model
from assay.models.trained_model import TrainedModel, read_description
from assay.run.contents import RunContents


def networks(run: RunContents) -> list[dict[str, object]]:
    """Return every network of the newest model: its role, where there are several, its stages and their parameters."""
    model = run.trained
    if model is None:
        return []
    return [_network(network, role) for network, role in zip(model.networks, _roles(model), strict=True)]


def learner(run: RunContents) -> str:
    """Return what the newest model is, as text."""
    model = run.trained
    if not isinstance(model, Ensemble):
        return "A network"
    return f"{'A tree' if isinstance(model.joining, Tree) else 'An ensemble'} of {len(model.networks)} networks"


def _roles(model: Model) -> list[str]:
    """Return the role of each network of a model: which member and its weight, or the question that it answers."""
    if isinstance(model, TrainedModel):
        return [""]
    joining, count = model.joining, len(model.members)
    if isinstance(joining, Tree):
        roles = [f"tells apart {either(node.names)}" for node in joining.root.nodes()]
    else:
        roles = [f"member {number} of {count}" for number in range(1, count + 1)]
        if isinstance(joining, MeanCombiner):
            roles = [f"{text}, weight {weight:.2f}" for text, weight in zip(roles, joining.weights, strict=True)]
    return [text for text, member in zip(roles, model.members, strict=True) for _ in member.model.networks]


def _network(network: TrainedModel, role: str) -> dict[str, object]:
    backbone = network.classifier.backbone
    sizes = {name: parameter.numel() for name, parameter in backbone.named_parameters()}
    counts = [(stage.name, sum(sizes[name] for name in stage.parameters)) for stage in stages(backbone)]
    counts.append(("head", sum(parameter.numel() for parameter in network.classifier.head.parameters())))
    return {
        "role": role,
        "backbone": network.classifier.backbone_name,
        "size": network.size,
        "features": network.classifier.feature_count,
        "hidden": list(network.classifier.hidden),
        "parameters": sum(count for _, count in counts),
        "most": max(count for _, count in counts),
        "stages": counts,
        "trained_on": len(network.trained_on),
    }


def machine(run: RunContents) -> dict[str, object]:
    """Return what was chosen by timing, and how fast each step went."""
    return {
        "choices": [
            {
                "purpose": purpose,
                **choice["hardware"],
                "timings": sorted(choice["seconds a step"].items(), key=lambda timing: timing[1]),
            }
            for purpose, choice in run.hardware.items()
            if choice["seconds a step"]  # else nothing was timed
        ],
        "steps": [
            {
                "name": step.name,
                "seconds": step.done.seconds,
                "epochs": step.details.get("epochs"),
                "speed": step.details.get("images_per_second"),
                "hardware": step.details.get("hardware"),
            }
            for step in run.steps
            if step.done
        ],
        "seconds": run.metrics.seconds if run.metrics else None,
        "memory": run.metrics.memory if run.metrics else {},
        "environment": run.environment,
    }


def commands(run: RunContents) -> dict[str, object]:
    """Return what the commands need that make the run again."""
    return {
        "plan": run.plan_text,
        "quoted": shlex.quote(str(run.folder)),
        "seed": run.plan.get("seed", 0),
        "split_seed": ((run.plan.get("data") or {}).get("split") or {}).get("seed"),
        "fingerprint": run.samples.fingerprint(),
        "edits": len(run.ledger.entries),
        "packages": {name: version for name, version in run.environment.get("packages", {}).items() if version},
    }


def submissions(run: RunContents) -> list[LoggedSubmission]:
    """Return what was handed in from this run and from runs beside it with the same heads, oldest first."""
    heads = run.samples.space.to_json()
    beside = [run.folder, *(path.parent for path in sorted(run.folder.absolute().parent.glob("*/submissions.csv")))]
    alike = {folder.resolve(): folder for folder in beside if heads == _heads(folder)}
    return submissions_of(list(alike.values()))


def _heads(folder: Path) -> object:
    """Return the heads of a run's model as JSON; None where it has none."""
    paths = RunFolder(folder)
    return read_description(paths.model.path)["heads"] if paths.plan.exists() and paths.model.spec.exists() else None
