"""What a run folder holds, finished or not, read for the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import safe_open

from assay.errors import RunError
from assay.labels.image_files import path_key
from assay.labels.ledger import Ledger, covers
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.subset import labelled
from assay.metrics.metrics import headline
from assay.plan import yaml_lines
from assay.predictions.predict import Predictions

CONTAINER_STEPS = ("repeat",)
"""Steps whose metrics are those of the last step in them."""

TRIAL = "trial"
"""The part of a step that only tries something, and of which nothing is handed on but what the step says."""

MEMBERS = ("member-", "node-")
"""The parts of a step that combines several models."""

HISTORY = {"step": pl.String, "part": pl.String, "name": pl.String, "epoch": pl.Int64, "value": pl.Float64}


@dataclass(frozen=True)
class StepRecord:
    """One step of a run: `done` is its done.json, None where it was begun and has not ended."""

    name: str  # 03-repeat/round-1/02-fit
    kind: str
    settings: dict[str, Any]  # as the plan says them
    done: dict[str, Any] | None
    history: pl.DataFrame | None  # step, epoch, part, name, value, best

    @property
    def depth(self) -> int:
        """0 on the plan's own list, 1 more within each step that holds others."""
        return self.name.count("/") // 2

    @property
    def tried(self) -> bool:
        """Whether it was carried out for a comparison only."""
        return TRIAL in self.name.split("/")

    @property
    def of_member(self) -> bool:
        """Whether it belongs to one of several models that are combined: it goes on from none of the others."""
        return any(part.startswith(MEMBERS) for part in self.name.split("/"))

    @property
    def scores(self) -> dict[str, Any] | None:
        return (self.done or {}).get("scores")

    @property
    def details(self) -> dict[str, Any]:
        found: dict[str, Any] = (self.done or {}).get("details", {})
        return found


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run as its folder tells it. `samples` are those read, with the edits of a person and of the steps done."""

    folder: Path
    as_read: Samples
    samples: Samples
    ledger: Ledger
    plan: dict[str, Any]
    plan_text: str
    steps: tuple[StepRecord, ...]
    metrics: dict[str, Any] | None  # None until the run is finished
    log: list[dict[str, Any]]
    hardware: dict[str, Any]
    environment: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def finished(self) -> bool:
        return self.metrics is not None

    @cached_property
    def last(self) -> StepRecord | None:
        """The newest step that made a model."""
        made = [
            step for step in self.steps if step.done and step.done["model"] and not step.tried and not step.of_member
        ]
        return max(made, key=lambda step: _ends(step.name), default=None)

    @cached_property
    def scores(self) -> dict[str, Any] | None:
        """The validation metrics of the newest model, or None where nothing validates."""
        return self.last.scores if self.last else None

    @property
    def chief(self) -> str | None:
        """The name of the headline metric."""
        return headline((self.scores or {}).get("metrics", {}))

    @cached_property
    def judged(self) -> LabelledPredictions | None:
        """The answers of the newest model for the labelled validation images."""
        return self.answers(self.last) if self.last else None

    def answers(self, step: StepRecord) -> LabelledPredictions | None:
        """What the model of a step says of the labelled validation images; None where it says nothing of them.

        The model of one question of a tree says whether an image belongs to a branch, and nothing of its classes.
        """
        path = self.folder / step.done["model"] / "predictions.parquet" if step.done and step.done["model"] else None
        if path is None or step.scores is None or not path.exists():
            return None
        samples = labelled(self.samples.part("val"))
        asked = {name: [row["class"] for row in head["per_class"]] for name, head in step.scores["heads"].items()}
        if asked != {head.name: list(head.classes) for head in samples.space}:
            return None  # a node of a tree: its question is another
        predictions = Predictions.read(path, samples.space, model=step.name)
        return LabelledPredictions(samples, predictions) if predictions.ids == samples.ids else None

    @property
    def model(self) -> Path | None:
        """The folder of the newest model."""
        whole = self.folder / "model"
        if self.finished and (whole / "spec.json").exists():
            return whole
        return self.folder / self.last.done["model"] if self.last and self.last.done else None


@dataclass(frozen=True, eq=False)
class LabelledPredictions:
    """Answers beside what is known of the same images."""

    samples: Samples
    predictions: Predictions

    @cached_property
    def codes(self) -> list[Codes]:
        return self.samples.codes()

    def of(self, head: Head) -> tuple[Codes, Any, Any]:
        """Codes, probabilities (N, K) and thresholds (N, K) under one head."""
        place = [own.name for own in self.samples.space].index(head.name)
        columns = self.samples.space.slices[place]
        cuts = np.broadcast_to(self.predictions.thresholds, self.predictions.logits.shape)
        return self.codes[place], self.predictions.probabilities[:, columns], cuts[:, columns]


def read_run(folder: Path) -> RunFolder:
    """Read a run folder, in whatever state it is.

    Raises RunError where it is none, or one that has not come to reading its images.
    """
    plan, table = folder / "plan.yaml", folder / "samples.parquet"
    if not plan.exists() or not table.exists():
        raise RunError(
            f"{folder}: is no run that can be reported on (plan.yaml and samples.parquet are written once its "
            "images are read). Give the folder of a run, or begin one with `assay train`."
        )
    text = plan.read_text(encoding="utf-8")
    value = yaml_lines.read(text, str(plan)).value
    if not isinstance(value, dict):
        raise RunError(f"{plan}: is no plan, which is a mapping. Give the folder of a run.")
    as_read, ledger = Samples.read(table), Ledger.read(folder / "ledger.csv")
    steps = _steps(folder / "steps", value.get("steps") or [])
    return RunFolder(
        folder=folder,
        as_read=as_read,
        samples=ledger.of(_hand_on_labels(steps)).apply(as_read),
        ledger=ledger,
        plan=value,
        plan_text=text,
        steps=steps,
        metrics=_json(folder / "metrics.json"),
        log=_lines(folder / "log.jsonl"),
        hardware=_json(folder / "hardware.json") or {},
        environment=_json(folder / "environment.json") or {},
    )


def _hand_on_labels(steps: Sequence[StepRecord]) -> list[str]:
    """The steps whose edits hold now: done, and not within one that is done and has said whose it hands on."""
    done = {step.name: step.done for step in steps if step.done}
    outer = [name for name in done if not any(other != name and covers(other, name) for other in done)]
    handed = [(name, done[name]["labels_of"]) for name in outer if done[name]["labels"]]
    return [name for own, names in handed for name in ([own] if names is None else names)]


def _steps(folder: Path, plan: list[Any]) -> tuple[StepRecord, ...]:
    """Every step that was begun, those within a step before it; what an earlier plan left is in history/, not here."""
    begun = {path.parent for ending in ("begun.json", "done.json") for path in folder.rglob(ending)}
    names = sorted((path.relative_to(folder).as_posix() for path in begun), key=_ends)
    return tuple(_step(folder / name, name, plan) for name in names)


def _step(folder: Path, name: str, plan: list[Any]) -> StepRecord:
    kind, settings = _step_settings(name, plan)
    done = _json(folder / "done.json")
    return StepRecord(name, kind, settings, done, _history(folder, name))


def _step_settings(name: str, plan: list[Any]) -> tuple[str, dict[str, Any]]:
    """The kind of a step and its settings: `03-repeat/round-1/02-fit` is step 2 of those of step 3."""
    entries: Any = plan
    kind, settings = "", {}
    parts = name.split("/")
    for part, place in zip(parts[::2], [*parts[1::2], ""], strict=False):
        number, _, kind = part.partition("-")
        entry = entries[int(number) - 1] if isinstance(entries, list) and int(number) <= len(entries) else {}
        found = entry.get(kind) if isinstance(entry, dict) else None
        settings = found if isinstance(found, dict) else {}
        entries = _inner_steps(settings, place)
    return kind, settings


def _inner_steps(settings: dict[str, Any], place: str) -> Any:
    """The steps that are carried out in a part of a step: its own list, or that of a member; of a tree there is one."""
    members = settings.get("members")
    if not isinstance(members, list):
        return settings.get("steps")
    number = int(place.rpartition("-")[2]) if place.startswith("member-") else 1
    member = members[number - 1] if number <= len(members) else {}
    return member.get("steps") if isinstance(member, dict) else None


def _history(folder: Path, name: str) -> pl.DataFrame | None:
    """The metrics of every epoch; of a fit that has not ended those that its checkpoint holds."""
    whole, checkpoint = folder / "history.csv", folder / "checkpoint.safetensors"
    if whole.exists():
        return pl.read_csv(whole, schema_overrides=HISTORY)
    if not checkpoint.exists():
        return None
    with safe_open(checkpoint, framework="np") as file:
        epochs = json.loads((file.metadata() or {})["values"])["fit_state"]["history"]
    best = max((row["epoch"] for row in epochs if row["best"]), default=0)
    rows = [
        {
            "step": name,
            "epoch": row["epoch"],
            "part": part,
            "name": metric,
            "value": value,
            "best": row["epoch"] == best,
        }
        for row in epochs
        for part, metrics in (("training", row["training"] | {"lr": row["lr"]}), ("validation", row["validation"]))
        for metric, value in metrics.items()
    ]
    return pl.DataFrame(rows, schema=HISTORY | {"best": pl.Boolean}) if rows else None


def _ends(name: str) -> list[Any]:
    """Sort key in which a step comes after the steps it holds."""
    last = ([(10**6, "")], "")
    return [*path_key(name), last]


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the log; the last one may be half written."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]
