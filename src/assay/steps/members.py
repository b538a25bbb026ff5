"""The members of a combination: trained here or there already, each with its answers for validation pictures."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay.errors import DataError, PlanError, RunError
from assay.files import fingerprint
from assay.labels.differences import of_pictures, of_spaces
from assay.labels.found import quoted
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.subset import labelled
from assay.models.composite import Member, member_of, shown_at
from assay.pixels.decode import Resize
from assay.predictions.predict import Predictions
from assay.steps.combine_settings import MemberPlan
from assay.steps.plans import StepPlan, steps_within
from assay.steps.sources import answers_file, content_json, member_run, model_folder, run_of
from assay.steps.state import Context, State


@dataclass(frozen=True)
class Trained:
    """A member: what it is called, its model, and its answers for the labelled validation pictures, in their order."""

    name: str
    member: Member
    predictions: Predictions


def first_shown(steps: Sequence[StepPlan], base: Path) -> tuple[int, Resize] | None:
    """How the first of these steps that looks at pictures wants them; None where none does that is there."""
    for step in steps:
        settings: Any = step.settings
        if hasattr(settings, "size"):
            return settings.size, settings.resize
        for member in getattr(settings, "members", ()):
            if member.run is not None and (folder := model_folder(base / member.run)) is not None:
                return shown_at(folder)
        if (found := first_shown(steps_within(settings), base)) is not None:
            return found
    return None


def trained_models(plans: Sequence[MemberPlan], state: State, context: Context) -> list[tuple[str, Path]]:
    """The name and the folder of each member's model; those with steps of their own are trained first.

    Raises PlanError where there is no model.
    """
    found = []
    for number, plan in enumerate(plans, 1):
        if plan.steps:
            here = context.for_part(f"member-{number}", number)
            found.append((here.name, train_one(plan, state, here)))
        elif plan.step is not None:
            found.append((plan.step, _of_step(plan.step, context)))
        else:
            assert plan.run is not None
            found.append((plan.run, member_run(plan.run, context.base)))
    return found


def train_one(plan: MemberPlan, state: State, here: Context) -> Path:
    """Carry out the steps of a member, from nothing but the samples of the state; the folder of its model.

    Raises PlanError where its steps make none.
    """
    here = replace(here, model=plan.model or here.model)
    key = fingerprint(state.key, here.name, content_json(here.model, here.base, here.run))
    model = here.run_steps(plan.steps, replace(state, model=None, key=key), here).model
    if model is None:
        raise PlanError(f"{here.name}: no step of this member makes a model. Add a probe or a fit.")
    return model


def loaded(models: Sequence[tuple[str, Path]], state: State, context: Context) -> list[Trained]:
    """The members, read. Raises PlanError, DataError for one that answers or was validated otherwise than the data."""
    validation = labelled(state.samples.part("val"))
    found: list[Trained] = []
    for name, folder in models:
        member = member_of(folder)
        other, space = (found[0].name, found[0].member.model.space) if found else ("the data", state.samples.space)
        _require_same_answers(name, member.model.space, other, space)
        _require_same_answers(name, member.model.space, "the data", state.samples.space)
        predictions = _answers(name, folder, validation, context)
        found.append(Trained(name, member, predictions))
    return found


def _of_step(name: str, context: Context) -> Path:
    """The model that a step of this run handed on, or the folder of a model in a step."""
    place = context.run / "steps" / name
    if place.exists() and _position(name) > _position(context.name):  # what lies there is of an earlier plan
        raise PlanError(f"combine: step: {name!r} comes after this step. Name one before it, or move this step down.")
    if (place / "spec.json").exists():
        return place
    done = place / "done.json"
    model = json.loads(done.read_text(encoding="utf-8"))["model"] if done.exists() else None
    if model is None:
        there = sorted(path.parent.relative_to(context.run / "steps") for path in place.parent.glob("*/done.json"))
        raise PlanError(
            f"combine: step: {name!r} has left no model. Name a step before this one that has"
            f"{f', one of {quoted(map(str, there))}' if there else ''}."
        )
    return context.run / str(model)


def _position(name: str) -> int:
    """Where a step stands in the plan, by the number that its name begins with; 0 where it has none."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _require_same_answers(name: str, space: LabelSpace, other: str, wanted: LabelSpace) -> None:
    """Refuse a member that answers otherwise. Raises PlanError that names both and the first difference."""
    difference = of_spaces(space, other, wanted)
    if difference:
        raise PlanError(
            f"combine: {name} {difference}. Members must have the same classes in the same order: train them on the "
            "same data, with its classes declared."
        )


def _answers(name: str, folder: Path, validation: Samples, context: Context) -> Predictions:
    """What a member answered for the validation pictures when it was trained, in their order."""
    path = folder / "predictions.parquet"
    if not folder.is_relative_to(context.run):
        _require_same_validation(name, run_of(folder), validation, left=context.left["val"])
        path = answers_file(folder)
    if not path.exists():
        raise RunError(f"combine: {name}: has no answers for validation pictures ({path}). Train it again.")
    found = Predictions.read(path, validation.space, model=name)
    rows = {picture: row for row, picture in enumerate(found.ids)}
    missing = [picture for picture in validation.ids if picture not in rows]
    if missing:
        raise DataError(
            f"combine: {name}: did not answer {len(missing):,} of {len(validation):,} validation pictures, "
            f"{quoted(missing)}. All members must be validated on the same pictures: give them the same data and split."
        )
    return found.take([rows[picture] for picture in validation.ids])


def _require_same_validation(name: str, root: Path, validation: Samples, *, left: Collection[str]) -> None:
    """Refuse a run that was validated on other pictures or labels, but for those that left this run's validation.

    Raises DataError.
    """
    samples = Ledger.read(root / "ledger.csv").of(()).apply(Samples.read(root / "samples.parquet"))
    theirs = labelled(samples.part("val"))
    theirs = theirs.take([row for row, name in enumerate(theirs.ids) if name not in left])
    if theirs.space != validation.space:
        return  # told of already, in more words
    apart = of_pictures(theirs, validation)
    if apart:
        raise DataError(
            f"combine: {name} was validated {apart.what} than this run: {apart}. Members are weighed and judged by the "
            "same validation pictures: give them the same data, split and seed of the split."
        )
