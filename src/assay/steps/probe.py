"""probe: a linear classifier on the features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field

from assay.arrays import Floats, RowTable
from assay.images.augment import Variation
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.labels.split import folds
from assay.models.backbones import image_size
from assay.models.classifier import Classifier
from assay.models.trained_model import TrainedModel, training_hashes
from assay.predictions.inference import PLAIN, View
from assay.predictions.predict import Predictions
from assay.progress import stage
from assay.steps.base import Context, State, Step, StepResult, StepSettings
from assay.steps.fit_settings import Prior, rule_for
from assay.steps.hardware import inference_for
from assay.steps.start import bare_classifier, describe_network, labelled_parts, save_best, trained_before
from assay.training.feature_blocks import in_blocks
from assay.training.linear import fit_linear

PARTS = 100  # in which a training part is cut where a probe takes some of it


class ProbeSettings(StepSettings):
    """Run the backbone once, frozen, and fit a linear head a head on its features."""

    size: int = Field(128, ge=16, description="Images are resized to size x size pixels.")
    resize: Resize = Resize()
    images: int | None = Field(None, ge=1, description="Training images to learn from, about, stratified; all of them.")
    views: int = Field(1, ge=1, description="Views of each training image to learn from: plain, the others augmented.")
    augment: Variation | None = None
    prior: Prior = Field(
        "data",
        description="The class frequencies that predictions assume: the data's, their square root, or equal ones.",
    )

    def require_consistent(self) -> None:
        if (self.views > 1) != (self.augment is not None):
            raise ValueError(
                f"views: {self.views} are {self.views - 1} augmented ones beside the plain image; give both augment "
                "and views above 1, or drop both"
            )


def run(settings: ProbeSettings, state: State, context: Context) -> StepResult:
    """Fit the linear heads; write a model of the pretrained backbone with them on top."""
    train, validation = labelled_parts(state.samples)
    train = _some(train, settings.images, context)
    classifier = frozen_backbone(state, context, size=settings.size)
    network = describe_network(classifier, context, size=settings.size)
    inference = inference_for(classifier, settings, context)
    wanted, cache = [*((view, train) for view in _views(settings, context)), (PLAIN, validation)], context.run.cache
    computed = sum(inference.uncomputed(part.names, folder=cache, view=view) for view, part in wanted)
    *train_features, validation_features = (
        inference.feature_table_of(part.names, folder=cache, progress=context.progress, view=view)
        for view, part in wanted
    )
    rule, space = rule_for(settings.prior, train), state.samples.space
    with stage(context.progress, "fitting the linear model"):
        strengths = fit_heads(classifier, train_features, train, assumed=-rule.shift, seed=context.seed)
    # The backbone is frozen, so that it has learnt from no more images than before.
    before, _ = trained_before("previous", state, context)
    model = TrainedModel(
        classifier.cpu(),
        space,
        settings.size,
        inference.cache.side,
        settings.resize,
        rule,
        trained_on=before,
        learnt_from=np.union1d(before, training_hashes(train.hash_names)),
    )
    logits = np.empty((len(validation), space.width), np.float32)
    with torch.inference_mode():
        for rows, features in in_blocks(validation_features):
            logits[rows] = classifier.classify(torch.from_numpy(features)).numpy()
    predictions = Predictions.of(validation.ids, space, model.decision_rule.logits(logits), model=context.name)
    details = {"strengths": strengths, "network": network, "images": len(train), "size": settings.size}
    return StepResult(save_best(model, predictions, context), details={**details, "computed": computed})


STEP = Step(
    ProbeSettings,
    run,
    purpose="a linear model on the features of the frozen backbone",
    report=("size", "prior"),
    learns=True,
    computes=lambda settings: True,
)


def _some(train: Samples, images: int | None, context: Context) -> Samples:
    """Return about so many images of a training part, stratified over all heads."""
    if images is None or images >= len(train):
        return train
    parts = min(len(train), PARTS)
    fold = folds(train, parts, seed=context.seed)
    some = train.take(np.flatnonzero(fold < max(1, images * parts // len(train))))
    context.progress.line(f"  learns from {len(some):,} of {len(train):,} images")
    return some


def frozen_backbone(state: State, context: Context, *, size: int) -> Classifier:
    """Return the backbone of the state's model, or without one the plan's, under linear heads."""
    if state.model is None:
        return bare_classifier(state, context, size=size)
    before = TrainedModel.load(state.model).classifier.backbone
    unread = replace(context, model=context.model.without_weights())  # which would be replaced
    classifier = bare_classifier(state, unread, size=image_size(before))
    classifier.backbone.load_state_dict(before.state_dict())
    return classifier


def _views(settings: ProbeSettings, context: Context) -> list[View]:
    return [PLAIN, *(View(settings.augment, context.seed, number) for number in range(1, settings.views))]


def fit_heads(
    classifier: Classifier, views: Sequence[RowTable], samples: Samples, *, assumed: Floats, seed: int
) -> dict[str, float]:
    """Put logistic regressions into the last layer; return their strengths by head, the median of its tags.

    Features are (N, F) a view; `assumed` (W,) is the log of how much more frequent classes are where
    the model is used.
    """
    codes, weights = samples.codes(), samples.weights()
    linear = fit_linear(samples.space, views, codes, weights, seed=seed, assumed=assumed)
    with torch.no_grad():
        classifier.final.weight.copy_(torch.from_numpy(linear.coefficients))
        classifier.final.bias.copy_(torch.from_numpy(linear.intercepts))
    return {name: float(np.median(strengths)) for name, strengths in linear.strengths.items()}
