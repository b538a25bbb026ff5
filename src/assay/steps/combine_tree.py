"""kind: tree: questions one below the other, each answered by a model of the pictures that reach it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from assay.errors import PlanError
from assay.files import fingerprint
from assay.labels.found import quoted
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import branch, labelled
from assay.models.composite import Composite, Member, member_of
from assay.models.deciding import Deciding
from assay.models.tree import Node, Tree, grown, one_against_rest
from assay.predictions.predict import Predictions
from assay.predictions.views import view_logits
from assay.steps.combine_settings import CombineSettings
from assay.steps.members import train_one
from assay.steps.start import remembered
from assay.steps.state import Context, State, StepResult
from assay.training.hardware import Hardware


def tree(settings: CombineSettings, state: State, context: Context) -> StepResult:
    """Train a model for every question; a class is as probable as all answers on the way to it together."""
    head = _head(settings, state.samples.space)
    root = _root(settings, head, int(state.samples.part("train").counts(head).argmax()))
    joining = Tree(head.name, root)
    (plan,) = settings.members
    folders = []
    for number, (node, space) in enumerate(zip(root.nodes(), joining.spaces(state.samples.space), strict=True), 1):
        here = context.for_part(f"node-{number}", number)
        context.watch.line(f"{here.name}: {' or '.join(quoted([name]) for name in node.names)}")
        samples, as_read = (branch(one, head, node.branch_of, space) for one in (state.samples, context.as_read))
        begun = replace(state, samples=samples, key=fingerprint(state.key, samples.fingerprint()), soft={})
        folders.append(train_one(plan, begun, replace(here, as_read=as_read)))
    if not context.processes.is_main_process:
        return StepResult(None, hands_on_labels=False)
    members = tuple(member_of(folder) for folder in folders)
    model = Composite(state.samples.space, members, joining, _deciding(joining, members, state.samples.space))
    folder = context.folder / "best"
    _validate(model, state, context).write(folder / "predictions.parquet")
    model.save(folder)
    return StepResult(folder, details=_details(root), hands_on_labels=False)


def check_tree(settings: CombineSettings, space: LabelSpace) -> None:
    """Raise PlanError for a tree that does not fit the classes of the data."""
    _root(settings, _head(settings, space), 0)


def _head(settings: CombineSettings, space: LabelSpace) -> Head:
    """The head that the tree is of. Raises PlanError where that is not clear, or not possible."""
    exclusive = [head for head in space if head.kind == "exclusive"]
    names = quoted([head.name for head in exclusive])
    if not exclusive:
        raise PlanError("combine: kind: tree: no head of this data is exclusive, and only its classes form a tree.")
    if settings.head is None:
        if len(exclusive) > 1:
            raise PlanError(f"combine: kind: tree: there are several exclusive heads. Name one under head: {names}.")
        return exclusive[0]
    if settings.head not in [head.name for head in exclusive]:
        raise PlanError(f"combine: head: {settings.head!r} is no exclusive head of this data. There are: {names}.")
    return space[settings.head]


def _root(settings: CombineSettings, head: Head, most: int) -> Node:
    """The tree of the plan, or one class against the rest: the one named, else the one at this place."""
    if settings.tree is not None:
        return grown(settings.tree, head)
    return one_against_rest(settings.one or head.classes[most], head)


def _deciding(joining: Tree, members: tuple[Member, ...], space: LabelSpace) -> Deciding:
    """How answers are decided: tags of other heads as the model of the first question does."""
    deciding = Deciding.plain(space)
    first = members[0].model
    for head, columns, own in zip(space, space.slices, first.space.slices, strict=True):
        if head.name != joining.head:
            deciding.thresholds[columns] = first.deciding.thresholds[own]
    return deciding


def _validate(model: Composite, state: State, context: Context) -> Predictions:
    """What the tree says of all validation pictures, those too that a question below never saw in training."""
    ids = labelled(state.samples.part("val")).ids
    hardware = remembered(context, "inference") or Hardware(context.device)
    logits = np.empty((0, model.space.width), dtype=np.float32)
    if ids:
        (logits,) = view_logits(model, context.pictures, ids, hardware=hardware)
    return Predictions.of(ids, model.space, logits, model=context.name, thresholds=model.deciding.thresholds)


def _details(root: Node) -> dict[str, Any]:
    questions = {f"node-{number}": list(node.names) for number, node in enumerate(root.nodes(), 1)}
    return {"kind": "tree", "tree": root.to_json(), "questions": questions}
