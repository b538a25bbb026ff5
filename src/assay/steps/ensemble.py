"""ensemble: several models predict as one: their mean, a tree of classes, or one network with the mean of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache as remembering
from typing import Literal

import numpy as np
from pydantic import Field

from assay.arrays import Bools, Doubles, Floats
from assay.errors import DataError, ModelError, PlanError
from assay.files import fingerprint
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import branch, labelled
from assay.messages import quoted
from assay.metrics.metrics import higher_is_better, probabilities_of, stream
from assay.models.combiners import (
    Branches,
    MeanCombiner,
    MeanOf,
    Node,
    Tree,
    build_tree,
    mean_prediction,
    one_against_rest,
)
from assay.models.decision_rule import DecisionRule
from assay.models.ensemble import (
    Ensemble,
    Model,
    average_weights,
    member_of,
    require_alike,
    statistics_differ,
    take_statistics,
)
from assay.models.trained_model import TrainedModel
from assay.predictions.cross_fitting import folds_of
from assay.predictions.ensemble_weights import best_weights, cross_fitted_weights, greedy
from assay.predictions.inference import Inference, move
from assay.predictions.predict import Predictions
from assay.steps.base import Context, State, Step, StepList, StepPlan, StepResult, StepSettings, steps_within
from assay.steps.ensemble_members import (
    MemberPlan,
    TrainedMember,
    ensemble_gain,
    gain_lines,
    load_members,
    members_by_fold,
    predict_validation,
    train_member,
    train_members,
    train_members_by_fold,
)
from assay.steps.hardware import inference_hardware
from assay.steps.sources import member_run
from assay.steps.start import labelled_parts, save_best
from assay.training.devices import Hardware

Kind = Literal["average", "tree", "soup"]

OF_KIND: dict[Kind, frozenset[str]] = {
    "average": frozenset({"mean", "weights", "folds", "training_folds"}),
    "tree": frozenset({"tree", "one", "head"}),
    "soup": frozenset({"pick", "monitor", "folds"}),
}
"""Settings that belong to one kind or two."""


class EnsembleSettings(StepSettings):
    """Several models answer as one: their mean, a tree of questions, or one network with the mean of their weights."""

    kind: Kind = Field("average", description="average, tree or soup.")
    members: tuple[MemberPlan, ...] = Field(min_length=1, description="The models; of a tree, one that all nodes take.")
    mean: MeanOf = Field("probabilities", description="average: what the mean is taken of.")
    weights: Literal["equal", "validation"] = Field(
        "equal", description="average: equal ones, or those at which validation loses least."
    )
    folds: int = Field(5, ge=2, description="Parts of validation, each judged by a choice made on the others.")
    training_folds: int | None = Field(
        None,
        ge=2,
        description="average: train each member so often, each time without another fold of the training part.",
    )
    tree: Branches | None = Field(None, description="tree: classes in nested lists or mappings.")
    one: str | None = Field(None, description="tree: the class against the rest; else the most frequent.")
    head: str | None = Field(None, description="tree: the multi-class head; needed where there are several.")
    pick: Literal["all", "greedy"] = Field("all", description="soup: all members, or those that validation gains by.")
    monitor: str = Field("nll", description="soup: the validation metric of a greedy pick.")

    def require_consistent(self) -> None:
        for name in sorted(self.model_fields_set & frozenset().union(*OF_KIND.values())):
            if name not in OF_KIND[self.kind]:
                kinds = " or ".join(kind for kind, names in OF_KIND.items() if name in names)
                raise ValueError(f"{name} belongs to kind: {kinds}; this is kind: {self.kind}")
        count = len(self.members)
        if self.training_folds is not None and not all(member.steps for member in self.members):
            raise ValueError("training_folds: every member is trained here, by steps; take run and step out")
        if self.kind != "tree" and count < 2 and self.training_folds is None:
            raise ValueError(f"kind: {self.kind} needs at least two members; give another, or leave the step out")
        if self.kind == "tree" and (count > 1 or not self.members[0].steps):
            raise ValueError("a tree has one member, whose steps are carried out for every node; give its steps alone")
        if self.tree is not None and self.one is not None:
            raise ValueError("tree and one both say which classes are told apart first; drop one of them")


def run(settings: EnsembleSettings, state: State, context: Context) -> StepResult:
    """Train the members that are not there yet, and make one model of all."""
    combine = {"average": average, "tree": tree, "soup": soup}[settings.kind]
    return combine(settings, state, context)


def check(settings: EnsembleSettings, space: LabelSpace) -> None:
    """Raise PlanError for a tree that does not fit the classes of the data, before anything is trained."""
    if settings.kind == "tree":
        _tree_root(settings, _tree_head(settings, space), 0)


def members_checked(settings: EnsembleSettings) -> Sequence[StepPlan]:
    """Return the steps of the members; none for a tree, whose nodes have other classes than the data."""
    return () if settings.kind == "tree" else steps_within(settings)


def member_folders(settings: EnsembleSettings) -> Sequence[str]:
    """Return the folders of members, which stay as they are where only the way they are combined changes."""
    count = 0 if settings.kind == "tree" else len(settings.members) * (settings.training_folds or 1)
    return [f"member-{number}" for number in range(1, count + 1)]


def holds(settings: EnsembleSettings, state: State, context: Context) -> Iterator[StepList]:
    """Yield the steps of every member, or of every node of a tree. Raises PlanError for a run that is gone."""
    members: Iterable[tuple[MemberPlan, State, Context]]
    if settings.kind == "tree":
        nodes = _nodes(_tree(settings, state.samples), state, context)
        members = [(settings.members[0], *node) for node in nodes]
    elif settings.training_folds is not None:
        by_fold = members_by_fold(settings.members, settings.training_folds, state, context)
        members = [(one.plan, one.begun, one.context) for one in by_fold]
    else:
        numbered = enumerate(settings.members, 1)
        members = [(plan, state, context.for_part(f"member-{number}", number)) for number, plan in numbered]
    for plan, begun, part in members:
        if plan.run is not None:
            member_run(plan.run, context.base)
        yield StepList(plan.steps, begun, replace(part, model=plan.model or part.model))


STEP = Step(
    EnsembleSettings,
    run,
    purpose="several models that answer as one",
    report=("kind", "weights", "pick"),
    on_every_process=True,
    computes=lambda settings: settings.kind != "average",  # which only joins predictions that are there
    check=check,
    checked_within=members_checked,
    inner=member_folders,
    holds=holds,
)


# kind: average, the mean of predictions.


def average(settings: EnsembleSettings, state: State, context: Context) -> StepResult:
    """Average the members' predictions; where validation chose the weights, those written are cross-fitted."""
    details: dict[str, object] = {"kind": settings.kind, "mean": settings.mean}
    if settings.training_folds is None:
        models = train_members(settings.members, state, context)
        members = load_members(models, state, context) if context.processes.is_main_process else []
    else:
        count = settings.training_folds
        members, out_of_fold = train_members_by_fold(settings.members, count, settings.mean, state, context)
        details |= out_of_fold
    if not context.processes.is_main_process:
        return StepResult(None, hands_on_labels=False)
    validation = labelled(state.samples.part("val"))
    weights, of_images = _member_weights(settings, members, validation, context)
    space = state.samples.space
    thresholds = np.stack([one.member.model.decision_rule.thresholds for one in members])
    rule = replace(DecisionRule.plain(space), thresholds=(weights @ thresholds).astype(np.float32))
    predictions = _mean_predictions(settings, members, of_images, context)
    details["weights"] = dict(zip((one.name for one in members), weights.tolist(), strict=True))
    if len(validation):
        details |= ensemble_gain([one.predictions for one in members], predictions, validation, context)
        if settings.weights == "validation":
            equal = _mean_predictions(settings, members, np.full(of_images.shape, 1 / len(members)), context)
            details["gain over equal weights"] = gain_lines(equal, predictions, validation, "equal weights", context)
    combiner = MeanCombiner(settings.mean, tuple(weights.tolist()))
    model = Ensemble(space, tuple(one.member for one in members), combiner, rule)
    return StepResult(save_best(model, predictions, context), details=details, hands_on_labels=False)


def _member_weights(
    settings: EnsembleSettings, members: Sequence[TrainedMember], validation: Samples, context: Context
) -> tuple[Doubles, Doubles]:
    """Return the weights of the members (M,), and the cross-fitted ones of each validation image (M, N)."""
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
    listed = ", ".join(f"{one.name} {weight:.3f}" for one, weight in zip(members, weights, strict=True))
    context.progress.line(f"  weights: {listed}")
    return weights, cross_fitted_weights(
        space, codes, logits, of=settings.mean, folds=settings.folds, seed=context.seed
    )


def _mean_predictions(
    settings: EnsembleSettings, members: Sequence[TrainedMember], weights: Doubles, context: Context
) -> Predictions:
    """Return the mean predictions of the validation images, each by its weights of the members (M, N)."""
    first = members[0].predictions
    logits = mean_prediction(
        first.space, [one.predictions.logits for one in members], of=settings.mean, weights=weights
    )
    thresholds = np.einsum("mn,mnw->nw", weights, np.stack([one.predictions.cuts for one in members]))
    return Predictions.of(first.ids, first.space, logits, model=context.name, thresholds=thresholds.astype(np.float32))


# kind: tree, a model for each node, trained on the images of its classes.


def tree(settings: EnsembleSettings, state: State, context: Context) -> StepResult:
    """Train a model for every node; the probability of a class is the product of those on the way to it."""
    combiner = _tree(settings, state.samples)
    root, (plan,) = combiner.root, settings.members
    folders = [train_member(plan, begun, part) for begun, part in _nodes(combiner, state, context)]
    if not context.processes.is_main_process:
        return StepResult(None, hands_on_labels=False)
    members = tuple(member_of(folder) for folder in folders)
    space = state.samples.space
    model = Ensemble(space, members, combiner, _tree_rule(combiner, members[0].model, space))
    questions = {f"node-{number}": list(node.names) for number, node in enumerate(root.nodes(), 1)}
    details = {"kind": "tree", "tree": root.to_json(), "questions": questions}
    # Of all validation images, those too that a question below the first has none of in training.
    predictions = predict_validation(model, labelled(state.samples.part("val")), context, name=context.name)
    return StepResult(save_best(model, predictions, context), details=details, hands_on_labels=False)


def _tree(settings: EnsembleSettings, samples: Samples) -> Tree:
    """Return the tree over the classes of its head."""
    head = _tree_head(settings, samples.space)
    return Tree(head.name, _tree_root(settings, head, int(samples.part("train").counts(head).argmax())))


def _nodes(combiner: Tree, state: State, context: Context) -> Iterator[tuple[State, Context]]:
    """Iterate over the nodes of a tree: the images of its classes, and where its model is trained."""
    head, spaces = state.samples.space[combiner.head], combiner.spaces(state.samples.space)
    for number, (node, space) in enumerate(zip(combiner.root.nodes(), spaces, strict=True), 1):
        part = context.for_part(f"node-{number}", number)
        context.progress.line(f"{part.name}: {' or '.join(quoted([name]) for name in node.names)}")
        samples, as_read = (branch(one, head, node.branch_of, space) for one in (state.samples, context.as_read))
        key = fingerprint(state.key, samples.fingerprint())
        yield replace(state, samples=samples, key=key, soft={}), replace(part, as_read=as_read)


def _tree_head(settings: EnsembleSettings, space: LabelSpace) -> Head:
    """Return the head of the tree. Raises PlanError where that is not clear, or not possible."""
    multiclass = [head for head in space if head.multiclass]
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


def _tree_root(settings: EnsembleSettings, head: Head, most: int) -> Node:
    """Return the tree of the plan, or one class against the rest: the one named, else the class of index `most`."""
    if settings.tree is not None:
        return build_tree(settings.tree, head)
    return one_against_rest(settings.one or head.classes[most], head)


def _tree_rule(combiner: Tree, first: Model, space: LabelSpace) -> DecisionRule:
    """Return the decision rule: the thresholds of other heads are those of the model of the first question."""
    rule = DecisionRule.plain(space)
    for head, columns in space.each():
        if head.name != combiner.head:
            rule.thresholds[columns] = first.decision_rule.thresholds[first.space.columns_of(head.name)]
    return rule


# kind: soup, one network whose weights are the mean of those of several.

Pick = tuple[int, ...]


def soup(settings: EnsembleSettings, state: State, context: Context) -> StepResult:
    """Average the weights of all members, or of those that validation gains by; write cross-fitted predictions."""
    models = train_members(settings.members, state, context)
    if not context.processes.is_main_process:
        return StepResult(None, hands_on_labels=False)
    members = load_members(models, state, context)
    networks = _networks(members)
    validation = labelled(state.samples.part("val"))
    hardware = inference_hardware(context)

    @remembering
    def validation_logits(pick: Pick) -> Floats:
        """Return logits (N, W) of validation images by the mean of these members."""
        mixed = _averaged([networks[member] for member in pick], state.samples, context, hardware)
        return _inference(mixed, context, hardware).logits(validation.ids)

    picked: Pick = tuple(range(len(members)))
    if settings.pick == "greedy":
        picked, logits = _pick_greedily(settings, len(members), validation, validation_logits, context)
    else:
        logits = validation_logits(picked)
    predictions = Predictions.of(validation.ids, state.samples.space, logits, model=context.name)
    names = [members[member].name for member in picked]
    details: dict[str, object] = {"kind": settings.kind, "pick": settings.pick, "picked": names}
    context.progress.line(f"  the mean of the weights of {', '.join(names)}")
    if len(validation):
        details |= ensemble_gain([one.predictions for one in members], predictions, validation, context)
    model = _averaged([networks[member] for member in picked], state.samples, context, hardware)
    return StepResult(save_best(model, predictions, context), details=details, hands_on_labels=False)


def _networks(members: Sequence[TrainedMember]) -> list[TrainedModel]:
    """Return the single network of each member. Raises ModelError where they have no mean."""
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
    """Return the mean network; batch-norm statistics are taken anew where those of the networks differ."""
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


def _inference(model: TrainedModel, context: Context, hardware: Hardware) -> Inference:
    move(model.classifier, hardware)
    return Inference(model.classifier, context.images(model.size, model.resize), model.size, hardware)


def _pick_greedily(
    settings: EnsembleSettings, count: int, validation: Samples, logits_of: Callable[[Pick], Floats], context: Context
) -> tuple[Pick, Floats]:
    """Return the members that validation gains by, and logits (N, W) of its images, each by a pick made without it."""
    if len(validation) == 0:
        raise DataError(
            "ensemble: pick: greedy: no validation image has a known label to pick by. Raise split.val, label some, "
            "or set pick: all."
        )
    space, codes = validation.space, validation.codes()
    sign = 1 if higher_is_better(settings.monitor) else -1

    def pick(rows: Bools) -> Pick:
        def value_of(members: Pick) -> float:
            probabilities = probabilities_of(space, logits_of(members)[rows])
            metrics = dict(stream(space, [known[rows] for known in codes], probabilities))
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
        logits[inside] = logits_of(pick(~inside))[inside]
    return pick(np.ones(len(validation), dtype=np.bool_)), logits
