"""What a step begins with: a classifier, and the hardware it runs on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from assay.arrays import Floats, Keys
from assay.errors import DataError, PlanError
from assay.files import ModelFolder, write_json
from assay.images.decode import Resize
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.labels.subset import labelled
from assay.models.backbones import built_with, image_size
from assay.models.classifier import Classifier, build_classifier, require_size
from assay.models.decision_rule import DecisionRule
from assay.models.ensemble import Model, load_model
from assay.models.layers import receptive_field
from assay.models.trained_model import TrainedModel, read_training_hashes
from assay.predictions.inference import Inference, fastest_inference, move
from assay.predictions.predict import Predictions
from assay.steps.base import Context, State
from assay.steps.sources import learnt_before, other_run, trained_on_at_start
from assay.training.devices import Hardware


class InputSize(Protocol):
    """The size, in pixels, at which images are shown, and how they become squares."""

    @property
    def size(self) -> int: ...

    @property
    def resize(self) -> Resize: ...


def labelled_parts(samples: Samples) -> tuple[Samples, Samples]:
    """The labelled training and validation images. Raises DataError where there is nothing to train on."""
    train, validation = (labelled(samples.part(side)) for side in ("train", "val"))
    if len(train) == 0:
        raise DataError("no training image has a known label. Label some, or change the split.")
    return train, validation


def classifier_for(start: str, state: State, context: Context, *, size: int) -> Classifier:
    """A classifier from `previous`, `pretrained`, or the model of another run.

    `size` of the images, in pixels, counts where it is built anew; a trained one keeps the size it was made for.
    The weights that the plan names are read only where nothing replaces them. The head is kept where the label
    space and the hidden layers are the same and it is linear; else it is new, and that is said.
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
    if saved.space == space and saved.classifier.hidden == fresh.hidden and saved.classifier.is_linear:
        fresh.load_state_dict(saved.classifier.state_dict())
    else:
        fresh.backbone.load_state_dict(saved.classifier.backbone.state_dict())
        why = "has other classes or hidden layers" if saved.classifier.is_linear else "has a head that is not linear"
        context.progress.line(f"  the head is new: the model started from {why}")
    return fresh


def describe_network(classifier: Classifier, context: Context, *, size: int) -> dict[str, Any]:
    """Parameters, total stride and receptive field of the network, for done.json; said in a line too.

    Raises ModelError where it cannot take images of this size.
    """
    require_size(classifier, size)
    found = receptive_field(classifier.backbone, size=size).to_json()
    field = found["receptive_field"]
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    context.progress.line(
        f"  {classifier.backbone_name}: {parameters:,} parameters, total stride {found['stride']}, receptive field "
        f"{'the whole image' if field is None else f'{field:,} pixels'}"
    )
    return {"backbone": classifier.backbone_name, "parameters": parameters, **found}


def bare_classifier(state: State, context: Context, *, size: int) -> Classifier:
    """The backbone that the plan begins with, for images of a size, under linear heads."""
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
    """The model to go on from; None where it is built anew, with the weights that the plan names."""
    if start == "pretrained":
        return None
    return state.model if start == "previous" else other_run(start, context.base)


def inference_for(classifier: Classifier, shown: InputSize, context: Context) -> Inference:
    """A classifier, on the hardware found fastest for it, over the run's images at a size."""
    hardware = stored_hardware(context, "inference")
    if hardware is None:
        hardware, seconds = fastest_inference(classifier, size=shown.size, device=context.device)
        store_hardware(context, "inference", hardware, seconds)
    move(classifier, hardware)
    return Inference(classifier, context.images(shown.size, shown.resize), shown.size, hardware)


def stored_hardware(context: Context, purpose: str) -> Hardware | None:
    """The hardware pinned by the plan, or chosen earlier in this run for this purpose and backbone."""
    if context.pinned is not None:
        return context.pinned
    choices = _stored_choices(context)
    chosen = choices.get(_entry(choices, context, purpose))
    if chosen is None or chosen["hardware"]["device"] != context.device:
        return None
    return Hardware(**chosen["hardware"])


def store_hardware(context: Context, purpose: str, hardware: Hardware, seconds: dict[str, float]) -> None:
    """Store a choice with the timings it rests on, so that continuing makes the same one."""
    choice = {"hardware": hardware.to_json(), "seconds a step": seconds, "backbone": context.model.backbone}
    choices = _stored_choices(context)
    write_json(_path(context), choices | {_entry(choices, context, purpose): choice})
    timings = ", ".join(f"{name} {taken:.2f} s" for name, taken in seconds.items())
    context.progress.line(f"  {purpose}: {hardware.precision} {hardware.layout} is fastest here (a step: {timings})")


def _entry(choices: dict[str, Any], context: Context, purpose: str) -> str:
    """Where a choice stands: under its purpose, or, for a member of another backbone, under that too."""
    first = choices.get(purpose, {}).get("backbone", context.model.backbone)
    return purpose if first == context.model.backbone else f"{purpose} of {context.model.backbone}"


def _stored_choices(context: Context) -> dict[str, Any]:
    path = _path(context)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _path(context: Context) -> Path:
    return context.run.hardware


# What a step begins with that decides anew what a model's answers mean: the model, and its validation answers.


@dataclass(frozen=True)
class Validated:
    """A model and its answers for the labelled validation images."""

    saved: Model
    samples: Samples
    predictions: Predictions

    @staticmethod
    def of(state: State, *, step: str) -> Validated:
        """Read them. Raises PlanError where no step has made a model, DataError where nothing validates."""
        if state.model is None:
            raise PlanError(f"{step}: there is no model yet. Put a probe or a fit before it.")
        samples = labelled(state.samples.part("val"))
        if len(samples) == 0:
            raise DataError(
                f"{step}: it chooses on validation images, and none has a known label. "
                "Raise split.val, label some, or take the step out of the plan."
            )
        predictions = Predictions.read(ModelFolder(state.model).predictions, state.samples.space, model=step)
        return Validated(load_model(state.model), samples, predictions)

    def write(self, deciding: DecisionRule, *, logits: Floats, thresholds: Floats, context: Context) -> Path:
        """The model as it decides now, and validation answers (N, W) that did not choose for themselves."""
        folder = context.folder.path / "best"
        space, ids = self.samples.space, self.predictions.ids
        Predictions.of(ids, space, logits, model=context.name, thresholds=thresholds).write(
            folder / "predictions.parquet"
        )
        replace(self.saved, decision_rule=deciding).save(folder)
        return folder


def heads_named(space: LabelSpace, names: Sequence[str] | None, *, step: str) -> list[tuple[int, Head, slice]]:
    """Position, head and columns of the heads named, or of all. Raises PlanError where a name is no head."""
    known = [head.name for head in space]
    for name in names or ():
        if name not in known:
            raise PlanError(f"{step}: heads: {name!r} is no head of this data. Its heads are: {', '.join(known)}.")
    found = enumerate(zip(space, space.slices, strict=True))
    return [(place, head, columns) for place, (head, columns) in found if names is None or head.name in names]
