"""The members of an ensemble: trained here or there already, each with its predictions of validation images."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field

from assay.errors import DataError, PlanError, RunError
from assay.files import ModelFolder, RunFolder, fingerprint
from assay.images.decode import Resize
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.split import folds as folds_of_samples
from assay.labels.subset import compare_samples, compare_spaces, labelled
from assay.messages import quoted
from assay.metrics.metrics import gains, overall, to_json
from assay.models.classifier import ModelSettings, require_named
from assay.models.combiners import MeanOf, mean_prediction
from assay.models.ensemble import Member, Model, input_size, member_of
from assay.predictions.predict import Predictions, score_predictions
from assay.predictions.tta import tta_logits
from assay.settings import Settings, Source
from assay.steps.base import Context, State, StepPlan, kind_that_changes_labels, steps_within
from assay.steps.hardware import inference_hardware
from assay.steps.sources import content_json, member_run, model_folder, predictions_file, run_of


class MemberPlan(Settings):
    """One of the models: trained here by steps of its own, or there already."""

    model: ModelSettings | None = Field(None, description="Its backbone and head; default: those of the plan.")
    steps: tuple[StepPlan, ...] = Field((), description="How it is trained, from the labels as this step gets them.")
    run: Annotated[str | None, Source("member")] = Field(
        None, description="Instead, a finished run, or the folder of a model in one."
    )
    step: str | None = Field(None, description="Instead, an earlier step of this run, such as 02-fit, or 02-fit/last.")

    def require_consistent(self) -> None:
        given = [name for name in ("steps", "run", "step") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"a member has steps, run or step; {' and '.join(given) or 'none'} is given")
        if self.model is not None and not self.steps:
            raise ValueError(f"model is for a member that is trained here; {given[0]} has a model already")
        if self.model is not None:
            require_named(self.model.backbone)
        if (kind := kind_that_changes_labels(self)) is not None:
            raise ValueError(f"{kind} changes labels, and members only learn from them; put it before this step")


@dataclass(frozen=True)
class TrainedMember:
    """A member: its name, its model, and its predictions of the labelled validation images, in their order."""

    name: str
    member: Member
    predictions: Predictions


def first_input_size(steps: Sequence[StepPlan], base: Path) -> tuple[int, Resize] | None:
    """Return size and resizing of the first of these steps that reads images; None where none does."""
    for step in steps:
        settings: Any = step.settings
        if hasattr(settings, "size") and not steps_within(settings):  # else they have sizes of their own
            return settings.size, settings.resize
        for member in getattr(settings, "members", ()):
            if member.run is not None and (folder := model_folder(base / member.run)) is not None:
                return input_size(folder)
        if (size := first_input_size(steps_within(settings), base)) is not None:
            return size
    return None


def train_members(plans: Sequence[MemberPlan], state: State, context: Context) -> list[tuple[str, Path]]:
    """Return name and folder of each member's model; train those with steps first.

    Raises PlanError where there is no model.
    """
    models: list[tuple[str, Path]] = []
    for number, plan in enumerate(plans, 1):
        if plan.steps:
            part = context.for_part(f"member-{number}", number)
            models.append((part.name, train_member(plan, state, part)))
        elif plan.step is not None:
            models.append((plan.step, _of_step(plan.step, context)))
        else:
            assert plan.run is not None
            models.append((plan.run, member_run(plan.run, context.base)))
    return models


def train_member(plan: MemberPlan, state: State, context: Context) -> Path:
    """Run the steps of a member, from nothing but the samples of the state, and return the folder of its model.

    Raises PlanError where its steps make none.
    """
    context = replace(context, model=plan.model or context.model)
    key = fingerprint(state.key, context.name, content_json(context.model, context.base, context.run.path))
    model = context.run_steps(plan.steps, replace(state, model=None, key=key), context).model
    if model is None:
        raise PlanError(f"{context.name}: none of its steps makes a model. Add a probe or a fit.")
    return model


def load_members(models: Sequence[tuple[str, Path]], state: State, context: Context) -> list[TrainedMember]:
    """Read the members. Raises PlanError or DataError for one with other heads or validation images than the data."""
    validation = labelled(state.samples.part("val"))
    members: list[TrainedMember] = []
    for name, folder in models:
        member = member_of(folder)
        other, space = (
            (members[0].name, members[0].member.model.space) if members else ("the data", state.samples.space)
        )
        _require_same_heads(name, member.model.space, other, space)
        _require_same_heads(name, member.model.space, "the data", state.samples.space)
        predictions = _member_predictions(name, folder, validation, context)
        members.append(TrainedMember(name, member, predictions))
    return members


def predict_validation(model: Model, validation: Samples, context: Context, *, name: str) -> Predictions:
    """Predict validation images by a model of this run, with the thresholds of its rule."""
    logits = np.empty((0, model.space.width), dtype=np.float32)
    if len(validation):
        hardware = inference_hardware(context)
        (logits,) = tta_logits(model, context.images, validation.ids, hardware=hardware)
    thresholds = np.broadcast_to(model.decision_rule.thresholds, logits.shape)  # a row an image, as those read
    return Predictions.of(validation.ids, model.space, logits, model=name, thresholds=thresholds)


def _of_step(name: str, context: Context) -> Path:
    """Return the model that a step of this run handed on, or the folder of a model in a step. Raises PlanError."""
    step = context.run.step(name)
    if step.path.exists() and first_number(name) > first_number(context.name):  # what lies there is of an earlier plan
        raise PlanError(f"ensemble: step: {name!r} comes after this step. Name one before it, or move this step down.")
    if ModelFolder(step.path).spec.exists():
        return step.path
    model = json.loads(step.done.read_text(encoding="utf-8"))["model"] if step.done.exists() else None
    if model is None:
        others = sorted(one for one in context.run.steps_done() if one.rpartition("/")[0] == name.rpartition("/")[0])
        raise PlanError(
            f"ensemble: step: {name!r} has left no model. Name a step before this one that has"
            f"{f', one of {quoted(others)}' if others else ''}."
        )
    return context.run.path / str(model)


def first_number(name: str) -> int:
    """Return the number that the name of a step begins with, its position in the plan; 0 where it has none."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _require_same_heads(name: str, space: LabelSpace, other: str, wanted: LabelSpace) -> None:
    """Raise PlanError where a member has other heads or classes; it names both and the first difference."""
    difference = compare_spaces(space, other, wanted)
    if difference:
        raise PlanError(
            f"ensemble: {name} {difference}. Members must have the same classes in the same order: train them on the "
            "same data, with its classes declared."
        )


def _member_predictions(name: str, folder: Path, validation: Samples, context: Context) -> Predictions:
    """Return the predictions that a member wrote for the validation images, in their order. Raises AssayError."""
    path = ModelFolder(folder).predictions
    if not folder.is_relative_to(context.run.path):
        _require_same_validation(name, run_of(folder), validation, left=context.left["val"])
        path = predictions_file(folder)
    if not path.exists():
        raise RunError(f"ensemble: {name}: has no answers for validation images ({path}). Train it again.")
    predictions = Predictions.read(path, validation.space, model=name)
    rows = {image: row for row, image in enumerate(predictions.ids)}
    missing = [image for image in validation.ids if image not in rows]
    if missing:
        raise DataError(
            f"ensemble: {name}: did not answer {len(missing):,} of {len(validation):,} validation images, "
            f"{quoted(missing)}. All members must be validated on the same images: give them the same data and split."
        )
    return predictions.take([rows[image] for image in validation.ids])


def _require_same_validation(name: str, root: Path, validation: Samples, *, left: Collection[str]) -> None:
    """Raise DataError where a run was validated on other images or labels, but for those that left validation here."""
    run = RunFolder(root)
    samples = Ledger.read(run.ledger).of(()).apply(Samples.read(run.samples))
    theirs = labelled(samples.part("val"))
    theirs = theirs.take([row for row, name in enumerate(theirs.ids) if name not in left])
    if theirs.space != validation.space:
        return  # refused already, with the difference
    mismatch = compare_samples(theirs, validation)
    if mismatch:
        raise DataError(
            f"ensemble: {name} was validated {mismatch.what} than this run: {mismatch}. Members are weighed and judged "
            "by the same validation images: give them the same data, split and seed of the split."
        )


# Gains over the members, for done.json and in lines.

GAIN_METRIC = "macro_f1"  # of multi-class heads and multi-label ones alike
GAIN_METRICS = ("accuracy", "macro_f1", "nll")


def ensemble_gain(
    members: Sequence[Predictions], predictions: Predictions, validation: Samples, context: Context
) -> dict[str, object]:
    """Return the metrics of each member, and the gain over the best of them by macro F1, then by loss.

    The best was chosen on these images, which flatters it; the gain is over that.
    """
    scores = {one.model: overall(score_predictions(one, validation)) for one in members}
    best = max(members, key=lambda one: (scores[one.model][GAIN_METRIC].value, -scores[one.model]["nll"].value))
    return {
        "members": {
            name: {metric: value.to_json() for metric, value in metrics.items()} for name, metrics in scores.items()
        },
        "gain over the best member": gain_lines(
            best, predictions, validation, f"the best member, {best.model}", context
        ),
    }


def gain_lines(
    before: Predictions, after: Predictions, validation: Samples, what: str, context: Context
) -> dict[str, object]:
    """Return the paired gain in every metric, for done.json; print those of `GAIN_METRICS`."""
    by_metric = gains(score_predictions(before, validation), score_predictions(after, validation))
    for name, metric in by_metric.items():
        if name in GAIN_METRICS:
            context.progress.line(
                f"  {name}: better than {what} by {metric.value:.4f}{metric.limits()}, n = {metric.n}"
            )
    return {"over": what, **{name: metric.to_json() for name, metric in by_metric.items()}}


# Members that are trained on other parts of the training images, each validated on the rest.


@dataclass(frozen=True)
class FoldMember:
    """A member to be trained: its plan, its samples of which one fold validates, and where it is trained."""

    plan: MemberPlan
    begun: State
    context: Context


def members_by_fold(plans: Sequence[MemberPlan], count: int, state: State, context: Context) -> Iterator[FoldMember]:
    """Yield each member once a fold: the fold's labelled images validate, and the other training images train.

    What validates the ensemble is in no part of its members. Folds are stratified over all heads; copies of an image
    and images of a group share one. Unlabelled images train in every fold.
    Raises DataError where a fold would have no labelled image.
    """
    fold = _folds(state.samples, count, context.seed)
    number = 0
    for plan in plans:
        for held in range(count):
            number += 1
            samples, as_read = (_with_fold(one, fold, held) for one in (state.samples, context.as_read))
            key = fingerprint(state.key, "fold", str(held), samples.fingerprint())
            part = replace(context.for_part(f"member-{number}", number), as_read=as_read)
            yield FoldMember(plan, replace(state, samples=samples, key=key), part)


def train_members_by_fold(
    plans: Sequence[MemberPlan], count: int, of: MeanOf, state: State, context: Context
) -> tuple[list[TrainedMember], dict[str, object]]:
    """Train every member on all folds but one, `count` times, and return them with out-of-fold metrics for done.json.

    Nothing is predicted but in the main process.
    """
    trained = []
    for one in members_by_fold(plans, count, state, context):
        held = len(one.begun.samples.part("val"))
        context.progress.line(f"{one.context.name}: {held} of the training images validate it")
        trained.append((one, train_member(one.plan, one.begun, one.context)))
    if not context.processes.is_main_process:
        return [], {}
    validation, members = labelled(state.samples.part("val")), []
    for one, folder in trained:
        member, name = member_of(folder), one.context.name
        members.append(TrainedMember(name, member, predict_validation(member.model, validation, context, name=name)))
    return members, {"out of fold": _out_of_fold_scores(trained, len(plans), of, state.samples, context)}


def _out_of_fold_scores(
    trained: Sequence[tuple[FoldMember, Path]], plans: int, of: MeanOf, samples: Samples, context: Context
) -> dict[str, object]:
    """Return metrics of the training images, each predicted by the members that held it out, and print the first ones.

    Every plan has held each image out once; the mean over the `plans` is taken.
    """
    space, count = samples.space, len(trained) // plans
    train, parts = labelled(samples.part("train")), []
    for first in range(0, len(trained), count):
        folders = [folder for _, folder in trained[first : first + count]]
        files = [ModelFolder(folder).predictions for folder in folders]
        by_fold = Predictions.joined([Predictions.read(file, space, model="out of fold") for file in files])
        row = {image: number for number, image in enumerate(by_fold.ids)}
        parts.append(by_fold.take([row[image] for image in train.ids]))
    logits = mean_prediction(space, [part.logits for part in parts], of=of)
    thresholds = np.stack([part.cuts for part in parts]).mean(axis=0)
    predictions = Predictions.of(train.ids, space, logits, model="out of fold", thresholds=np.asarray(thresholds))
    scores = score_predictions(replace(predictions, out_of_fold=True), train)
    for name, metric in overall(scores).items():
        if name in GAIN_METRICS:
            context.progress.line(f"  out of fold: {name} {metric.value:.4f}{metric.limits()}, n = {metric.n}")
    return to_json(scores)


def _folds(samples: Samples, count: int, seed: int) -> dict[str, int]:
    """Return the fold of each labelled training image. Raises DataError where a fold would be empty."""
    train = labelled(samples.part("train"))
    fold = folds_of_samples(train, count, seed=seed)
    if len(np.unique(fold)) < count:
        raise DataError(
            f"ensemble: training_folds: {count}: the training part has {len(train)} labelled images that may be "
            "parted, too few for that many folds. Take fewer folds, or label more."
        )
    return dict(zip(train.ids, fold.tolist(), strict=True))


def _with_fold(samples: Samples, fold: dict[str, int], held: int) -> Samples:
    """Return the samples with the images of a fold as validation and the rest of the training part as it was."""
    validates = pl.Series([fold.get(name) == held for name in samples.ids], dtype=pl.Boolean)
    train = pl.col("split") == "train"
    split = pl.when(pl.lit(validates)).then(pl.lit("val")).when(train).then(pl.lit("train")).alias("split")
    return replace(samples, table=samples.table.with_columns(split))
