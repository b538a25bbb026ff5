"""calibrate: probabilities as sure as they are right, by a temperature a head chosen on validation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from assay.arrays import Reals
from assay.errors import DataError
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.predictions.calibration import at_temperature, temperature
from assay.predictions.cross_fitting import cross_fitted, decision_tally, gain
from assay.settings import Settings
from assay.steps.base import Context, State, StepResult
from assay.steps.start import Validated, heads_named

STEP = "calibrate"


class CalibrateSettings(Settings):
    """Divide the logits of each head by the temperature at which validation loses least; no answer changes."""

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to calibrate; default: all.")
    folds: int = Field(5, ge=2, description="Parts of validation, each judged at a temperature chosen on the others.")


def run(settings: CalibrateSettings, state: State, context: Context) -> StepResult:
    """Choose on all of validation; the answers written have temperatures chosen without each image."""
    validated = Validated.of(state, step=STEP)
    predictions, deciding = validated.predictions, validated.saved.decision_rule
    temperatures = np.ones_like(deciding.temperature)
    fitted = np.ones_like(predictions.logits)
    details: dict[str, Any] = {}
    all_codes = validated.samples.codes()
    for place, head, columns in heads_named(state.samples.space, settings.heads, step=STEP):
        codes, logits = all_codes[place], predictions.logits[:, columns]
        if not head.known(codes).any():
            raise DataError(
                f"{STEP}: {head.name}: no validation image has a known label under this head. "
                "Raise split.val, or name the other heads under heads."
            )
        choose = partial(temperature, head)
        temperatures[columns] = choose(codes, logits)
        fitted[:, columns] = cross_fitted(codes, logits, choose, folds=settings.folds, seed=context.seed)
        details[head.name] = _told(head, codes, logits, temperatures[columns][0], fitted[:, columns], context=context)
    folder = validated.write(
        replace(
            deciding,
            temperature=deciding.temperature * temperatures,
            thresholds=at_temperature(deciding.thresholds, temperatures),
        ),
        logits=predictions.logits / fitted,
        thresholds=at_temperature(predictions.thresholds, fitted),
        context=context,
    )
    return StepResult(folder, details=details)


def _told(head: Head, codes: Codes, logits: Reals, chosen: float, fitted: Reals, *, context: Context) -> dict[str, Any]:
    """The temperature of one head and what it is worth, for done.json; said in a line too."""
    space = LabelSpace((head,))
    before, after = (
        decision_tally(head, codes, probabilities_of(space, scores)) for scores in (logits, logits / fitted)
    )
    better = gain(before, after, "nll")
    old, new = before.values(), after.values()
    context.progress.line(
        f"  {head.name}: temperature {chosen:.3f}: nll {old['nll']:.4f} before, {new['nll']:.4f} cross-fitted, "
        f"better by {better.value:.4f}{better.limits()}, n = {better.n}"
    )
    found: dict[str, Any] = {
        "temperature": float(chosen),
        "nll": {"before": old["nll"], "cross-fitted": new["nll"], "gain": better.to_json()},
    }
    if head.kind == "multiclass":  # the metric is of the most probable class
        found["calibration_error"] = {"before": old["calibration_error"], "cross-fitted": new["calibration_error"]}
    return found
