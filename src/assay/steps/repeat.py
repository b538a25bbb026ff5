"""repeat: the same steps several times, each round from what the last one left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import Field

from assay.errors import DataError, PlanError
from assay.files import ModelFolder, fingerprint
from assay.labels.subset import labelled
from assay.metrics.intervals import SMALL_N, Estimate, Metric
from assay.metrics.metrics import estimates, gain, headline, higher_is_better, verdict
from assay.predictions.predict import Predictions, score_predictions
from assay.steps.base import Context, State, Step, StepList, StepPlan, StepResult, StepSettings


class RepeatSettings(StepSettings):
    """Carry out the same steps several times, each round from what the last one left."""

    times: int = Field(ge=1, description="Rounds.")
    steps: tuple[StepPlan, ...] = Field(min_length=1, description="The steps of a round, in order.")
    only_if_better: bool = Field(
        False,
        description="End with the first round that does not better validation, and hand on what was before it. By "
        "fewer than 30 validation images no round is run after a model.",
    )
    metric: str | None = Field(None, description="The validation metric that tells; default: that of the plan.")

    def require_consistent(self) -> None:
        if self.metric is not None:
            if not self.only_if_better:
                raise ValueError("metric tells whether a round is better; set only_if_better: true, or drop metric")
            higher_is_better(self.metric)


def run(settings: RepeatSettings, state: State, context: Context) -> StepResult:
    """Run the steps `times` times, each round in a folder of its own.

    With `only_if_better`, the first round that does not improve the validation metric is the last, and the state
    before it is handed on, labels included. By fewer than `SMALL_N` validation images that would be chance: where there
    is a model, no round is run.
    """
    if settings.only_if_better:
        return _while_better(settings, state, context)
    for number in range(1, settings.times + 1):
        state = _round(settings, state, context.for_round(number), number)
    return StepResult(state.model, soft=state.soft)


def holds(settings: RepeatSettings, state: State, context: Context) -> list[StepList]:
    """Return the steps of a round."""
    return [StepList(settings.steps, state, context.for_round(1), settings.times)]


STEP = Step(
    RepeatSettings,
    run,
    purpose="the same steps again, from what the last round left",
    report=("times", "metric"),
    on_every_process=True,
    holds=holds,
)


def _round(settings: RepeatSettings, state: State, context: Context, number: int) -> State:
    state = replace(state, key=fingerprint(state.key, f"round {number}"))
    return context.run_steps(settings.steps, state, context)


def _while_better(settings: RepeatSettings, state: State, context: Context) -> StepResult:
    best = validation_metrics(state, context)
    name = settings.metric or headline(best, context.metric)
    rounds: list[Mapping[str, object]] = []
    kept: list[str] = []
    for number in range(1, settings.times + 1):
        of_round = context.for_round(number)
        if name in best and best[name].n < SMALL_N:
            reason = f"by {best[name].n} validation images, fewer than {SMALL_N}, it would not be told from chance"
            way_out = "Hold back or label more, or drop only_if_better"
            context.progress.line(f"  {of_round.name} is not run: {reason}. {way_out}")
            break
        after = _round(settings, state, of_round, number)
        metrics = validation_metrics(after, context)
        name = name or headline(metrics, context.metric) or ""
        change, message = context.processes.of_main(_compare(name, best, metrics))
        better = change is None or change.value > 0
        outcome = "kept" if better else "not kept, and no further round is run"
        context.progress.line(f"  {of_round.name}: {message}: {outcome}")
        values = {"before": best[name].value if name in best else None, "after": metrics[name].value}
        gained = None if change is None else change.to_json()
        rounds.append({"round": number, "metric": name, **values, "gain": gained, "kept": better})
        if not better:
            break
        state, best = after, metrics
        kept.append(of_round.name)
    return StepResult(state.model, details={"rounds": rounds}, labels_of=kept, soft=state.soft)


def validation_metrics(state: State, context: Context) -> dict[str, Estimate]:
    """Return the validation metrics of the state's model, {} without a model. Raises DataError."""
    validation = labelled(state.samples.part("val"))
    if len(validation) == 0:
        raise DataError(
            "repeat: only_if_better compares validation metrics, and no validation image has a known label. "
            "Raise split.val, label some, or drop only_if_better."
        )
    if state.model is None:
        return {}
    predictions = Predictions.read(ModelFolder(state.model).predictions, state.samples.space, model=context.name)
    return estimates(score_predictions(predictions, validation))


def _compare(name: str, before: Mapping[str, Estimate], after: Mapping[str, Estimate]) -> tuple[Metric | None, str]:
    """Return how much better a metric is than before, paired, and a message. Raises PlanError for an unknown metric."""
    if name not in after:
        raise PlanError(f"repeat: metric: {name!r} is not measured on this data. There are: {', '.join(after)}.")
    if name not in before:
        return None, f"validation {name} {after[name].value:.4f}, and no model before"
    change = gain([before[name]], [after[name]])
    chance = ", within chance" if verdict(change, name) == "not told apart" else ""
    return change, (
        f"validation {name} {before[name].value:.4f} before, {after[name].value:.4f} after, a gain of "
        f"{change.value:+.4f}{change.limits()}, n = {change.n:,}{chance}"
    )
