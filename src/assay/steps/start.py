"""What steps begin with: labelled images, a classifier, or a model with its predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from assay.arrays import Floats, Keys
from assay.errors import DataError, PlanError
from assay.files import ModelFolder
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import labelled
from assay.models.backbones import built_with, image_size
from assay.models.classifier import Classifier, build_classifier, require_size
from assay.models.decision_rule import DecisionRule
from assay.models.ensemble import Model, load_model
from assay.models.layers import receptive_field
from assay.models.trained_model import TrainedModel, read_training_hashes
from assay.models.uncertainty import Uncertainty
from assay.predictions.predict import Predictions, read_logits, write_logits
from assay.steps.base import Context, State
from assay.steps.sources import learnt_before, other_run, trained_on_at_start


def labelled_parts(samples: Samples) -> tuple[Samples, Samples]:
    """Return the labelled training and validation images. Raises DataError where there is nothing to train on."""
    train, validation = (labelled(samples.part(side)) for side in ("train", "val"))
    if len(train) == 0:
        raise DataError("no training image has a known label. Label some, or change the split.")
    return train, validation


def classifier_for(start: str, state: State, context: Context, *, size: int) -> Classifier:
    """Return a classifier from `previous`, `pretrained`, or the model of another run.

    `size` of the images, in pixels, counts where it is built anew; a trained one keeps the size it was made for.
    The weights that the plan names are read only where nothing replaces them. The head is kept where it is linear and
    the label space and hidden layers are the same; else it is new, and a line says so.
    """
    space, settings = state.samples.space, context.model
    folder = _started_from(start, state, context)
    if folder is None:
        return build_classifier(settings, space, seed=context.seed, base=context.base, size=size)
    saved = TrainedModel.load(folder)
    if saved.classifier.backbone_name != settings.backbone:
        raise PlanError(
            f"start: {start}: its backbone is {saved.classifier.backbone_name} and the plan's is "
            f"{settings.backbone}. Name the same backbone under model, or start: pretrained."
        )
    made_for = image_size(saved.classifier.backbone)
    bare = settings.without_weights()
    fresh = build_classifier(bare, space, seed=context.seed, base=context.base, size=made_for)
    before, now = built_with(saved.classifier.backbone), built_with(fresh.backbone)
    if before != now:
        other = ", ".join(f"{name}: {value}" for name, value in before.items() if now[name] != value)
        raise PlanError(
            f"start: {start}: its backbone was built with {other}, and the plan's options are others. "
            "Give the same options under model, or start: pretrained."
        )
    same = saved.classifier.hidden == fresh.hidden and saved.classifier.feature_count == fresh.feature_count
    if saved.space == space and same and saved.classifier.is_linear:
        fresh.load_state_dict(saved.classifier.state_dict())
    else:
        fresh.backbone.load_state_dict(saved.classifier.backbone.state_dict())
        other = "has other classes, features or hidden layers"
        why = other if saved.classifier.is_linear else "has a head that is not linear"
        context.progress.line(f"  the head is new: the model started from {why}")
    return fresh


def describe_network(classifier: Classifier, context: Context, *, size: int) -> dict[str, object]:
    """Return parameters, total stride and receptive field of the network, for done.json; print them once a run.

    Raises ModelError where it cannot take images of this size.
    """
    require_size(classifier, size)
    described = receptive_field(classifier.backbone, size=size).to_json()
    field = described["receptive_field"]
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    network: dict[str, object] = {"backbone": classifier.backbone_name, "parameters": parameters, **described}
    if not _is_printed(network, context):
        context.progress.line(
            f"  {classifier.backbone_name}: {parameters:,} parameters, total stride {described['stride']}, receptive "
            f"field {'the whole image' if field is None else f'{field:,} pixels'}"
        )
    return network


def _is_printed(network: Mapping[str, object], context: Context) -> bool:
    """Return whether an earlier step of the run described the same network."""
    files = (context.run.step(name).done for name in context.run.steps_done())
    return any(json.loads(file.read_bytes()).get("details", {}).get("network") == network for file in files)


def bare_classifier(state: State, context: Context, *, size: int) -> Classifier:
    """Return the backbone that the plan begins with, for images of a size, under linear heads."""
    settings = context.model.model_copy(update={"head": type(context.model.head)()})
    return build_classifier(settings, state.samples.space, seed=context.seed, base=context.base, size=size)


def trained_before(start: str, state: State, context: Context) -> tuple[Keys, Keys]:
    """Return the images whose labels `classifier_for` was trained on: its backbone, and any layer that it keeps."""
    folder = _started_from(start, state, context)
    if folder is None:
        backbone = trained_on_at_start(context.model, context.base, context.run.path)
        return backbone, backbone  # the head is new
    return read_training_hashes(folder), learnt_before(folder, state.samples.space)


def _started_from(start: str, state: State, context: Context) -> Path | None:
    """Return the model to go on from; None where it is built anew, with the weights that the plan names."""
    if start == "pretrained":
        return None
    return state.model if start == "previous" else other_run(start, context.base)


def save_best(model: Model, predictions: Predictions, context: Context) -> Path:
    """Write a model and its validation predictions to best/ of the step, and return that folder."""
    best = context.folder.best
    predictions.write(best.predictions)
    model.save(best.path)
    return best.path


# For steps that change a decision rule by validation: the model, and its validation predictions.


@dataclass(frozen=True)
class Validated:
    """A model, and its logits (N, W) and thresholds, (W,) or (N, W), of the labelled validation images."""

    model: Model
    samples: Samples
    ids: list[str]
    logits: Floats
    thresholds: Floats
    step: str  # for which they are read

    @staticmethod
    def of(state: State, *, step: str) -> Validated:
        """Read them. Raises PlanError where no step has made a model, DataError without validation images."""
        if state.model is None:
            raise PlanError(f"{step}: there is no model yet. Put a probe or a fit before it.")
        samples = labelled(state.samples.part("val"))
        if len(samples) == 0:
            raise DataError(
                f"{step}: it chooses on validation images, and none has a known label. "
                "Raise split.val, label some, or take the step out of the plan."
            )
        read = read_logits(ModelFolder(state.model).predictions, state.samples.space)
        return Validated(load_model(state.model), samples, *read, step)

    @cached_property
    def predictions(self) -> Predictions:
        """The predictions, with probabilities: of 50,000 images and 1,000 classes 200 MB more."""
        return Predictions.of(self.ids, self.samples.space, self.logits, model=self.step, thresholds=self.thresholds)

    def write(
        self,
        rule: DecisionRule,
        *,
        logits: Floats,
        thresholds: Floats,
        context: Context,
        uncertainty: Uncertainty | None = None,
    ) -> Path:
        """Write the model with another decision rule to best/, with cross-fitted validation predictions (N, W)."""
        best = context.folder.best
        write_logits(best.predictions, self.ids, logits, thresholds)
        replace(self.model, decision_rule=rule, uncertainty=uncertainty).save(best.path)
        return best.path


def heads_named(space: LabelSpace, names: Sequence[str] | None, *, step: str) -> list[tuple[int, Head, slice]]:
    """Return index, head and columns of the heads named, or of all. Raises PlanError where a name is no head."""
    known = [head.name for head in space]
    for name in names or ():
        if name not in known:
            raise PlanError(f"{step}: heads: {name!r} is no head of this data. Its heads are: {', '.join(known)}.")
    heads = [(index, head, columns) for index, (head, columns) in enumerate(space.each())]
    return [one for one in heads if names is None or one[1].name in names]
