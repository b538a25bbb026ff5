"""repeat: the same steps several times, each round from what the last one left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from assay.errors import DataError, PlanError
from assay.files import ModelFolder, fingerprint
from assay.labels.subset import labelled
from assay.metrics.metrics import headline, higher_is_better
from assay.predictions.predict import Predictions, scores_json
from assay.steps.base import Context, RepeatSettings, State, StepList, StepResult

STEP = "repeat"


def run(settings: RepeatSettings, state: State, context: Context) -> StepResult:
    """Run the steps `times` times, each round in a folder of its own.

    With `only_if_better`, a round that does not raise the validation metric ends the rounds, and what was before it
    is handed on: model, labels and all.
    """
    if settings.only_if_better:
        return _while_better(settings, state, context)
    for number in range(1, settings.times + 1):
        state = _round(settings, state, context.for_round(number), number)
    return StepResult(state.model, soft=state.soft)


def holds(settings: RepeatSettings, state: State, context: Context) -> list[StepList]:
    """Return the steps of a round."""
    return [StepList(settings.steps, state, context.for_round(1), settings.times)]


def _round(settings: RepeatSettings, state: State, here: Context, number: int) -> State:
    state = replace(state, key=fingerprint(state.key, f"round {number}"))
    return here.run_steps(settings.steps, state, here)


def _while_better(settings: RepeatSettings, state: State, context: Context) -> StepResult:
    best = _round_metrics(state, context)
    name = settings.metric or headline(best)
    rounds: list[dict[str, Any]] = []
    kept: list[str] = []
    for number in range(1, settings.times + 1):
        here = context.for_round(number)
        after = _round(settings, state, here, number)
        metrics = _round_metrics(after, context)
        name = name or headline(metrics) or ""
        better, said = context.processes.of_main(_compared(name, best, metrics))
        context.progress.line(f"  {here.name}: {said}: {'kept' if better else 'not kept, and no further round is run'}")
        rounds.append(
            {"round": number, "metric": name, "before": best.get(name), "after": metrics[name], "kept": better}
        )
        if not better:
            break
        state, best = after, metrics
        kept.append(here.name)
    return StepResult(state.model, details={"rounds": rounds}, labels_of=kept, soft=state.soft)


def _round_metrics(state: State, context: Context) -> dict[str, float]:
    """The validation metrics of the state's model; none where there is no model yet. Raises DataError."""
    validation = labelled(state.samples.part("val"))
    if len(validation) == 0:
        raise DataError(
            f"{STEP}: only_if_better compares validation metrics, and no validation image has a known label. "
            "Raise split.val, label some, or drop only_if_better."
        )
    if state.model is None:
        return {}
    predictions = Predictions.read(ModelFolder(state.model).predictions, state.samples.space, model=context.name)
    metrics = scores_json(predictions, validation)["metrics"]
    return {name: metric["value"] for name, metric in metrics.items()}


def _compared(name: str, before: dict[str, float], after: dict[str, float]) -> tuple[bool, str]:
    """Whether a metric is better than before, and that in words. Raises PlanError where there is no such metric."""
    if name not in after:
        raise PlanError(f"{STEP}: metric: {name!r} is not measured on this data. There are: {', '.join(after)}.")
    if name not in before:
        return True, f"validation {name} {after[name]:.4f}, and no model before"
    better = after[name] > before[name] if higher_is_better(name) else after[name] < before[name]
    return better, f"validation {name} {before[name]:.4f} before, {after[name]:.4f} after"
