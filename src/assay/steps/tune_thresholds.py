"""tune_thresholds: where the tags of multi-label heads begin, chosen on validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from assay.arrays import Reals
from assay.errors import DataError, PlanError
from assay.labels.build import quoted
from assay.labels.space import Codes, Head
from assay.predictions.cross_fitting import cross_fitted, decision_tally, gain
from assay.predictions.thresholds import RARE, MetricName, best_by_class, best_global, rare_tags, without_positives
from assay.settings import Settings
from assay.steps.base import Context, State, StepResult
from assay.steps.start import Validated, heads_named

STEP = "tune_thresholds"
CHOOSERS: dict[str, Callable[..., float | Reals]] = {"global": best_global, "class": best_by_class}


class TuneThresholdsSettings(Settings):
    """Choose on validation the probability from which a tag is given, instead of one half."""

    by: Literal["global", "class"] = Field("global", description="One threshold for all tags of a head, or one a tag.")
    metric: MetricName = Field("micro_f1", description="The metric that the thresholds are best for.")
    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Multi-label heads; default: all of them.")
    folds: int = Field(5, ge=2, description="Parts of validation, each judged at thresholds chosen on the others.")

    @model_validator(mode="after")
    def _separable(self) -> TuneThresholdsSettings:
        if self.by == "class" and self.metric == "subset_accuracy":
            raise ValueError(
                "subset_accuracy hangs on all tags of an image at once, so no tag has a best threshold of its own; "
                "choose by: global, or another metric"
            )
        return self


def run(settings: TuneThresholdsSettings, state: State, context: Context) -> StepResult:
    """Choose on all of validation; the answers written are decided at thresholds chosen without each image."""
    validated = Validated.of(state, step=STEP)
    predictions, deciding = validated.predictions, validated.saved.decision_rule
    thresholds = deciding.thresholds.copy()
    fitted = np.broadcast_to(predictions.thresholds, predictions.logits.shape).copy()
    choose = partial(CHOOSERS[settings.by], metric=settings.metric)
    details: dict[str, Any] = {}
    all_codes = validated.samples.codes()
    for place, head, columns in _multilabel(state, settings):
        codes, probabilities = all_codes[place], predictions.probabilities[:, columns]
        if not (codes == 1).any():
            raise DataError(
                f"{STEP}: {head.name}: no validation image has a tag of this head, so there is nothing to choose "
                "thresholds by. Raise split.val, or name the other heads under heads."
            )
        thresholds[columns] = choose(codes, probabilities)
        fitted[:, columns] = cross_fitted(codes, probabilities, choose, folds=settings.folds, seed=context.seed)
        details[head.name] = _told(
            head, codes, probabilities, thresholds[columns], fitted[:, columns], settings=settings, context=context
        )
    folder = validated.write(
        replace(deciding, thresholds=thresholds), logits=predictions.logits, thresholds=fitted, context=context
    )
    return StepResult(folder, details=details)


def _multilabel(state: State, settings: TuneThresholdsSettings) -> list[tuple[int, Head, slice]]:
    """The heads to tune. Raises PlanError for one that has no thresholds, and where there is none at all."""
    named = heads_named(state.samples.space, settings.heads, step=STEP)
    found = [(place, head, columns) for place, head, columns in named if head.kind == "multilabel"]
    if settings.heads is not None and len(found) < len(named):
        name = next(head.name for _, head, _ in named if head.kind == "multiclass")
        raise PlanError(
            f"{STEP}: heads: {name!r} is multi-class: its most probable class is answered and no threshold is read. "
            "Name multi-label heads only."
        )
    if not found:
        raise PlanError(
            f"{STEP}: no head of this data is multi-label, and only those have thresholds. Take the step out of the "
            "plan, or declare a head with kind: multilabel."
        )
    return found


def _told(
    head: Head,
    codes: Codes,
    probabilities: Reals,
    thresholds: Reals,
    fitted: Reals,
    *,
    settings: TuneThresholdsSettings,
    context: Context,
) -> dict[str, Any]:
    """What was chosen for one head and what it is worth, for done.json; said in a line too."""
    by, metric = settings.by, settings.metric
    half, honest, same = (decision_tally(head, codes, probabilities, cuts) for cuts in (0.5, fitted, thresholds))
    better = gain(half, honest, metric)
    before, after = half.values()[metric], honest.values()[metric]
    shown = f"{thresholds.min():.3f}" if by == "global" else f"{thresholds.min():.3f} to {thresholds.max():.3f}"
    context.progress.line(
        f"  {head.name}: tags from {shown} up: {metric} {before:.4f} at 0.5, {after:.4f} cross-fitted, "
        f"better by {better.value:.4f}{better.limits()}, n = {better.n}"
    )
    few = _few(head, codes, by)
    if few:
        context.progress.line(
            f"  warning: {head.name}: the threshold of {quoted(few)} rests on fewer than {RARE} positives; "
            "on other images it may be no better than 0.5"
        )
    chosen = thresholds.tolist()
    kept = [head.classes[tag] for tag in without_positives(codes)] if by == "class" else []
    if kept:
        context.progress.line(
            f"  {head.name}: {quoted(kept)} kept the threshold 0.5: no validation image is known to have the tag, so "
            "there is nothing to choose by. Label some, or raise split.val"
        )
    return {
        "by": by,
        "metric": metric,
        **(
            {"threshold": chosen[0]} if by == "global" else {"thresholds": dict(zip(head.classes, chosen, strict=True))}
        ),
        "at half": before,
        "cross-fitted": after,
        "gain": better.to_json(),
        "on the same images (not cross-fitted)": same.values()[metric],
        "few positives": few,
        "kept one half": kept,
    }


def _few(head: Head, codes: Codes, by: str) -> list[str]:
    """The tags whose threshold rests on few positives; a global one rests on those of all tags together."""
    if by == "global":
        return list(head.classes) if int((codes == 1).sum()) < RARE else []
    return [head.classes[tag] for tag in rare_tags(codes)]
