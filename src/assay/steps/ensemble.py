"""kind: tree: questions one below the other, each answered by a model of the images that reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from assay.arrays import Doubles
from assay.errors import DataError, PlanError
from assay.files import fingerprint
from assay.labels.build import quoted
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import branch, labelled
from assay.models.combiners import MeanCombiner, mean_prediction
from assay.models.decision_rule import DecisionRule
from assay.models.ensemble import Ensemble, Member, member_of
from assay.models.tree import Node, Tree, build_tree, one_against_rest
from assay.predictions.ensemble_weights import best_weights, cross_fitted_weights
from assay.predictions.predict import Predictions
from assay.predictions.tta import tta_logits
from assay.steps.base import Context, State, StepList, StepResult, steps_below
from assay.steps.ensemble_members import TrainedMember, load_member, soup, train_member, train_members
from assay.steps.ensemble_settings import EnsembleSettings, Kind, MemberPlan, ensemble_gain, gain_lines
from assay.steps.sources import member_run
from assay.steps.start import stored_hardware
from assay.training.devices import Hardware


def tree(settings: EnsembleSettings, state: State, context: Context) -> StepResult:
    """Train a model for every question; a class is as probable as all answers on the way to it together."""
    joining = _joining(settings, state.samples)
    (plan,) = settings.members
    folders = [train_member(plan, begun, here) for begun, here in _questions(joining, state, context)]
    if not context.processes.is_main_process:
        return StepResult(None, hands_on_labels=False)
    members = tuple(member_of(folder) for folder in folders)
    model = Ensemble(state.samples.space, members, joining, _deciding(joining, members, state.samples.space))
    folder = context.folder.path / "best"
    _validate(model, state, context).write(folder / "predictions.parquet")
    model.save(folder)
    return StepResult(folder, details=_tree_details(joining.root), hands_on_labels=False)


def _joining(settings: EnsembleSettings, samples: Samples) -> Tree:
    """The tree of the questions, over the classes of its head."""
    head = _head(settings, samples.space)
    return Tree(head.name, _root(settings, head, int(samples.part("train").counts(head).argmax())))


def _questions(joining: Tree, state: State, context: Context) -> Iterator[tuple[State, Context]]:
    """The images of every question of a tree, and where its model is trained."""
    head, spaces = state.samples.space[joining.head], joining.spaces(state.samples.space)
    for number, (node, space) in enumerate(zip(joining.root.nodes(), spaces, strict=True), 1):
        here = context.for_part(f"node-{number}", number)
        context.progress.line(f"{here.name}: {' or '.join(quoted([name]) for name in node.names)}")
        samples, as_read = (branch(one, head, node.branch_of, space) for one in (state.samples, context.as_read))
        key = fingerprint(state.key, samples.fingerprint())
        yield replace(state, samples=samples, key=key, soft={}), replace(here, as_read=as_read)


def check_tree(settings: EnsembleSettings, space: LabelSpace) -> None:
    """Raise PlanError for a tree that does not fit the classes of the data."""
    _root(settings, _head(settings, space), 0)


def _head(settings: EnsembleSettings, space: LabelSpace) -> Head:
    """The head that the tree is of. Raises PlanError where that is not clear, or not possible."""
    multiclass = [head for head in space if head.kind == "multiclass"]
    names = quoted([head.name for head in multiclass])
    if not multiclass:
        raise PlanError("ensemble: kind: tree: no head of this data is multi-class, and only its classes form a tree.")
    if settings.head is None:
        if len(multiclass) > 1:
            raise PlanError(f"ensemble: kind: tree: there are several multi-class heads. Name one under head: {names}.")
        return multiclass[0]
    if settings.head not in [head.name for head in multiclass]:
        raise PlanError(f"ensemble: head: {settings.head!r} is no multi-class head of this data. There are: {names}.")
    return space[settings.head]


def _root(settings: EnsembleSettings, head: Head, most: int) -> Node:
    """The tree of the plan, or one class against the rest: the one named, else the one at this place."""
    if settings.tree is not None:
        return build_tree(settings.tree, head)
    return one_against_rest(settings.one or head.classes[most], head)


def _deciding(joining: Tree, members: tuple[Member, ...], space: LabelSpace) -> DecisionRule:
    """How answers are decided: tags of other heads as the model of the first question does."""
    deciding = DecisionRule.plain(space)
    first = members[0].model
    for head, columns, own in zip(space, space.slices, first.space.slices, strict=True):
        if head.name != joining.head:
            deciding.thresholds[columns] = first.decision_rule.thresholds[own]
    return deciding


def _validate(model: Ensemble, state: State, context: Context) -> Predictions:
    """What the tree says of all validation images, those too that a question below never saw in training."""
    ids = labelled(state.samples.part("val")).ids
    hardware = stored_hardware(context, "inference") or Hardware(context.device)
    logits = np.empty((0, model.space.width), dtype=np.float32)
    if ids:
        (logits,) = tta_logits(model, context.images, ids, hardware=hardware)
    return Predictions.of(ids, model.space, logits, model=context.name, thresholds=model.decision_rule.thresholds)


def _tree_details(root: Node) -> dict[str, Any]:
    questions = {f"node-{number}": list(node.names) for number, node in enumerate(root.nodes(), 1)}
    return {"kind": "tree", "tree": root.to_json(), "questions": questions}


# ensemble: several models answer as one: an ensemble, a tree of classes, or one network with the mean of weights.


def run(settings: EnsembleSettings, state: State, context: Context) -> StepResult:
    """Train the members that are not there yet, and make one model of all."""
    return COMBINE[settings.kind](settings, state, context)


def check(settings: EnsembleSettings, space: LabelSpace) -> None:
    """Raise PlanError for a tree, or a step of a member, that does not fit the data, before anything is trained."""
    from assay.steps import STEPS  # which knows this step, and so cannot be there before it

    if settings.kind == "tree":
        check_tree(settings, space)  # the steps of its questions see other classes than these
        return
    for step in steps_below(settings):
        if own := STEPS[step.kind].check:
            own(step.settings, space)


def inner(settings: EnsembleSettings) -> list[str]:
    """The folders of members, which stay as they are where only the way they are combined is another."""
    return [f"member-{number}" for number in range(1, len(settings.members) + 1)] if settings.kind != "tree" else []


def holds(settings: EnsembleSettings, state: State, context: Context) -> Iterator[StepList]:
    """Return the steps of every member, or of every question of a tree. Raises PlanError for a run that is gone."""
    members: Iterable[tuple[MemberPlan, State, Context]]
    if settings.kind == "tree":
        questions = _questions(_joining(settings, state.samples), state, context)
        members = [(settings.members[0], *question) for question in questions]
    else:
        numbered = enumerate(settings.members, 1)
        members = [(plan, state, context.for_part(f"member-{number}", number)) for number, plan in numbered]
    for plan, begun, here in members:
        if plan.run is not None:
            member_run(plan.run, context.base)
        yield StepList(plan.steps, begun, replace(here, model=plan.model or here.model))


def mean_ensemble(settings: EnsembleSettings, state: State, context: Context) -> StepResult:
    """The mean of the members' answers; where validation chose the weights, the answers written are cross-fitted."""
    models = train_members(settings.members, state, context)
    if not context.processes.is_main_process:
        return StepResult(None, hands_on_labels=False)
    validation = labelled(state.samples.part("val"))
    members = load_member(models, state, context)
    weights, of_images = _weights(settings, members, validation, context)
    space, folder = state.samples.space, context.folder.path / "best"
    decided = np.stack([one.member.model.decision_rule.thresholds for one in members])
    deciding = replace(DecisionRule.plain(space), thresholds=(weights @ decided).astype(np.float32))
    joining = MeanCombiner(settings.mean, tuple(weights.tolist()))
    answers = _validation_predictions(settings, members, of_images, context)
    details: dict[str, Any] = {
        "kind": settings.kind,
        "mean": settings.mean,
        "weights": dict(zip((one.name for one in members), weights.tolist(), strict=True)),
    }
    if len(validation):
        details["members"], details["gain over the best member"] = ensemble_gain(
            [one.predictions for one in members], answers, validation, context
        )
        if settings.weights == "validation":
            equal = _validation_predictions(settings, members, np.full(of_images.shape, 1 / len(members)), context)
            details["gain over equal weights"] = gain_lines(equal, answers, validation, "equal weights", context)
    answers.write(folder / "predictions.parquet")
    Ensemble(space, tuple(one.member for one in members), joining, deciding).save(folder)
    return StepResult(folder, details=details, hands_on_labels=False)


COMBINE: dict[Kind, Callable[[EnsembleSettings, State, Context], StepResult]] = {
    "average": mean_ensemble,
    "tree": tree,
    "soup": soup,
}


def _weights(
    settings: EnsembleSettings, members: list[TrainedMember], validation: Samples, context: Context
) -> tuple[Doubles, Doubles]:
    """The weights of the members (M,), and those (M, N) by which validation images are answered."""
    count, space = len(members), validation.space
    if settings.weights == "equal":
        return np.full(count, 1 / count), np.full((count, len(validation)), 1 / count)
    if len(validation) == 0:
        raise DataError(
            "ensemble: weights: validation: no validation image has a known label. Raise split.val, label some, "
            "or set weights: equal."
        )
    codes, logits = validation.codes(), [one.predictions.logits for one in members]
    weights = best_weights(space, codes, logits, of=settings.mean)
    said = ", ".join(f"{one.name} {weight:.3f}" for one, weight in zip(members, weights, strict=True))
    context.progress.line(f"  weights: {said}")
    return weights, cross_fitted_weights(
        space, codes, logits, of=settings.mean, folds=settings.folds, seed=context.seed
    )


def _validation_predictions(
    settings: EnsembleSettings, members: list[TrainedMember], weights: Doubles, context: Context
) -> Predictions:
    """What the ensemble says of the validation images, each by its own weights (M, N)."""
    first = members[0].predictions
    logits = mean_prediction(
        first.space, [one.predictions.logits for one in members], of=settings.mean, weights=weights
    )
    thresholds = np.einsum("mn,mnw->nw", weights, np.stack([one.predictions.thresholds for one in members]))
    return Predictions.of(first.ids, first.space, logits, model=context.name, thresholds=thresholds.astype(np.float32))
