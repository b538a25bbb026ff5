"""combine: several models answer as one: a committee, a tree of classes, or one network with the mean of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from assay.errors import DataError
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.subset import labelled
from assay.models.composite import Composite
from assay.models.deciding import Deciding
from assay.models.joining import Mean, mean
from assay.predictions.combine import Weights, best_weights, cross_fitted_weights
from assay.predictions.predict import Predictions
from assay.steps.combine_settings import CombineSettings, Kind
from assay.steps.combine_soup import soup
from assay.steps.combine_tree import check_tree, tree
from assay.steps.members import Trained, loaded, trained_models
from assay.steps.plans import steps_below
from assay.steps.state import Context, State, StepResult
from assay.steps.worth import told, worth


def run(settings: CombineSettings, state: State, context: Context) -> StepResult:
    """Train the members that are not there yet, and make one model of all."""
    return COMBINING[settings.kind](settings, state, context)


def check(settings: CombineSettings, space: LabelSpace) -> None:
    """Raise PlanError for a tree, or a step of a member, that does not fit the data, before anything is trained."""
    from assay.steps import STEPS  # which knows this step, and so cannot be there before it

    if settings.kind == "tree":
        check_tree(settings, space)  # the steps of its questions see other classes than these
        return
    for step in steps_below(settings):
        if own := STEPS[step.kind].check:
            own(step.settings, space)


def inner(settings: CombineSettings) -> list[str]:
    """The folders of members, which stay as they are where only the way they are combined is another."""
    return [f"member-{number}" for number in range(1, len(settings.members) + 1)] if settings.kind != "tree" else []


def committee(settings: CombineSettings, state: State, context: Context) -> StepResult:
    """The mean of the members' answers; where validation chose the weights, the answers written are cross-fitted."""
    models = trained_models(settings.members, state, context)
    if not context.processes.is_main_process:
        return StepResult(None, hands_on_labels=False)
    validation = labelled(state.samples.part("val"))
    members = loaded(models, state, context)
    weights, of_pictures = _weights(settings, members, validation, context)
    space, folder = state.samples.space, context.folder / "best"
    decided = np.stack([one.member.model.deciding.thresholds for one in members])
    deciding = replace(Deciding.plain(space), thresholds=(weights @ decided).astype(np.float32))
    joining = Mean(settings.mean, tuple(weights.tolist()))
    answers = _answers(settings, members, of_pictures, context)
    details: dict[str, Any] = {
        "kind": settings.kind,
        "mean": settings.mean,
        "weights": dict(zip((one.name for one in members), weights.tolist(), strict=True)),
    }
    if len(validation):
        details["members"], details["gain over the best member"] = worth(
            [one.predictions for one in members], answers, validation, context
        )
        if settings.weights == "validation":
            equal = _answers(settings, members, np.full(of_pictures.shape, 1 / len(members)), context)
            details["gain over equal weights"] = told(equal, answers, validation, "equal weights", context)
    answers.write(folder / "predictions.parquet")
    Composite(space, tuple(one.member for one in members), joining, deciding).save(folder)
    return StepResult(folder, details=details, hands_on_labels=False)


COMBINING: dict[Kind, Callable[[CombineSettings, State, Context], StepResult]] = {
    "committee": committee,
    "tree": tree,
    "soup": soup,
}


def _weights(
    settings: CombineSettings, members: list[Trained], validation: Samples, context: Context
) -> tuple[Weights, Weights]:
    """The weights of the members (M,), and those (M, N) by which validation pictures are answered."""
    count, space = len(members), validation.space
    if settings.weights == "equal":
        return np.full(count, 1 / count), np.full((count, len(validation)), 1 / count)
    if len(validation) == 0:
        raise DataError(
            "combine: weights: validation: no validation picture has a known label. Raise split.val, label some, "
            "or set weights: equal."
        )
    codes, logits = validation.codes(), [one.predictions.logits for one in members]
    weights = best_weights(space, codes, logits, of=settings.mean)
    said = ", ".join(f"{one.name} {weight:.3f}" for one, weight in zip(members, weights, strict=True))
    context.watch.line(f"  weights: {said}")
    return weights, cross_fitted_weights(
        space, codes, logits, of=settings.mean, folds=settings.folds, seed=context.seed
    )


def _answers(settings: CombineSettings, members: list[Trained], weights: Weights, context: Context) -> Predictions:
    """What the committee says of the validation pictures, each by its own weights (M, N)."""
    first = members[0].predictions
    logits = mean(first.space, [one.predictions.logits for one in members], of=settings.mean, weights=weights)
    thresholds = np.einsum("mn,mnw->nw", weights, np.stack([one.predictions.thresholds for one in members]))
    return Predictions.of(first.ids, first.space, logits, model=context.name, thresholds=thresholds.astype(np.float32))
