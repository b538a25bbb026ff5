"""tune_thresholds: where the tags of multi-label heads begin, chosen on validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from pydantic import Field

from assay.arrays import Reals
from assay.errors import DataError, PlanError
from assay.labels.space import Codes, Head
from assay.messages import quoted
from assay.metrics.intervals import with_interval
from assay.predictions.cross_fitting import cross_fitted, decision_tally, gain
from assay.predictions.thresholds import RARE, MetricName, best_by_class, best_global, rare_tags, without_positives
from assay.steps.base import Context, State, Step, StepResult, StepSettings
from assay.steps.start import Validated, heads_named

CHOOSERS: dict[str, Callable[..., float | Reals]] = {"global": best_global, "class": best_by_class}


class TuneThresholdsSettings(StepSettings):
    """Choose on validation the probability from which a tag is given, instead of one half."""

    by: Literal["global", "class"] = Field("global", description="One threshold for all tags of a head, or one a tag.")
    metric: MetricName = Field("micro_f1", description="The metric that the thresholds are best for.")
    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Multi-label heads; default: all of them.")
    folds: int = Field(5, ge=2, description="Parts of validation, each judged at thresholds chosen on the others.")

    def require_consistent(self) -> None:
        if self.by == "class" and self.metric == "subset_accuracy":
            raise ValueError(
                "subset_accuracy hangs on all tags of an image at once, so no tag has a best threshold of its own; "
                "choose by: global, or another metric"
            )


def run(settings: TuneThresholdsSettings, state: State, context: Context) -> StepResult:
    """Choose thresholds on all of validation; write predictions at thresholds chosen without each image."""
    validated = Validated.of(state, step="tune_thresholds")
    predictions, rule = validated.predictions, validated.model.decision_rule
    thresholds = rule.thresholds.copy()
    cross_fitted_thresholds = predictions.cuts.copy()
    choose = partial(CHOOSERS[settings.by], metric=settings.metric)
    details: dict[str, object] = {}
    all_codes = validated.samples.codes()
    for index, head, columns in _multilabel(state, settings):
        codes, probabilities = all_codes[index], predictions.probabilities[:, columns]
        if not (codes == 1).any():
            raise DataError(
                f"tune_thresholds: {head.name}: no validation image has a tag of this head, so there is nothing to "
                "choose thresholds by. Raise split.val, or name the other heads under heads."
            )
        thresholds[columns] = choose(codes, probabilities)
        of_images = cross_fitted(codes, probabilities, choose, folds=settings.folds, seed=context.seed)
        cross_fitted_thresholds[:, columns] = of_images
        details[head.name] = _details(
            head, codes, probabilities, thresholds[columns], of_images, settings=settings, context=context
        )
    folder = validated.write(
        replace(rule, thresholds=thresholds),
        logits=predictions.logits,
        thresholds=cross_fitted_thresholds,
        context=context,
        uncertainty=validated.model.uncertainty,  # which knows no thresholds
    )
    return StepResult(folder, details=details)


STEP = Step(
    TuneThresholdsSettings,
    run,
    purpose="the probability from which a tag is given",
    report=("by", "metric"),
    needs_model=True,
)


def _multilabel(state: State, settings: TuneThresholdsSettings) -> list[tuple[int, Head, slice]]:
    """Return the heads to tune. Raises PlanError for one without thresholds, and where there is none at all."""
    named = heads_named(state.samples.space, settings.heads, step="tune_thresholds")
    multilabel = [one for one in named if not one[1].multiclass]
    if settings.heads is not None and len(multilabel) < len(named):
        name = next(head.name for _, head, _ in named if head.multiclass)
        raise PlanError(
            f"tune_thresholds: heads: {name!r} is multi-class: its most probable class is answered and no threshold is "
            "read. Name multi-label heads only."
        )
    if not multilabel:
        raise PlanError(
            "tune_thresholds: no head of this data is multi-label, and only those have thresholds. Take the step out "
            "of the plan, or declare a head with kind: multilabel."
        )
    return multilabel


def _details(
    head: Head,
    codes: Codes,
    probabilities: Reals,
    thresholds: Reals,
    of_images: Reals,
    *,
    settings: TuneThresholdsSettings,
    context: Context,
) -> dict[str, object]:
    """Return the thresholds of one head and their gain, for done.json; print them, with a warning where due."""
    by, metric = settings.by, settings.metric
    half, honest, same = (decision_tally(head, codes, probabilities, cuts) for cuts in (0.5, of_images, thresholds))
    better = gain(half, honest, metric)
    before, after = (with_interval(tally.estimates[metric]) for tally in (half, honest))
    low, high = thresholds.min(), thresholds.max()
    context.progress.line(
        f"  {head.name}: tags from {low:.3f}{'' if by == 'global' else f' to {high:.3f}'} up: "
        f"{metric} {before.value:.4f}{before.limits()} at 0.5, {after.value:.4f}{after.limits()} cross-fitted, "
        f"better by {better.value:.4f}{better.limits()}, n = {better.n}"
    )
    rare = _rare(head, codes, by)
    if rare:
        context.progress.line(
            f"  warning: {head.name}: the threshold of {quoted(rare)} rests on fewer than {RARE} positives; "
            "on other images it may be no better than 0.5"
        )
    kept = [head.classes[tag] for tag in without_positives(codes)] if by == "class" else []
    if kept:
        context.progress.line(
            f"  {head.name}: {quoted(kept)} kept the threshold 0.5: no validation image is known to have the tag, so "
            "there is nothing to choose by. Label some, or raise split.val"
        )
    values = thresholds.tolist()
    return {
        "by": by,
        "metric": metric,
        **(
            {"threshold": values[0]} if by == "global" else {"thresholds": dict(zip(head.classes, values, strict=True))}
        ),
        "at half": before.value,
        "cross-fitted": after.value,
        "intervals": {"at half": [before.low, before.high], "cross-fitted": [after.low, after.high]},
        "gain": better.to_json(),
        "on the same images (not cross-fitted)": same.values()[metric],
        "few positives": rare,
        "kept one half": kept,
    }


def _rare(head: Head, codes: Codes, by: str) -> list[str]:
    """Return the tags whose threshold rests on few positives; a global one rests on those of all tags together."""
    if by == "global":
        return list(head.classes) if int((codes == 1).sum()) < RARE else []
    return [head.classes[tag] for tag in rare_tags(codes)]
