"""How the run was made, and how to make it again: network, hardware, speed, plan, versions."""

from __future__ import annotations

import shlex
from typing import Any

from assay.evidence.names import plain
from assay.evidence.page.folder import RunFound
from assay.models.backbones import stages
from assay.models.composite import load_model
from assay.models.saved import Saved


def networks(run: RunFound) -> list[dict[str, Any]]:
    """Of every network of the newest model, its stages and their parameters."""
    return [_network(saved) for saved in load_model(run.model).networks] if run.model else []


def _network(saved: Saved) -> dict[str, Any]:
    backbone = saved.classifier.backbone
    sizes = {name: parameter.numel() for name, parameter in backbone.named_parameters()}
    counted = [(plain(stage.name), sum(sizes[name] for name in stage.parameters)) for stage in stages(backbone)]
    counted.append(("head", sum(parameter.numel() for parameter in saved.classifier.head.parameters())))
    return {
        "backbone": plain(saved.classifier.backbone_name),
        "size": saved.size,
        "features": saved.classifier.feature_count,
        "hidden": list(saved.classifier.hidden),
        "parameters": sum(count for _, count in counted),
        "most": max(count for _, count in counted),
        "stages": counted,
        "trained_on": len(saved.trained_on),
    }


def machine(run: RunFound) -> dict[str, Any]:
    """What was chosen by timing, and how fast each step went."""
    return {
        "choices": [
            {
                "purpose": plain(purpose),
                **choice["hardware"],
                "timings": sorted(choice["seconds a step"].items(), key=lambda timing: timing[1]),
            }
            for purpose, choice in run.hardware.items()
        ],
        "steps": [
            {
                "name": plain(step.name),
                "seconds": step.done["seconds"],
                "epochs": step.details.get("epochs"),
                "speed": step.details.get("pictures_per_second"),
                "hardware": step.details.get("hardware"),
            }
            for step in run.steps
            if step.done
        ],
        "seconds": (run.metrics or {}).get("seconds"),
        "memory": (run.metrics or {}).get("memory MiB", {}),
        "environment": run.environment,
    }


def again(run: RunFound) -> dict[str, Any]:
    """The commands and numbers that lead here again."""
    return {
        "plan": run.plan_text,
        "folder": plain(str(run.folder)),
        "quoted": plain(shlex.quote(str(run.folder))),
        "seed": run.plan.get("seed", 0),
        "split_seed": ((run.plan.get("data") or {}).get("split") or {}).get("seed"),
        "fingerprint": run.samples.fingerprint(),
        "edits": len(run.ledger.entries),
        "packages": {name: version for name, version in run.environment.get("packages", {}).items() if version},
    }
