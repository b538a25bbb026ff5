"""The members of a combination: trained here or there already, each with its answers for validation images."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache as remembering
from pathlib import Path
from typing import Any

import numpy as np

from assay.arrays import Bools, Floats
from assay.errors import DataError, ModelError, PlanError, RunError
from assay.files import ModelFolder, fingerprint
from assay.images.decode import Resize
from assay.labels.build import quoted
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.subset import compare_samples, compare_spaces, labelled
from assay.metrics.metrics import higher_is_better, probabilities_of, stream
from assay.models.ensemble import (
    Member,
    average_weights,
    input_size,
    member_of,
    require_alike,
    statistics_differ,
    take_statistics,
)
from assay.models.trained_model import TrainedModel
from assay.predictions.cross_fitting import folds_of
from assay.predictions.ensemble_weights import greedy
from assay.predictions.inference import Inference, move
from assay.predictions.predict import Predictions
from assay.steps.base import Context, State, StepPlan, StepResult, steps_within
from assay.steps.ensemble_settings import EnsembleSettings, MemberPlan, ensemble_gain
from assay.steps.sources import answers_file, content_json, member_run, model_folder, run_of
from assay.steps.start import labelled_parts, stored_hardware
from assay.training.devices import Hardware


@dataclass(frozen=True)
class TrainedMember:
    """A member: what it is called, its model, and its answers for the labelled validation images, in their order."""

    name: str
    member: Member
    predictions: Predictions


def first_input_size(steps: Sequence[StepPlan], base: Path) -> tuple[int, Resize] | None:
    """How the first of these steps that looks at images wants them; None where none does that is there."""
    for step in steps:
        settings: Any = step.settings
        if hasattr(settings, "size"):
            return settings.size, settings.resize
        for member in getattr(settings, "members", ()):
            if member.run is not None and (folder := model_folder(base / member.run)) is not None:
                return input_size(folder)
        if (found := first_input_size(steps_within(settings), base)) is not None:
            return found
    return None


def train_members(plans: Sequence[MemberPlan], state: State, context: Context) -> list[tuple[str, Path]]:
    """The name and the folder of each member's model; those with steps of their own are trained first.

    Raises PlanError where there is no model.
    """
    found: list[tuple[str, Path]] = []
    for number, plan in enumerate(plans, 1):
        if plan.steps:
            here = context.for_part(f"member-{number}", number)
            found.append((here.name, train_member(plan, state, here)))
        elif plan.step is not None:
            found.append((plan.step, _of_step(plan.step, context)))
        else:
            assert plan.run is not None
            found.append((plan.run, member_run(plan.run, context.base)))
    return found


def train_member(plan: MemberPlan, state: State, here: Context) -> Path:
    """Carry out the steps of a member, from nothing but the samples of the state; the folder of its model.

    Raises PlanError where its steps make none.
    """
    here = replace(here, model=plan.model or here.model)
    key = fingerprint(state.key, here.name, content_json(here.model, here.base, here.run.path))
    model = here.run_steps(plan.steps, replace(state, model=None, key=key), here).model
    if model is None:
        raise PlanError(f"{here.name}: no step of this member makes a model. Add a probe or a fit.")
    return model


def load_member(models: Sequence[tuple[str, Path]], state: State, context: Context) -> list[TrainedMember]:
    """The members, read. Raises PlanError, DataError for one that answers or was validated otherwise than the data."""
    validation = labelled(state.samples.part("val"))
    found: list[TrainedMember] = []
    for name, folder in models:
        member = member_of(folder)
        other, space = (found[0].name, found[0].member.model.space) if found else ("the data", state.samples.space)
        _require_same_answers(name, member.model.space, other, space)
        _require_same_answers(name, member.model.space, "the data", state.samples.space)
        predictions = _member_predictions(name, folder, validation, context)
        found.append(TrainedMember(name, member, predictions))
    return found


def _of_step(name: str, context: Context) -> Path:
    """The model that a step of this run handed on, or the folder of a model in a step."""
    step = context.run.step(name)
    if step.path.exists() and _position(name) > _position(context.name):  # what lies there is of an earlier plan
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


def _position(name: str) -> int:
    """Where a step stands in the plan, by the number that its name begins with; 0 where it has none."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _require_same_answers(name: str, space: LabelSpace, other: str, wanted: LabelSpace) -> None:
    """Refuse a member that answers otherwise. Raises PlanError that names both and the first difference."""
    difference = compare_spaces(space, other, wanted)
    if difference:
        raise PlanError(
            f"ensemble: {name} {difference}. Members must have the same classes in the same order: train them on the "
            "same data, with its classes declared."
        )


def _member_predictions(name: str, folder: Path, validation: Samples, context: Context) -> Predictions:
    """What a member answered for the validation images when it was trained, in their order."""
    path = folder / "predictions.parquet"
    if not folder.is_relative_to(context.run.path):
        _require_same_validation(name, run_of(folder), validation, left=context.left["val"])
        path = answers_file(folder)
    if not path.exists():
        raise RunError(f"ensemble: {name}: has no answers for validation images ({path}). Train it again.")
    found = Predictions.read(path, validation.space, model=name)
    rows = {image: row for row, image in enumerate(found.ids)}
    missing = [image for image in validation.ids if image not in rows]
    if missing:
        raise DataError(
            f"ensemble: {name}: did not answer {len(missing):,} of {len(validation):,} validation images, "
            f"{quoted(missing)}. All members must be validated on the same images: give them the same data and split."
        )
    return found.take([rows[image] for image in validation.ids])


def _require_same_validation(name: str, root: Path, validation: Samples, *, left: Collection[str]) -> None:
    """Refuse a run that was validated on other images or labels, but for those that left this run's validation.

    Raises DataError.
    """
    samples = Ledger.read(root / "ledger.csv").of(()).apply(Samples.read(root / "samples.parquet"))
    theirs = labelled(samples.part("val"))
    theirs = theirs.take([row for row, name in enumerate(theirs.ids) if name not in left])
    if theirs.space != validation.space:
        return  # told of already, in more words
    apart = compare_samples(theirs, validation)
    if apart:
        raise DataError(
            f"ensemble: {name} was validated {apart.what} than this run: {apart}. Members are weighed and judged by "
            "the same validation images: give them the same data, split and seed of the split."
        )


# kind: soup: one network whose weights are the mean of those of several.

Pick = tuple[int, ...]


def soup(settings: EnsembleSettings, state: State, context: Context) -> StepResult:
    """The mean of all members' weights, or of those that validation gains by; the answers written are cross-fitted."""
    models = train_members(settings.members, state, context)
    if not context.processes.is_main_process:
        return StepResult(None, hands_on_labels=False)
    members = load_member(models, state, context)
    networks = _networks(members)
    validation = labelled(state.samples.part("val"))
    hardware = stored_hardware(context, "inference") or Hardware(context.device)

    @remembering
    def answered(pick: Pick) -> Floats:
        """Logits (N, W) for validation images of the mean of these members."""
        mixed = _averaged([networks[member] for member in pick], state.samples, context, hardware)
        return _inference(mixed, context, hardware).logits(validation.ids)

    picked: Pick = tuple(range(len(members)))
    if settings.pick == "greedy":
        picked, logits = _pick_greedily(settings, len(members), validation, answered, context)
    else:
        logits = answered(picked)
    answers = Predictions.of(validation.ids, state.samples.space, logits, model=context.name)
    details: dict[str, Any] = {
        "kind": settings.kind,
        "pick": settings.pick,
        "picked": [members[member].name for member in picked],
    }
    context.progress.line(f"  the mean of the weights of {', '.join(details['picked'])}")
    if len(validation):
        details["members"], details["gain over the best member"] = ensemble_gain(
            [one.predictions for one in members], answers, validation, context
        )
    folder = context.folder.path / "best"
    answers.write(folder / "predictions.parquet")
    _averaged([networks[member] for member in picked], state.samples, context, hardware).save(folder)
    return StepResult(folder, details=details, hands_on_labels=False)


def _networks(members: Sequence[TrainedMember]) -> list[TrainedModel]:
    """The single network of each member. Raises ModelError where they have no mean."""
    networks = []
    for one in members:
        if not isinstance(one.member.model, TrainedModel):
            raise ModelError(
                f"soup: {one.name} is itself a combination of several networks, whose weights have no mean with "
                "others. Take its members, or kind: average."
            )
        networks.append(one.member.model)
    require_alike(networks, [one.name for one in members])
    return networks


def _averaged(networks: Sequence[TrainedModel], samples: Samples, context: Context, hardware: Hardware) -> TrainedModel:
    """The mean network; where batch-norms have learnt different statistics, with statistics of its own."""
    mixed = average_weights(networks)
    if statistics_differ(networks):
        train, _ = labelled_parts(samples)
        inference = _inference(mixed, context, hardware)
        batches = (
            hardware.to_device(batch) for batch in inference.batches(train.ids) if len(batch) > 1 or len(train) == 1
        )
        take_statistics(mixed.classifier, batches)
    mixed.classifier.cpu()
    return mixed


def _inference(saved: TrainedModel, context: Context, hardware: Hardware) -> Inference:
    move(saved.classifier, hardware)
    return Inference(saved.classifier, context.images(saved.size, saved.resize), saved.size, hardware)


def _pick_greedily(
    settings: EnsembleSettings, count: int, validation: Samples, answered: Callable[[Pick], Floats], context: Context
) -> tuple[Pick, Floats]:
    """The members that validation gains by, and logits (N, W) for its images, each by a pick made without it."""
    if len(validation) == 0:
        raise DataError(
            "ensemble: pick: greedy: no validation image has a known label to pick by. Raise split.val, label some, "
            "or set pick: all."
        )
    space, codes = validation.space, validation.codes()
    sign = 1 if higher_is_better(settings.monitor) else -1

    def pick(rows: Bools) -> Pick:
        def value_of(members: Pick) -> float:
            shown = probabilities_of(space, answered(members)[rows])
            metrics = dict(stream(space, [known[rows] for known in codes], shown))
            if settings.monitor not in metrics:
                raise PlanError(
                    f"ensemble: monitor: {settings.monitor!r} is not measured on this data. There are: "
                    f"{', '.join(metrics)}."
                )
            return sign * metrics[settings.monitor]

        return greedy([value_of((member,)) for member in range(count)], value_of)

    fold = folds_of(len(validation), settings.folds, seed=context.seed)
    logits = np.empty((len(validation), space.width), dtype=np.float32)
    for number in np.unique(fold):
        inside = fold == number
        logits[inside] = answered(pick(~inside))[inside]
    return pick(np.ones(len(validation), dtype=np.bool_)), logits
