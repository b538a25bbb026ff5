"""calibrate: probabilities as sure as they are right, and what the model keeps to know when it does not know."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from pydantic import Field

from assay.arrays import Floats, Reals
from assay.errors import DataError
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.intervals import Metric
from assay.metrics.tallies import Tally
from assay.models.ensemble import Model
from assay.models.uncertainty import Uncertainty
from assay.predictions.calibration import at_temperature, probabilities_at, settled_temperature, temperature
from assay.predictions.class_prior import predicted_counts
from assay.predictions.conformal import SetScore, present_cells, set_scores
from assay.predictions.cross_fitting import cross_fitted, decision_tally, gain
from assay.predictions.novelty import nearest_distances, unit_features
from assay.steps.base import Context, State, Step, StepResult, StepSettings
from assay.steps.hardware import inference_for
from assay.steps.start import Validated, heads_named, labelled_parts

PRINTED = 0.9  # the coverage in the log; done.json has others too, and the model gives sets for any
MOST_RANKED = 5000  # validation images among which new ones are ranked


class CalibrateSettings(StepSettings):
    """Divide logits by the temperature at which validation loses least, and fit prediction sets; no answer changes."""

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to calibrate; default: all.")
    folds: int = Field(5, ge=2, description="Parts of validation, each judged at a temperature chosen on the others.")
    examples: int = Field(
        2000, ge=0, description="Training images whose features the model keeps, to tell images unlike them; 0: none."
    )


def run(settings: CalibrateSettings, state: State, context: Context) -> StepResult:
    """Choose temperatures on all of validation; write predictions at temperatures chosen without each image."""
    validated, space = Validated.of(state, step="calibrate"), state.samples.space
    rule, logits, codes = validated.model.decision_rule, validated.logits, validated.samples.codes()
    temperatures = np.ones_like(rule.temperature)
    of_images = np.ones((len(logits), len(space)), np.float32)  # a temperature a head
    details: dict[str, dict[str, object]] = {}
    chosen = {index: head for index, head, _ in heads_named(space, settings.heads, step="calibrate")}
    for index, head in chosen.items():
        if not head.known(codes[index]).any():
            raise DataError(
                f"calibrate: {head.name}: no validation image has a known label under this head. "
                "Raise split.val, or name the other heads under heads."
            )
    for index, (head, columns, known) in enumerate(space.each(codes)):
        alone, outputs, details[head.name] = LabelSpace((head,)), logits[:, columns], {}
        before: Tally | None = None
        if index in chosen:
            choose = partial(settled_temperature, head)
            temperatures[columns] = choose(known, outputs)
            if temperatures[columns][0] == 1 and (best := temperature(head, known, outputs)) != 1:
                context.progress.line(
                    f"  {head.name}: {int(head.known(known).sum()):,} labelled validation images do not determine a "
                    f"temperature (the best would be {best:.3g}): it stays 1. Hold back more with split.val."
                )
            of_images[:, [index]] = cross_fitted(known, outputs, choose, folds=settings.folds, seed=context.seed)
            before = decision_tally(head, known, probabilities_at(alone, outputs, np.ones(1)))
        # Once for tally and sets, and one at a time: of 50,000 images and 1,000 classes 200 MB.
        probabilities = probabilities_at(alone, outputs, of_images[:, [index]])
        if before is not None:
            after = decision_tally(head, known, probabilities)
            details[head.name] |= _details(head, before, after, temperatures[columns][0], context=context)
        details[head.name]["sets"] = _sets(head, known, probabilities, context)
        del probabilities
    uncertainty = _uncertainty(settings, validated, temperatures, context, labelled_parts(state.samples)[0])
    scaled = np.empty_like(logits)
    for index, (_, columns) in enumerate(space.each()):
        scaled[:, columns] = logits[:, columns] / of_images[:, [index]]
    folder = validated.write(
        replace(
            rule,
            temperature=rule.temperature * temperatures,
            thresholds=at_temperature(rule.thresholds, temperatures),
        ),
        logits=scaled,
        thresholds=_at_temperatures(space, validated.thresholds, of_images),
        context=context,
        uncertainty=uncertainty,
    )
    return StepResult(folder, details=details)


STEP = Step(
    CalibrateSettings,
    run,
    purpose="probabilities as sure as they are right, and prediction sets",
    needs_model=True,
    computes=lambda settings: bool(settings.examples),
)


def _at_temperatures(space: LabelSpace, thresholds: Floats, of_images: Floats) -> Floats:
    """Return thresholds, (W,) or (N, W), at the temperatures of images (N, H); without tags none is read."""
    if all(head.multiclass for head in space):
        return thresholds
    cuts = np.broadcast_to(thresholds, (len(of_images), space.width))
    moved = [at_temperature(cuts[:, at], of_images[:, [number]]) for number, (_, at) in enumerate(space.each())]
    return np.concatenate(moved, axis=1)


def _uncertainty(
    settings: CalibrateSettings, validated: Validated, temperatures: Floats, context: Context, train: Samples
) -> Uncertainty:
    """Return what the model keeps of validation images, by their logits at its temperatures (W,)."""
    space, codes = validated.samples.space, validated.samples.codes()
    probabilities = probabilities_at(space, validated.logits, temperatures)
    examples, far = np.empty((0, 0), np.float16), np.empty(0, np.float32)
    if settings.examples:
        some = (_some(train, settings.examples, context.seed), _some(validated.samples, MOST_RANKED, context.seed))
        features, of_validation = (_features(validated.model, part, context) for part in some)
        examples = features.astype(np.float16)
        far = np.sort(nearest_distances(of_validation, examples))
    return Uncertainty(
        tuple(present_cells(head, known, part) for head, _, known, part in space.each(codes, probabilities)),
        len(probabilities),
        probabilities.mean(axis=0),
        predicted_counts(space, probabilities),
        examples,
        far,
    )


def _some(samples: Samples, count: int, seed: int) -> Samples:
    """Return at most so many images, drawn at random, in their order."""
    rows = np.random.default_rng(seed).permutation(len(samples))[:count]
    return samples.take(np.sort(rows))


def _features(model: Model, samples: Samples, context: Context) -> Floats:
    """Return the features (N, sum of F) of images by all networks of a model."""
    parts = []
    for network in model.networks:
        inference = inference_for(network.classifier, network, context)
        parts.append(inference.features(samples.ids, folder=context.run.cache, progress=context.progress))
        network.classifier.cpu()
    return unit_features(parts)


def _sets(head: Head, codes: Codes, probabilities: Reals, context: Context) -> list[SetScore]:
    """Return coverage and size of the sets of one head, each image's from the other folds; print those for 90 %."""
    scores = set_scores(head, codes, probabilities)
    for one in scores:
        if one["coverage"] == PRINTED and not one["by_class"]:
            what = "the class of an image" if head.multiclass else "this share of an image's tags"
            covered = Metric(**one["covered"])  # type: ignore[arg-type]
            context.progress.line(
                f"  {head.name}: sets for {PRINTED:.0%} hold {what}: {covered.value:.4f}{covered.limits()}, "
                f"{one['size']:.2f} classes each, n = {covered.n}"
            )
    return scores


def _details(head: Head, before: Tally, after: Tally, chosen: float, *, context: Context) -> dict[str, object]:
    """Return the temperature of one head and its gain in loss, for done.json; print them."""
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
