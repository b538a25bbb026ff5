"""rebalance_head: the representation stays, and the head is learnt again for classes that count alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import nn

from assay.arrays import Floats, Reals
from assay.errors import DataError, PlanError
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.models.decision_rule import DecisionRule
from assay.models.heads import joined, linear_layer, split
from assay.models.trained_model import TrainedModel, training_hashes
from assay.predictions.cross_fitting import gain
from assay.predictions.predict import in_chunks
from assay.repair.head_choice import ChosenHead, HeadTable, MetricName, ValidationSet, calibrating_weights, choose_head
from assay.repair.head_kinds import ALL_KINDS, AnyKind, HeadKind, KindName, kind_name, unsupported_reason
from assay.repair.rebalanced_heads import Candidate, Task, fit_heads
from assay.settings import Settings
from assay.steps.base import Context, State, StepResult
from assay.steps.start import Validated, heads_named, inference_for, labelled_parts
from assay.training.class_weights import ClassWeights, Given, Inverse, class_weights, given_weights

STEP = "rebalance_head"
BEFORE = "as it was"


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) or value == "all" else [value]


class RebalanceHeadSettings(Settings):
    """Learn the head again on the features of the model as it is, in every way named, and keep the best."""

    kinds: Annotated[
        Literal["all"] | Annotated[tuple[HeadKind, ...], Field(min_length=1)],
        BeforeValidator(_listed, json_schema_input_type=KindName | Literal["all"] | list[HeadKind]),
    ] = Field("all", description="Ways to learn it, one or several; see below.")
    class_weights: ClassWeights | None = Field(
        Inverse(), description="The classes count, and the head answers, as if they were so much more frequent."
    )
    metric: MetricName = Field("balanced_accuracy", description="The validation metric that the kept one is best for.")
    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to learn again; default: all.")
    folds: int = Field(5, ge=2, description="Parts of validation, each judged by a choice made on the others.")


@dataclass(frozen=True, eq=False)
class Learnt:
    """A head learnt anew: its layer, the temperature of it, logits (N, K) of validation, what is told of it."""

    layer: nn.Module
    temperature: float
    logits: Floats
    told: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Judged:
    """The validation images under one head: what the last layer is given, codes, and the answers as they were."""

    features: Floats
    codes: Codes
    probabilities: Floats
    thresholds: Floats


def check(settings: RebalanceHeadSettings, space: LabelSpace) -> None:
    """Raise PlanError for a head or class that is not in the data, before anything is trained."""
    heads_named(space, settings.heads, step=STEP)
    if isinstance(settings.class_weights, Given):
        given_weights(settings.class_weights.weights, space)


def run(settings: RebalanceHeadSettings, state: State, context: Context) -> StepResult:
    """Learn on training images, choose on all of validation; the answers written are chosen without each image."""
    validated, saved = _begin(state)
    classifier, deciding, space = saved.classifier, saved.decision_rule, state.samples.space
    named = heads_named(space, settings.heads, step=STEP)
    train, _ = labelled_parts(state.samples)
    weights = _class_weights(settings, train)
    features, judged = _represented(saved, train, validated.samples, context)
    layers = split(classifier.last, [head.size for head in space])
    shift, temperature, thresholds = (own.copy() for own in (deciding.shift, deciding.temperature, deciding.thresholds))
    predictions = validated.predictions
    logits, cuts = predictions.logits.copy(), predictions.thresholds.copy()
    codes, known = train.codes(), validated.samples.codes()
    details = {}
    for place, head, columns in named:
        before = _as_it_decides(layers[place], deciding, columns)
        images = train.weights()[:, place]
        task = Task.of(head, features, codes[place], images, weights[place], before=before, seed=context.seed)
        own = Judged(judged, known[place], predictions.probabilities[:, columns], predictions.thresholds[:, columns])
        learnt = _learn(settings, task, own, context)
        layers[place], details[head.name] = learnt.layer, learnt.told
        logits[:, columns] = learnt.logits
        shift[columns], temperature[columns], thresholds[columns] = 0.0, learnt.temperature, 0.5
        cuts[:, columns] = 0.5
    classifier.replace_last(joined(layers))
    learnt_from = np.union1d(saved.learnt_from, training_hashes(train.hashes))
    validated = replace(validated, saved=replace(saved, learnt_from=learnt_from))
    folder = validated.write(
        DecisionRule(shift, temperature, thresholds), logits=logits, thresholds=cuts, context=context
    )
    return StepResult(folder, details=details)


def _begin(state: State) -> tuple[Validated, TrainedModel]:
    """The model with its validation answers, and its one network. Raises ModelError where it has several."""
    validated = Validated.of(state, step=STEP)
    assert state.model is not None
    return validated, TrainedModel.load(state.model)


def _learn(settings: RebalanceHeadSettings, task: Task, judged: Judged, context: Context) -> Learnt:
    """All ways to learn one head, the best of them, and what it is worth."""
    head = task.head
    weights = calibrating_weights(head, judged.codes, task.codes, task.class_weights)
    judges = ValidationSet(head, judged.codes, weights, settings.metric)
    table = HeadTable(head, task.codes, judged.codes)
    table.add(BEFORE, judged.probabilities, thresholds=judged.thresholds)
    if settings.metric not in table.rows[BEFORE].tally.values():
        raise DataError(
            f"{STEP}: {head.name}: {settings.metric} is not defined by the labels that validation has under this "
            "head. Raise split.val, choose another metric, or name the other heads under heads."
        )
    tried: list[list[Candidate]] = []
    ways: list[list[Floats]] = []
    for kind in _possible(settings, task, context):
        began = time.perf_counter()
        found = fit_heads(kind, task)
        answers = [in_chunks(one.layer, judged.features) for one in found]
        own = choose_head(judges, [answers], folds=settings.folds, seed=context.seed)
        table.add(
            kind_name(kind),
            probabilities_of(LabelSpace((head,)), own.logits),
            setting=found[own.best.setting].setting,
            seconds=time.perf_counter() - began,
        )
        tried.append(found)
        ways.append(answers)
    chosen = choose_head(judges, ways, folds=settings.folds, seed=context.seed)
    kept = tried[chosen.best.way][chosen.best.setting]
    for line in table.lines():
        context.progress.line(f"  {line}")
    told = _told(settings, head, kept, chosen, table, context=context)
    return Learnt(kept.layer, chosen.best.temperature, chosen.logits, told)


def _possible(settings: RebalanceHeadSettings, task: Task, context: Context) -> list[AnyKind]:
    """The kinds that can be had. Raises PlanError where one named cannot; of all kinds it is left out, and said."""
    kinds = ALL_KINDS if settings.kinds == "all" else settings.kinds
    images = int(task.head.known(task.codes).sum())
    found = []
    for kind in kinds:
        reason = unsupported_reason(kind, task.head, images=images, linear=task.before is not None)
        if reason is None:
            found.append(kind)
        elif settings.kinds != "all":
            raise PlanError(f"{STEP}: {reason}")
        else:
            context.progress.line(f"  {kind_name(kind)} is left out: {reason}")
    return found


def _told(
    settings: RebalanceHeadSettings,
    head: Head,
    kept: Candidate,
    chosen: ChosenHead,
    table: HeadTable,
    *,
    context: Context,
) -> dict[str, Any]:
    """What was kept for one head and what it is worth, for done.json; said in a line too."""
    metric = settings.metric
    before = table.rows[BEFORE].tally
    after = table.tally(probabilities_of(LabelSpace((head,)), chosen.logits))
    better = gain(before, after, metric)
    old, new = before.values()[metric], after.values()[metric]
    context.progress.line(
        f"  {head.name}: {kept.kind} ({kept.setting}) is kept: {metric} {old:.4f} {BEFORE}, {new:.4f} cross-fitted, "
        f"better by {better.value:.4f}{better.limits()}, n = {better.n}"
    )
    if better.value <= 0:
        context.progress.line(f"  warning: {head.name}: that is no better than the head {BEFORE}")
    return {
        "kept": kept.kind,
        "setting": kept.setting,
        "temperature": chosen.best.temperature,
        "metric": metric,
        BEFORE: old,
        "cross-fitted": new,
        "gain": better.to_json(),
        "groups": table.group_names(),
        "table": table.to_json(),
    }


def _represented(saved: TrainedModel, train: Samples, validation: Samples, context: Context) -> tuple[Floats, Floats]:
    """What the last layer is given for the training and the validation images, (N, F) each."""
    inference = inference_for(saved.classifier, saved, context)
    features = [
        inference.features(part.ids, folder=context.run.cache, progress=context.progress)
        for part in (train, validation)
    ]
    saved.classifier.cpu()
    return tuple(in_chunks(saved.classifier.represent, own) for own in features)  # type: ignore[return-value]


def _class_weights(settings: RebalanceHeadSettings, train: Samples) -> Sequence[Reals]:
    if settings.class_weights is None:
        return [np.ones(head.size, np.float32) for head in train.space]
    if isinstance(settings.class_weights, Given):  # in float64: a cost of 0.0001 is then that of scikit-learn
        return given_weights(settings.class_weights.weights, train.space)
    return class_weights(settings.class_weights, train)


def _as_it_decides(layer: nn.Module, deciding: DecisionRule, columns: slice) -> nn.Linear | None:
    """A linear layer whose logits are read as they are; None of one that is not linear."""
    if not isinstance(layer, nn.Linear):
        return None
    shift, temperature = (torch.from_numpy(own[columns]) for own in (deciding.shift, deciding.temperature))
    return linear_layer(layer.weight.detach() / temperature[:, None], (layer.bias.detach() - shift) / temperature)
