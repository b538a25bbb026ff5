"""What the metric of a plan decides wherever the plan itself is silent: weights, prior, monitor and thresholds.

The one list of these decisions. Each is made by measurement: docs/RESULTS.md, "What a metric turns on".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from assay.arrays import Floats
from assay.errors import PlanError
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.subset import labelled
from assay.metrics.metrics import PlanMetric, stream
from assay.plan.plan import Plan, plain
from assay.settings import Settings, with_parts
from assay.steps.base import StepPlan
from assay.steps.ensemble import EnsembleSettings
from assay.training.class_weights import SqrtInverse

Decisions = Mapping[str, Mapping[str, Any]]
"""Kind of step -> its settings."""

WEIGHED = {"class_weights": SqrtInverse()}  # which a fit of a network gains by, and a linear one does not
EVEN = {"prior": "uniform"}
BETWEEN = {"prior": "square_root"}

BY_METRIC: Mapping[PlanMetric, Decisions] = {
    "accuracy": {"fit": {"monitor": "accuracy"}, "rebalance_head": {"metric": "micro_f1"}},
    "balanced_accuracy": {
        "probe": EVEN,
        "fit": {**WEIGHED, **EVEN, "monitor": "balanced_accuracy"},
        "tune_thresholds": {"metric": "balanced_accuracy"},
    },
    "macro_f1": {
        "probe": BETWEEN,
        "fit": {**WEIGHED, **BETWEEN, "monitor": "macro_f1"},
        "tune_thresholds": {"metric": "macro_f1", "by": "class"},
        "rebalance_head": {"metric": "macro_f1"},
    },
    "micro_f1": {"fit": {"monitor": "micro_f1"}, "rebalance_head": {"metric": "micro_f1"}},
    "mean_average_precision": {"fit": {"monitor": "mean_average_precision"}},
    "nll": {"fit": {"monitor": "nll"}, "rebalance_head": {"metric": "nll"}},
}
"""Where a metric lists nothing, the default of the step is what suits it."""

OF_TAGS: Mapping[PlanMetric, Decisions] = {
    **BY_METRIC,
    "balanced_accuracy": {
        "probe": EVEN,
        "fit": {**EVEN, "monitor": "balanced_accuracy"},
        "tune_thresholds": {"metric": "balanced_accuracy"},
    },
    "macro_f1": {
        "fit": {"monitor": "macro_f1"},
        "tune_thresholds": {"metric": "macro_f1", "by": "class"},
        "rebalance_head": {"metric": "macro_f1"},
    },
}
"""What a metric decides where all heads are tags: class weights rank their images worse, and thresholds do as much."""

TRAINING = frozenset({"class_weights", "sampling", "logit_adjust"})
"""Settings by which classes count otherwise in training: a plan that has one has decided how."""

GREEDY_SOUP = "greedy soup"
"""An ensemble of this kind alone has a metric: the one that its members are picked by."""

HOLDING = ("repeat", "ensemble")
"""Steps whose inner ones make the model. Those of `clean_labels` judge labels, by the frequencies of the data."""


def require_defined(metric: PlanMetric, samples: Samples) -> None:
    """Raise PlanError where the labels, of validation if there are any, do not define the metric."""
    validation = labelled(samples.part("val"))
    measured = validation if len(validation) else labelled(samples)
    space = samples.space
    even: Floats = np.full((len(measured), space.width), 0.5, np.float32)
    defined = [name for name, _ in stream(space, measured.codes(), even) if name in BY_METRIC]
    if metric not in defined and len(measured):
        kinds = ", ".join(f"{head.name} ({head.kind})" for head in space)
        raise PlanError(
            f"metric: {metric}: the labels of this data do not define it. Its heads are {kinds}. "
            f"Choose one of {', '.join(defined)}."
        )


def by_metric(plan: Plan, space: LabelSpace) -> tuple[Plan, list[str]]:
    """Return the plan with the settings that its metric decides, and a line for each kind of step on what they are.

    What the plan says stays; a line names it where the metric would have it otherwise.
    """
    if plan.metric is None:
        return plan, []
    decisions = {
        **(BY_METRIC if any(head.multiclass for head in space) else OF_TAGS)[plan.metric],
        GREEDY_SOUP: {"monitor": plan.metric},
    }
    lines: list[str] = []

    def decide(step: StepPlan) -> StepPlan:
        settings = with_parts(step.settings, StepPlan, decide) if step.kind in HOLDING else step.settings
        wanted = decisions.get(GREEDY_SOUP if is_greedy_soup(step.settings) else step.kind, {})
        decided = dict(_open(settings, wanted))
        lines.extend(_lines(step.kind, settings, decided, wanted))
        return step.model_copy(update={"settings": settings.model_copy(update=decided)})

    steps = tuple(decide(step) for step in plan.steps)
    text = f"metric {plan.metric}: "
    return plan.model_copy(update={"steps": steps}), [text + line for line in dict.fromkeys(lines)]


def is_greedy_soup(settings: Settings) -> bool:
    """Return whether a step makes one network of the members by which a metric of validation gains."""
    return isinstance(settings, EnsembleSettings) and settings.kind == "soup" and settings.pick == "greedy"


def _open(settings: Settings, decided: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings that the plan leaves open, by name."""
    given = settings.model_fields_set
    for name, value in decided.items():
        if name not in given and not (name in TRAINING and given & TRAINING):
            yield name, value


def _lines(kind: str, settings: Settings, new: Mapping[str, Any], decided: Mapping[str, Any]) -> Iterator[str]:
    changed = settings.model_copy(update=dict(new))
    if new:
        yield f"{kind} has {_text(changed, new)}"
    kept = {name: value for name, value in decided.items() if getattr(changed, name) != value}
    if kept:
        yield f"{kind} keeps {_text(changed, kept)}, as the plan says"


def _text(settings: Settings, names: Mapping[str, Any]) -> str:
    values = plain(settings, full=True)
    return ", ".join(f"{name}: {values.get(name, 'none')}" for name in names)
