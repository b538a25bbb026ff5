"""The hardware that a step computes on: pinned by the plan, chosen earlier in the run, or the fastest by a trial."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from assay.files import write_json
from assay.images.decode import Resize
from assay.models.backbones import set_training_mode
from assay.models.boundary import Boundary, Upper
from assay.models.classifier import Classifier
from assay.predictions.inference import Inference, fastest_inference, move
from assay.progress import stage
from assay.steps.base import Context
from assay.steps.fit_settings import FitSettings
from assay.training.devices import Hardware, HardwareChoice, candidates, plan_trial
from assay.training.losses import head_losses
from assay.training.objective import Objective
from assay.training.processes import Machine
from assay.training.sources import LabelTensors


class InputSize(Protocol):
    """Settings with the size of images in pixels, and how they become squares."""

    @property
    def size(self) -> int: ...

    @property
    def resize(self) -> Resize: ...


def inference_for(classifier: Classifier, settings: InputSize, context: Context) -> Inference:
    """Return a classifier over the run's images at a size, on the hardware that is fastest for it."""
    hardware = stored_hardware(context, "inference")
    if hardware is None:
        with stage(context.progress, "timing the hardware"):
            images = len(context.as_read)
            choice = fastest_inference(classifier, size=settings.size, device=context.device, images=images)
        hardware = _stored(choice, "inference", context, images=images)
    move(classifier, hardware)
    return Inference(classifier, context.images(settings.size, settings.resize), settings.size, hardware)


def stored_hardware(context: Context, purpose: str) -> Hardware | None:
    """Return the hardware pinned by the plan, or chosen earlier in this run for this purpose and backbone, or None."""
    if context.pinned is not None:
        return context.pinned
    choices, key = _choices(context, purpose)
    choice = choices.get(key)
    if choice is None or choice["hardware"]["device"] != context.device:
        return None
    return Hardware(**choice["hardware"])


def _stored(choice: HardwareChoice, purpose: str, context: Context, *, images: int) -> Hardware:
    """Write a choice with the timings it rests on, so that a continued run makes the same one, and print it.

    `images` are those that it is made for.
    """
    choices, key = _choices(context, purpose)
    hardware, seconds = choice.hardware, choice.seconds
    stored = {"hardware": hardware.to_json(), "seconds a step": seconds, "images a step": choice.batch}
    write_json(context.run.hardware, choices | {key: stored | {"backbone": context.model.backbone}})
    name = f"{hardware.precision} {hardware.layout}"
    if not seconds:
        context.progress.line(f"  {purpose}: {name}, untimed, since {images:,} images are too few to repay a trial")
        return hardware
    timings = ", ".join(f"{option} {taken:.2f} s" for option, taken in seconds.items())
    expected = images / choice.batch * min(seconds.values())
    context.progress.line(
        f"  {purpose}: {name} is fastest here ({choice.batch} images: {timings}); timed in {choice.taken:.1f} s, "
        f"{choice.taken / expected:.1%} of what it is for"
    )
    return hardware


def _choices(context: Context, purpose: str) -> tuple[dict[str, Any], str]:
    """Return the choices stored in the run, and the key of one: its purpose, and any backbone but the first timed."""
    path, backbone = context.run.hardware, context.model.backbone
    choices: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    first = choices.get(purpose, {}).get("backbone", backbone)
    key = purpose if first == backbone else f"{purpose} of {backbone}"
    return choices, key


def training_hardware(
    settings: FitSettings,
    classifier: Classifier,
    known: LabelTensors,
    context: Context,
    *,
    boundary: Boundary | None = None,
) -> Hardware:
    """Return the hardware pinned or chosen for training, else the fastest by real optimiser steps of a copy.

    With a `boundary` these are of the stages above it.
    """
    # Without a backward pass through the backbone another precision or layout may be the fastest.
    purpose = "training of the head" if settings.freeze == "backbone" else "training"
    purpose = purpose if boundary is None else f"training above {boundary.name}"
    if (stored := stored_hardware(context, purpose)) is not None:
        return stored
    work = _training_images(settings, len(known.ids), context)
    trial = plan_trial(candidates(context.device), images=work, batch=settings.batch, repeats=2)
    rows = np.resize(np.arange(len(known.ids)), trial.batch)
    objective = Objective(known.space, head_losses(known.space, settings.loss))  # weights cost no time
    shape = (3, settings.size, settings.size) if boundary is None else boundary.shape
    images = torch.rand(trial.batch, *shape)

    def prepare(option: Hardware) -> Callable[[], object]:
        copied, machine = copy.deepcopy(classifier), Machine(context.processes, option)
        move(copied, option)
        set_training_mode(copied, settings.batch_norm)
        network = copied if boundary is None else Upper(copied.backbone, copied.head, boundary)
        optimizer = torch.optim.SGD([one for one in copied.parameters() if one.requires_grad], lr=0.0)

        def step() -> None:
            inputs = option.to_device(images)
            with option.autocast():
                logits = network(inputs)
            machine.backward(objective(logits, [known.of(rows).to(inputs.device)]).loss)
            machine.optimizer_step(network, optimizer, clip=None)

        return step

    with stage(context.progress, "timing the hardware"):
        choice = trial.choose(prepare)
    return _stored(choice, purpose, context, images=work)


UNTIMED = 160.0  # images/s of a network on two cores, where nothing was timed
BACKWARD = 4  # times as long as a prediction, about, a training image takes


def _training_images(settings: FitSettings, count: int, context: Context) -> int:
    """Return how many images a fit will train on: an estimate from the speed of inference where time ends it."""
    images = settings.epochs * count
    if settings.seconds is None:
        return images
    choices, key = _choices(context, "inference")
    timed = choices.get(key, {})
    speed = (
        timed.get("images a step", 32) / min(timed["seconds a step"].values())
        if timed.get("seconds a step")
        else UNTIMED
    )
    return min(images, int(settings.seconds * speed / BACKWARD))


def inference_hardware(context: Context) -> Hardware:
    """Return the hardware pinned or chosen for inference; that of the device without a choice."""
    return stored_hardware(context, "inference") or Hardware(context.device)
