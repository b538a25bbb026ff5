"""What a run folder holds, finished or not, read for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import safe_open

from assay.arrays import Reals
from assay.errors import DataError, RunError
from assay.files import ModelFolder, RunFolder, StepFolder, StepName
from assay.labels.image_files import path_key
from assay.labels.ledger import Ledger, covers
from assay.labels.paths import require_run
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.subset import labelled
from assay.messages import SPLITS
from assay.metrics.metrics import HeadScore, headline
from assay.models.ensemble import Model, load_model
from assay.plan import yaml_lines
from assay.predictions.predict import Predictions, score_predictions
from assay.run.records import DoneRecord, RunMetrics, Scores
from assay.steps.history import history_table, read_history

CONTAINER_STEPS = ("repeat",)
"""Steps whose metrics are those of the last step in them."""


@dataclass(frozen=True)
class StepRecord:
    """One step of a run: `done` is None where it was begun and has not ended."""

    name: StepName
    settings: Mapping[str, Any]  # as the plan spells them
    done: DoneRecord | None
    history: pl.DataFrame | None  # step, epoch, part, name, value, best

    @property
    def kind(self) -> str:
        return self.name.kind

    @property
    def scores(self) -> Scores | None:
        return self.done.scores if self.done else None

    @property
    def details(self) -> Mapping[str, Any]:
        return self.done.details if self.done else {}


@dataclass(frozen=True, eq=False)
class RunContents:
    """All of a run. `samples` are those read, with the edits of a person and of the steps done."""

    paths: RunFolder
    as_read: Samples
    samples: Samples
    ledger: Ledger
    plan: Mapping[str, Any]
    plan_text: str
    steps: tuple[StepRecord, ...]
    metrics: RunMetrics | None  # None until the run is finished
    log: Sequence[Mapping[str, str]]  # at, line
    hardware: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.paths.path

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def finished(self) -> bool:
        return self.metrics is not None

    @cached_property
    def last(self) -> StepRecord | None:
        """The step whose model is handed on; of an unfinished run, the newest that made one."""
        if self.metrics and self.metrics.handed_on:
            return next(step for step in self.steps if step.name == self.metrics.handed_on["step"])
        names = {step.name: step for step in self.steps if step.done and step.done.model}
        candidates = [name for name in names if not (name.is_trial or name.is_member)]
        return names[max(candidates, key=_end_key)] if candidates else None

    @cached_property
    def scores(self) -> Scores | None:
        """The validation metrics of the newest model, or None where nothing validates."""
        return self.last.scores if self.last else None

    @property
    def headline(self) -> str | None:
        """The name of the headline metric."""
        return headline((self.scores or {}).get("metrics", {}), self.plan.get("metric"))

    @cached_property
    def validation(self) -> LabelledPredictions | None:
        """The predictions of the newest model for the labelled validation images."""
        return self.predictions_of(self.last) if self.last else None

    def predictions_of(self, step: StepRecord) -> LabelledPredictions | None:
        """Return the predictions of a step's model for the labelled validation images; None where it has none.

        The model of a node of a tree predicts whether an image belongs to a branch, and none of its classes.
        """
        if step.done is None or step.done.model is None or step.scores is None:
            return None
        path = ModelFolder(self.folder / step.done.model).predictions
        if not path.exists():
            return None
        samples = labelled(self.samples.part("val"))
        classes = {name: [row["class"] for row in head["per_class"]] for name, head in step.scores["heads"].items()}
        if classes != {head.name: list(head.classes) for head in samples.space}:
            return None  # a node of a tree
        predictions = Predictions.read(path, samples.space, model=step.name)
        if predictions.ids != samples.ids:
            return None
        # Without logits, which no page reads: of 50,000 images and 1,000 classes they are 200 MB.
        return LabelledPredictions(samples, replace(predictions, logits=predictions.logits[:, :0].copy()))

    @property
    def model(self) -> Path | None:
        """The folder of the newest model."""
        if self.finished and self.paths.model.spec.exists():
            return self.paths.model.path
        return self.folder / self.last.done.model if self.last and self.last.done and self.last.done.model else None

    @cached_property
    def trained(self) -> Model | None:
        """The newest model, read once for all who look at it."""
        return None if self.model is None else load_model(self.model)


@dataclass(frozen=True, eq=False)
class LabelledPredictions:
    """Predictions beside what is known of the same images."""

    samples: Samples
    predictions: Predictions

    @cached_property
    def codes(self) -> list[Codes]:
        return self.samples.codes()

    @cached_property
    def scores(self) -> dict[str, HeadScore]:
        """All metrics, with what differences are computed from: of two models the images must stand in one order."""
        return score_predictions(self.predictions, self.samples)

    def take(self, rows: Sequence[int]) -> LabelledPredictions:
        """Return the images of these rows, in this order."""
        return LabelledPredictions(self.samples.take(rows), self.predictions.take(rows))

    def of(self, head: Head) -> tuple[Codes, Reals, Reals]:
        """Return codes, probabilities (N, K) and thresholds (N, K) under one head."""
        space = self.samples.space
        columns = space.columns_of(head.name)
        codes = self.codes[space.heads.index(space[head.name])]
        return codes, self.predictions.probabilities[:, columns], self.predictions.cuts[:, columns]


def read_run(folder: Path) -> RunContents:
    """Read a run folder, in whatever state it is.

    Raises RunError where it is none, or one that has not come to reading its images.
    """
    require_run(folder)
    paths = RunFolder(folder)
    if not paths.is_read:
        raise RunError(
            f"{folder}: is no run that can be reported on (plan.yaml and samples.parquet are written once its "
            "images are read). Give the folder of a run, or begin one with `assay train`."
        )
    text = paths.plan.read_text(encoding="utf-8")
    plan = yaml_lines.read(text, str(paths.plan)).value
    if not isinstance(plan, dict):
        raise RunError(f"{paths.plan}: is no plan, which is a mapping. Give the folder of a run.")
    as_read, ledger = Samples.read(paths.samples), Ledger.read(paths.ledger)
    # A step comes after those that it holds; what an earlier plan left is in history/, and not here.
    steps = tuple(_step(name, paths, plan) for name in sorted(paths.steps_begun(), key=_end_key))
    return RunContents(
        paths=paths,
        as_read=as_read,
        samples=ledger.of(_label_steps(steps)).apply(as_read),
        ledger=ledger,
        plan=plan,
        plan_text=text,
        steps=steps,
        metrics=RunMetrics.read(paths),
        log=_lines(paths.log),
        hardware=_json(paths.hardware),
        environment=_json(paths.environment),
    )


def validated(paths: RunFolder, record: RunMetrics) -> LabelledPredictions:
    """Return a finished run's predictions for the labelled validation images, by the labels that its metrics are of.

    Raises DataError where nothing validates, RunError where it has no model, or its predictions are gone or of other
    images than the data has now.
    """
    model = record.last_model(paths)
    if model is None:
        raise RunError(f"{paths.path}: has no model, only a list of suspect labels. Name a run with a probe or a fit.")
    instead = "so nothing can be compared. Raise split.val, or label some"
    name = str(model.path.relative_to(paths.path))
    return predictions_of_part(paths, "val", model.predictions, model=name, instead=instead)


def predictions_of_part(
    paths: RunFolder, part: str, predictions: Path, *, model: str, instead: str
) -> LabelledPredictions:
    """Return the predictions in a file for the labelled images of a part; `instead` is what to do without labels.

    Raises DataError, RunError.
    """
    samples, part_text = Samples.read(paths.samples), SPLITS[part]
    images = labelled(Ledger.read(paths.ledger).of(()).apply(samples).part(part))
    if len(images) == 0:
        raise DataError(f"{paths.path}: no {part_text} image has a known label, {instead}.")
    if not predictions.exists():
        raise RunError(f"{paths.path}: its predictions of {part_text} images are gone ({predictions}). Train it again.")
    read = Predictions.read(predictions, samples.space, model=model)
    if read.ids != images.ids:
        raise RunError(
            f"{paths.path}: its predictions are of other {part_text} images than its data has. Train it again."
        )
    return LabelledPredictions(images, read)


def _label_steps(steps: Sequence[StepRecord]) -> list[str]:
    """Return the steps whose edits hold now: done, and handed on by the outermost step that is done."""
    done = {step.name: step.done for step in steps if step.done}
    outermost = [name for name in done if not any(other != name and covers(other, name) for other in done)]
    names: list[str] = []
    for name in outermost:
        record = done[name]
        if record.hands_on_labels:
            names += [name] if record.labels_of is None else record.labels_of
    return names


def _step(name: StepName, run: RunFolder, plan: Mapping[str, Any]) -> StepRecord:
    folder = run.step(name)
    done = DoneRecord.read(folder) if folder.done.exists() else None
    return StepRecord(name, _step_settings(name, plan), done, _history(folder, name))


def _step_settings(name: StepName, plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a step: `03-repeat/round-1/02-fit` is step 2 of those of step 3."""
    steps = plan.get("steps") if name.outer is None else _inner_steps(_step_settings(name.outer, plan), name.parts[-1])
    entry = steps[name.number - 1] if isinstance(steps, list) and name.number <= len(steps) else {}
    settings = entry.get(name.kind) if isinstance(entry, dict) else None
    return settings if isinstance(settings, dict) else {}


def _inner_steps(settings: Mapping[str, Any], part: str) -> Any:
    """Return the steps that are run in a part of a step: its own list, or that of a member; of a tree there is one."""
    members = settings.get("members")
    if not isinstance(members, list):
        return settings.get("steps")
    number = int(part.rpartition("-")[2]) if part.startswith("member-") else 1
    number = (number - 1) // (settings.get("training_folds") or 1) + 1  # a member is trained once a fold
    member = members[number - 1] if number <= len(members) else {}
    return member.get("steps") if isinstance(member, dict) else None


def _history(folder: StepFolder, name: StepName) -> pl.DataFrame | None:
    """Return the metrics of every epoch; of a fit that has not ended those that its checkpoint holds."""
    if folder.history.exists():
        return read_history(folder.history)
    if not folder.checkpoint.exists():
        return None
    with safe_open(folder.checkpoint, framework="np") as file:
        epochs = json.loads((file.metadata() or {})["values"])["fit_state"]["history"]
    table = history_table(name, epochs)
    table = table.filter((pl.col("part") != "unlabelled") & (pl.col("name") != "seconds"))
    return table if len(table) else None


def _end_key(name: str) -> list[Any]:
    """Return a sort key by which a step comes after the steps it holds."""
    last = ([(10**6, "")], "")
    return [*path_key(name), last]


def _json(path: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def _lines(path: Path) -> list[dict[str, str]]:
    """Return the lines of the log; the last one may be half written."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]
