"""rebalance_head: the head learnt again, for classes that count alike, on features that stay."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import nn

from assay.arrays import Floats, Reals
from assay.errors import DataError, PlanError
from assay.labels.samples import Samples
from assay.labels.space import Codes, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.models.decision_rule import DecisionRule
from assay.models.heads import joined, linear_layer, split
from assay.models.trained_model import TrainedModel, training_hashes
from assay.predictions.cross_fitting import gain
from assay.predictions.predict import in_chunks
from assay.repair.head_choice import (
    Choice,
    ChosenHead,
    HeadTable,
    MetricName,
    ValidationSet,
    Way,
    calibrating_weights,
    choose_head,
)
from assay.repair.head_kinds import ALL_KINDS, AnyKind, HeadKind, KindName, Levels, kind_name, unsupported_reason
from assay.repair.rebalanced_heads import Candidate, Task, fit_heads
from assay.steps.base import Context, State, Step, StepResult, StepSettings
from assay.steps.hardware import inference_for
from assay.steps.start import Validated, heads_named, labelled_parts
from assay.training.class_weights import ClassWeights, Given, Inverse, class_weights, given_weights

BEFORE = "as it was"  # the row of the head before this step


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) or value == "all" else [value]


class RebalanceHeadSettings(StepSettings):
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


def check(settings: RebalanceHeadSettings, space: LabelSpace) -> None:
    """Raise PlanError for a head or class that is not in the data, before anything is trained."""
    heads_named(space, settings.heads, step="rebalance_head")
    if isinstance(settings.class_weights, Given):
        given_weights(settings.class_weights.weights, space)


def run(settings: RebalanceHeadSettings, state: State, context: Context) -> StepResult:
    """Learn heads on training images and choose on all of validation; write predictions chosen without each image.

    Raises ModelError for a model of several networks.
    """
    validated = Validated.of(state, step="rebalance_head")
    assert state.model is not None
    model, space = TrainedModel.load(state.model), state.samples.space
    train, _ = labelled_parts(state.samples)
    weights_by_class = _class_weights(settings, train)
    features, validation_features = _representations(model, train, validated.samples, context)
    layers = split(model.classifier.last, [head.size for head in space])
    rule, predictions = model.decision_rule, validated.predictions
    shift, temperature, thresholds = rule.shift.copy(), rule.temperature.copy(), rule.thresholds.copy()
    logits, cuts = predictions.logits.copy(), predictions.cuts.copy()
    codes, weights, validation_codes = train.codes(), train.weights(), validated.samples.codes()
    details = {}
    for index, head, columns in heads_named(space, settings.heads, step="rebalance_head"):
        before = _calibrated(layers[index], rule, columns)
        task = Task.of(
            head, features, codes[index], weights[:, index], weights_by_class[index], before=before, seed=context.seed
        )
        validation = HeadValidation(
            validation_features,
            validation_codes[index],
            predictions.probabilities[:, columns],
            predictions.cuts[:, columns],
        )
        learnt = _learn(settings, task, validation, context)
        layers[index], details[head.name] = learnt.layer, learnt.details
        logits[:, columns] = learnt.logits
        temperature[columns], thresholds[columns] = learnt.choice.temperature, 0.5
        shift[columns] = -learnt.choice.temperature * learnt.choice.levels
        cuts[:, columns] = 0.5
    model.classifier.replace_last(joined(layers))
    learnt_from = np.union1d(model.learnt_from, training_hashes(train.hashes))
    validated = replace(validated, model=replace(model, learnt_from=learnt_from))
    folder = validated.write(
        DecisionRule(shift, temperature, thresholds), logits=logits, thresholds=cuts, context=context
    )
    return StepResult(folder, details=details)


STEP = Step(
    RebalanceHeadSettings,
    run,
    purpose="the head learnt again for classes that count alike",
    report=("metric",),
    learns=True,
    needs_model=True,
    repairs=True,
    computes=lambda settings: True,
    check=check,
)


@dataclass(frozen=True, eq=False)
class HeadValidation:
    """Validation images under one head: features (N, F), codes, and probabilities (N, K) before, with thresholds."""

    features: Floats
    codes: Codes
    probabilities: Floats
    thresholds: Floats


@dataclass(frozen=True, eq=False)
class LearntHead:
    """The layer that was chosen and how, cross-fitted logits (N, K) of validation, details for done.json."""

    layer: nn.Module
    choice: Choice
    logits: Floats
    details: dict[str, object]


def _class_weights(settings: RebalanceHeadSettings, train: Samples) -> Sequence[Reals]:
    if settings.class_weights is None:
        return [np.ones(head.size, np.float32) for head in train.space]
    if isinstance(settings.class_weights, Given):  # in float64: a cost of 0.0001 is then that of scikit-learn
        return given_weights(settings.class_weights.weights, train.space)
    return class_weights(settings.class_weights, train)


def _representations(
    model: TrainedModel, train: Samples, validation: Samples, context: Context
) -> tuple[Floats, Floats]:
    """Return the inputs of the last layer for training and validation images, (N, F) each."""
    inference = inference_for(model.classifier, model, context)
    features = [
        inference.features(part.ids, folder=context.run.cache, progress=context.progress)
        for part in (train, validation)
    ]
    model.classifier.cpu()
    return tuple(in_chunks(model.classifier.represent, of_part) for of_part in features)  # type: ignore[return-value]


def _calibrated(layer: nn.Module, rule: DecisionRule, columns: slice) -> nn.Linear | None:
    """Return a linear layer whose logits include shift and temperature; None for one that is not linear."""
    if not isinstance(layer, nn.Linear):
        return None
    shift, temperature = (torch.from_numpy(values[columns]) for values in (rule.shift, rule.temperature))
    return linear_layer(layer.weight.detach() / temperature[:, None], (layer.bias.detach() - shift) / temperature)


def _learn(settings: RebalanceHeadSettings, task: Task, validation: HeadValidation, context: Context) -> LearntHead:
    """Learn one head in all ways, and return the best; print a table of all."""
    head = task.head
    weights = calibrating_weights(head, validation.codes, task.codes, task.class_weights)
    chooser = ValidationSet(head, validation.codes, weights, settings.metric)
    table = HeadTable(head, task.codes, validation.codes)
    table.add(BEFORE, validation.probabilities, thresholds=validation.thresholds)
    if settings.metric not in table.rows[BEFORE].tally.values():
        raise DataError(
            f"rebalance_head: {head.name}: {settings.metric} is not defined by the labels that validation has under "
            "this head. Raise split.val, choose another metric, or name the other heads under heads."
        )
    candidates: list[list[Candidate]] = []
    ways: list[Way] = []
    for kind in _supported_kinds(settings, task, context):
        began = time.perf_counter()
        of_kind = fit_heads(kind, task)
        candidates.append(of_kind)
        logits = [in_chunks(candidate.layer, validation.features) for candidate in of_kind]
        ways.append(Way(logits, kind.pull if isinstance(kind, Levels) else 0.0))
        best = choose_head(chooser, ways[-1:], folds=settings.folds, seed=context.seed)
        table.add(
            kind_name(kind),
            probabilities_of(LabelSpace((head,)), best.logits),
            setting=of_kind[best.best.setting].setting,
            seconds=time.perf_counter() - began,
        )
    chosen = choose_head(chooser, ways, folds=settings.folds, seed=context.seed)
    kept = candidates[chosen.best.way][chosen.best.setting]
    for line in table.lines():
        context.progress.line(f"  {line}")
    details = _details(settings.metric, kept, chosen, table, context)
    return LearntHead(kept.layer, chosen.best, chosen.logits, details)


def _supported_kinds(settings: RebalanceHeadSettings, task: Task, context: Context) -> list[AnyKind]:
    """Return the kinds that can learn this head. Raises PlanError where one is named that cannot."""
    kinds = ALL_KINDS if settings.kinds == "all" else settings.kinds
    images = int(task.head.known(task.codes).sum())
    supported = []
    for kind in kinds:
        reason = unsupported_reason(kind, task.head, images=images, linear=task.before is not None)
        if reason is None:
            supported.append(kind)
        elif settings.kinds != "all":
            raise PlanError(f"rebalance_head: {reason}")
        else:
            context.progress.line(f"  {kind_name(kind)} is left out: {reason}")
    return supported


def _details(metric: str, kept: Candidate, chosen: ChosenHead, table: HeadTable, context: Context) -> dict[str, object]:
    """Return what was kept for one head and its gain, for done.json; print them."""
    head = table.head
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
        "levels": chosen.best.levels.round(4).tolist(),
        "metric": metric,
        BEFORE: old,
        "cross-fitted": new,
        "gain": better.to_json(),
        "groups": table.group_names(),
        "table": table.to_json(),
    }
