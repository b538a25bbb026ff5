"""calibrate: probabilities as sure as they are right, by a temperature a head chosen on validation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from pydantic import Field

from assay.arrays import Reals
from assay.errors import DataError
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.predictions.calibration import at_temperature, settled_temperature, temperature
from assay.predictions.cross_fitting import cross_fitted, decision_tally, gain
from assay.steps.base import Context, State, Step, StepResult, StepSettings
from assay.steps.start import Validated, heads_named


class CalibrateSettings(StepSettings):
    """Divide the logits of each head by the temperature at which validation loses least; no answer changes."""

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to calibrate; default: all.")
    folds: int = Field(5, ge=2, description="Parts of validation, each judged at a temperature chosen on the others.")


def run(settings: CalibrateSettings, state: State, context: Context) -> StepResult:
    """Choose temperatures on all of validation; write predictions at temperatures chosen without each image."""
    validated = Validated.of(state, step="calibrate")
    predictions, rule = validated.predictions, validated.model.decision_rule
    temperatures = np.ones_like(rule.temperature)
    cross_fitted_temperatures = np.ones_like(predictions.logits)
    details: dict[str, object] = {}
    all_codes = validated.samples.codes()
    for index, head, columns in heads_named(state.samples.space, settings.heads, step="calibrate"):
        codes, logits = all_codes[index], predictions.logits[:, columns]
        if not head.known(codes).any():
            raise DataError(
                f"calibrate: {head.name}: no validation image has a known label under this head. "
                "Raise split.val, or name the other heads under heads."
            )
        choose = partial(settled_temperature, head)
        temperatures[columns] = choose(codes, logits)
        if temperatures[columns][0] == 1 and (best := temperature(head, codes, logits)) != 1:
            context.progress.line(
                f"  {head.name}: {int(head.known(codes).sum()):,} labelled validation images do not determine a "
                f"temperature (the best would be {best:.3g}): it stays 1. Hold back more with split.val."
            )
        of_images = cross_fitted(codes, logits, choose, folds=settings.folds, seed=context.seed)
        cross_fitted_temperatures[:, columns] = of_images
        details[head.name] = _details(head, codes, logits, temperatures[columns][0], of_images, context=context)
    folder = validated.write(
        replace(
            rule,
            temperature=rule.temperature * temperatures,
            thresholds=at_temperature(rule.thresholds, temperatures),
        ),
        logits=predictions.logits / cross_fitted_temperatures,
        thresholds=at_temperature(predictions.thresholds, cross_fitted_temperatures),
        context=context,
    )
    return StepResult(folder, details=details)


STEP = Step(CalibrateSettings, run, purpose="probabilities as sure as they are right", needs_model=True)


def _details(
    head: Head, codes: Codes, logits: Reals, chosen: float, of_images: Reals, *, context: Context
) -> dict[str, object]:
    """Return the temperature of one head and its gain in loss, for done.json; print them."""
    space = LabelSpace((head,))
    before, after = (
        decision_tally(head, codes, probabilities_of(space, scores)) for scores in (logits, logits / of_images)
    )
    better = gain(before, after, "nll")
    old, new = before.values(), after.values()
    context.progress.line(
        f"  {head.name}: temperature {chosen:.3f}: nll {old['nll']:.4f} before, {new['nll']:.4f} cross-fitted, "
        f"better by {better.value:.4f}{better.limits()}, n = {better.n}"
    )
    details: dict[str, object] = {
        "temperature": float(chosen),
        "nll": {"before": old["nll"], "cross-fitted": new["nll"], "gain": better.to_json()},
    }
    if head.multiclass:  # the metric is of the most probable class
        details["calibration_error"] = {"before": old["calibration_error"], "cross-fitted": new["calibration_error"]}
    return details
