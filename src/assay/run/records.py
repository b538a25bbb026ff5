"""What a run leaves behind as JSON: done.json of a step, metrics.json of a run. Keys are spelt here alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from assay.files import ModelFolder, RunFolder, StepFolder, StepName, write_json
from assay.labels.left_out import LeftOut, by_reason
from assay.metrics.metrics import headline

if TYPE_CHECKING:
    from assay.models.candidates import CandidateJson

Scores = Mapping[str, Any]
"""Metrics over all heads and by head, as `metrics.metrics.to_json` gives them."""

JSON_KEYS = {
    "hands_on_labels": "labels",
    "undone_within": "undone within",
    "test_time": "test opened",
    "test_kept_closed": "test kept closed",
    "corrections": "settled by a person",
    "trained_on_before": "trained on before",
    "memory": "memory MiB",
}
"""Field -> key, where these differ."""


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
    labels_of: Sequence[str] | None  # the steps whose labels are handed on; None: itself
    soft: Mapping[str, str] | None  # head -> file of soft targets; None: those of before
    undone_within: str = ""  # a hash of the undone edits of steps that it holds
    scores: Scores | None = None  # on validation

    @staticmethod
    def read(folder: StepFolder) -> DoneRecord:
        return DoneRecord.from_json(json.loads(folder.done.read_text(encoding="utf-8")))

    def write(self, folder: StepFolder) -> None:
        write_json(folder.done, self.to_json())

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> DoneRecord:
        return DoneRecord(**_values(DoneRecord, record))

    def to_json(self) -> dict[str, Any]:
        record = _record(self)
        if self.scores is None:
            del record["scores"]
        return record


Number = Mapping[str, float | int | None]
"""A metric with n and interval, as `Metric.to_json` gives it."""


class HandedOn(TypedDict):
    """Which step's model a run hands on, and whether an earlier one validates better than the last."""

    step: str
    last: str  # the last step that made a model
    better: str | None  # the best of the earlier steps that are better beyond chance
    metric: str | None  # None without validation
    difference: Number | None  # how much better that step is than the last, paired


class SuspectCount(TypedDict):
    """How many labels the newest search found suspect, of those that nothing was done about; `file` lists them."""

    file: str  # relative to the run
    suspects: int  # of training
    labels: int  # judged
    validation_suspects: int
    validation_labels: int


def newest_search(steps: Mapping[StepName, DoneRecord]) -> StepName | None:
    """Return the last step that looked for wrong labels; None without one. Members of an ensemble do not count."""
    searches = [name for name, record in steps.items() if record.kind == "clean_labels" and not name.is_member]
    return searches[-1] if searches else None


class StageOutcome(TypedDict):
    """What a stage of a run with `minutes` was intended to take, took, and gained on the stage before it."""

    stage: str
    step: str
    intended: float  # seconds
    seconds: float
    metric: str | None  # the headline on validation; None where the stage made no model, or nothing validates
    value: float | None
    gain: Number | None
    kept: NotRequired[bool]  # False where validation did not gain by it, so that what was before is handed on


class Change(TypedDict):
    """A metric of an earlier run and of this one, on the same images by the same labels."""

    before: Number
    after: Number
    difference: Number
    verdict: str  # better, worse, not told apart


class BeforeAfter(TypedDict):
    """A run beside the one that it replaced; `why` it cannot be compared, where `change` is None."""

    run: str  # relative to the run
    metric: str | None
    change: Change | None  # by the labels of now
    by_old_labels: Change | None  # where any of them are others
    relabelled: int  # images in the comparison with another label than in the earlier run
    n: int  # images in both validation parts
    gone: int  # validation images of the earlier run that are not
    new: int
    why: str | None


class Alternative(TypedDict):
    """The validation metrics of the same network under other assumed class frequencies."""

    prior: str
    metrics: Mapping[str, Number]
    gains: Mapping[str, Number]  # over the answers of the run, paired; above 0 is better, also for a loss


class BackboneRow(TypedDict):
    """What a linear model on the features of a backbone, or of several side by side, reaches on a sample."""

    backbones: list[str]
    size: int  # of the images in pixels
    features: int
    seconds: float  # an image through the backbones, forward
    value: Number
    gain: Number | None  # over the fastest backbone at the first size, paired; None for itself


class BackboneLeftOut(TypedDict):
    """A candidate that was not tried, at a size or, where that is None, at all."""

    backbone: str
    size: int | None
    why: str


class BackboneChoice(TypedDict):
    """How `backbone: auto` was decided."""

    key: str  # of what it follows from
    chosen: str | None  # None while it is being decided
    why: str
    metric: str
    size: int  # of the images that the plan begins with
    n: int  # images of the sample
    limit: float  # seconds that it might take
    seconds: float  # that it took
    rows: list[BackboneRow]
    candidates: list[CandidateJson]
    left_out: list[BackboneLeftOut]


def best_alternative(others: Sequence[Alternative] | None, metric: str) -> Alternative | None:
    """Return the alternative that gains most in a metric; None where none gains beyond chance."""
    gains = [(other["gains"][metric], other) for other in others or () if metric in other["gains"]]
    gaining = [(gain["value"] or 0, other) for gain, other in gains if (gain["low"] or 0) > 0]
    return max(gaining, key=lambda pair: pair[0])[1] if gaining else None


@dataclass(frozen=True)
class RunMetrics:
    """metrics.json: what a finished run came to."""

    key: str  # of all that the results follow from
    scores: Scores | None  # on validation
    test: Scores | None
    test_time: str | None  # when the test split was predicted, ISO 8601
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
    ledger_lines: int | None = None  # when it was finished; a person may add more
    handed_on: HandedOn | None = None  # None where no step made a model
    suspects: SuspectCount | None = None  # None where no labels were judged
    alarms: Sequence[str] = ()  # what went wrong in training, as sentences
    before: BeforeAfter | None = None  # None where this is the first run in its folder
    metric: str | None = None  # what the plan is for
    prices: Sequence[Alternative] | None = None  # None where the prior that the model assumes is not known
    minutes: float | None = None  # that the run was given
    stages: Sequence[StageOutcome] = ()  # of a run with minutes, in order
    corrected: Mapping[str, Number] = field(default_factory=dict)  # accuracy by head, by noise of validation labels
    not_corrected: Mapping[str, str] = field(default_factory=dict)  # why there is no such accuracy, by head
    backbones: BackboneChoice | None = None  # None where the plan names its backbone

    @cached_property
    def top_steps(self) -> list[DoneRecord]:
        """The steps on the plan's own list: a repeat has the scores of its last round."""
        return [record for name, record in self.steps.items() if name.depth == 0]

    @property
    def step_seconds(self) -> float:
        """The seconds of all steps, of those that were taken over from another run too."""
        return float(sum(step.seconds for step in self.top_steps))

    @property
    def headline(self) -> str:
        """The metric that sums the run up: the plan's, else accuracy, or micro_f1 where every head is multi-label."""
        return headline((self.scores or {}).get("metrics", {}), self.metric) or "accuracy"

    def last_model(self, run: RunFolder) -> ModelFolder | None:
        """Return the folder of the step whose model was handed on, with its predictions; None without a model."""
        model = self.handed_on and self.steps[StepName(self.handed_on["step"])].model
        return ModelFolder(run.path / model) if model else None

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
        values = _values(RunMetrics, record)
        values["steps"] = {StepName(step["name"]): DoneRecord.from_json(step) for step in record["steps"]}
        values["left_out"] = [LeftOut(**image) for image in record["left_out"]]
        return RunMetrics(**values)

    def to_json(self) -> dict[str, Any]:
        return {
            **_record(self),
            "steps": [{"name": name, **record.to_json()} for name, record in self.steps.items()],
            "left_out": [asdict(image) for image in self.left_out],
            "left_out_by_reason": by_reason(self.left_out),
        }


def _values(kind: type[DoneRecord | RunMetrics], record: Mapping[str, Any]) -> dict[str, Any]:
    keys = {field.name: JSON_KEYS.get(field.name, field.name) for field in fields(kind)}
    return {name: record[key] for name, key in keys.items() if key in record}


def _record(values: DoneRecord | RunMetrics) -> dict[str, Any]:
    return {JSON_KEYS.get(field.name, field.name): getattr(values, field.name) for field in fields(values)}


def read_begun(folder: StepFolder) -> str | None:
    """Return the key under which a step was begun; None where it was not."""
    if not folder.begun.exists():
        return None
    key: str = json.loads(folder.begun.read_text(encoding="utf-8"))["key"]
    return key


def write_begun(folder: StepFolder, key: str) -> None:
    """Note that a step is begun under this key."""
    write_json(folder.begun, {"key": key})
