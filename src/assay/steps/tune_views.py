"""tune_views: whether a model averages over the mirror images of an image, chosen on validation."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from assay.errors import PlanError
from assay.metrics.metrics import gains, headline
from assay.models.classifier import FLIPS
from assay.models.ensemble import Ensemble
from assay.predictions.predict import score_predictions
from assay.steps.base import Context, State, Step, StepResult, StepSettings
from assay.steps.ensemble_members import predict_validation
from assay.steps.start import Validated, save_best


class TuneViewsSettings(StepSettings):
    """Average over mirror images in prediction, where validation gains by it beyond chance."""

    flip: Literal["horizontal", "vertical", "both"] = Field(
        "horizontal", description="The mirror images beside the image; `both` makes 4 views of it."
    )


def run(settings: TuneViewsSettings, state: State, context: Context) -> StepResult:
    """Hand on the model with these views, or where it is not better beyond chance as it was.

    There is one alternative, so that nothing is chosen that cross-fitting could be honest about: the interval of the
    paired difference has to lie above 0. Raises PlanError for a model whose views cannot be set.
    """
    validated = Validated.of(state, step="tune_views")
    model, plain, samples = validated.model, validated.predictions, validated.samples
    if isinstance(model, Ensemble):
        raise PlanError(
            f"tune_views: the model so far is of {len(model.networks)} networks, and each has views of its own. "
            "Put the step into the steps of the members."
        )
    if model.uncertainty is not None:
        raise PlanError("tune_views: calibrate fitted the model for plain images. Put tune_views before calibrate.")
    model.classifier.flip = settings.flip
    averaged = replace(predict_validation(model, samples, context, name=context.name), thresholds=plain.thresholds)
    better = gains(score_predictions(plain, samples), score_predictions(averaged, samples))
    name = headline(better, context.metric) or next(iter(better))
    gain, views = better[name], len(FLIPS[settings.flip])
    kept = gain.beyond_chance
    context.progress.line(
        f"  {views} views of an image: {name} better by {gain.value:.4f}{gain.limits()}, n = {gain.n}: "
        + (f"kept, and predicting takes {views} times as long" if kept else "not kept, which may be chance")
    )
    details = {"flip": settings.flip, "views": views, "metric": name, "gain": gain.to_json(), "kept": kept}
    return StepResult(save_best(model, averaged, context) if kept else state.model, details=details)


STEP = Step(
    TuneViewsSettings,
    run,
    purpose="the mirror images that predictions are averaged over",
    report=("flip",),
    needs_model=True,
    computes=lambda settings: True,
)
