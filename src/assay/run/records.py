"""What a run leaves behind as JSON: done.json of a step, metrics.json of a run. Keys are spelt here alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from assay.files import ModelFolder, RunFolder, StepFolder, StepName, write_json
from assay.labels.samples import LeftOut

Scores = Mapping[str, Any]
"""Metrics over all heads and by head, as `metrics.metrics.to_json` gives them."""


@dataclass(frozen=True)
class DoneRecord:
    """done.json: what a finished step came to. Paths are relative to the run."""

    key: str  # of all that the outcome follows from
    kind: str
    seconds: float
    model: str | None
    details: Mapping[str, Any]
    edits: int
    hands_on_labels: bool
    labels_of: tuple[str, ...] | None  # the steps whose labels are handed on; None: its own
    soft: Mapping[str, str] | None  # head -> file of soft targets; None: those of before
    undone_within: str  # of the edits that a person undid in steps that it holds
    scores: Scores | None = None  # on validation

    @staticmethod
    def read(folder: StepFolder) -> DoneRecord:
        return DoneRecord.from_json(json.loads(folder.done.read_text(encoding="utf-8")))

    def write(self, folder: StepFolder) -> None:
        write_json(folder.done, self.to_json())

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> DoneRecord:
        return DoneRecord(
            key=record["key"],
            kind=record["kind"],
            seconds=record["seconds"],
            model=record["model"],
            details=record["details"],
            edits=record["edits"],
            hands_on_labels=record["labels"],
            labels_of=None if record["labels_of"] is None else tuple(record["labels_of"]),
            soft=record["soft"],
            undone_within=record.get("undone within", ""),
            scores=record.get("scores"),
        )

    def to_json(self) -> dict[str, Any]:
        scores = {} if self.scores is None else {"scores": self.scores}
        return {
            "key": self.key,
            "kind": self.kind,
            "seconds": self.seconds,
            "model": self.model,
            "details": self.details,
            "edits": self.edits,
            "labels": self.hands_on_labels,
            "labels_of": None if self.labels_of is None else list(self.labels_of),
            "soft": self.soft,
            "undone within": self.undone_within,
            **scores,
        }


def read_begun(folder: StepFolder) -> str | None:
    """Return the key under which a step was begun; None where it was not."""
    if not folder.begun.exists():
        return None
    key: str = json.loads(folder.begun.read_text(encoding="utf-8"))["key"]
    return key


def write_begun(folder: StepFolder, key: str) -> None:
    """Note that a step is begun under this key."""
    write_json(folder.begun, {"key": key})


@dataclass(frozen=True)
class RunMetrics:
    """metrics.json: what a finished run came to."""

    key: str  # of all that the results follow from
    scores: Scores | None  # on validation
    test: Scores | None
    test_time: str | None  # when, ISO 8601
    test_kept_closed: bool
    baselines: Mapping[str, Scores]
    steps: Mapping[StepName, DoneRecord]  # in order
    corrections: Mapping[str, Mapping[str, int]]  # labels that a person settled, by part
    trained_on_before: Mapping[str, int]  # images that left a part, since what the plan begins with knew them
    counts: Mapping[str, int]  # images, by part
    left_out: Sequence[LeftOut]
    notes: Sequence[str]
    seconds: float
    processes: int
    memory: Mapping[str, float]  # MiB

    @cached_property
    def top_steps(self) -> list[DoneRecord]:
        """The steps on the plan's own list: a repeat has the scores of its last round."""
        return [record for name, record in self.steps.items() if name.depth == 0]

    def last_model(self, run: RunFolder) -> ModelFolder:
        """Return the folder of the step that the final model came of: its validation predictions are there."""
        return ModelFolder(run.path / next(step.model for step in reversed(self.top_steps) if step.model))

    @staticmethod
    def read(run: RunFolder) -> RunMetrics | None:
        """Return the metrics of a run; None where it is not finished."""
        if not run.metrics.exists():
            return None
        return RunMetrics.from_json(json.loads(run.metrics.read_text(encoding="utf-8")))

    def write(self, run: RunFolder) -> None:
        write_json(run.metrics, self.to_json())

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> RunMetrics:
        return RunMetrics(
            key=record["key"],
            scores=record["scores"],
            test=record["test"],
            test_time=record["test opened"],
            test_kept_closed=record["test kept closed"],
            baselines=record["baselines"],
            steps={StepName(step["name"]): DoneRecord.from_json(step) for step in record["steps"]},
            corrections=record["settled by a person"],
            trained_on_before=record["trained on before"],
            counts=record["counts"],
            left_out=[LeftOut(image["path"], image["reason"]) for image in record["left_out"]],
            notes=record["notes"],
            seconds=record["seconds"],
            processes=record["processes"],
            memory=record["memory MiB"],
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "scores": self.scores,
            "test": self.test,
            "test opened": self.test_time,
            "test kept closed": self.test_kept_closed,
            "baselines": self.baselines,
            "steps": [{"name": name, **record.to_json()} for name, record in self.steps.items()],
            "settled by a person": self.corrections,
            "trained on before": self.trained_on_before,
            "counts": self.counts,
            "left_out": [{"path": image.path, "reason": image.reason} for image in self.left_out],
            "notes": list(self.notes),
            "seconds": self.seconds,
            "processes": self.processes,
            "memory MiB": self.memory,
        }
