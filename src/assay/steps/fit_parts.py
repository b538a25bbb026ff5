"""What a fit trains: the network that learns, the pictures or features it is fed, and the hardware they lie on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from assay.labels.samples import Samples
from assay.models.backbones import set_training_mode
from assay.models.classifier import Classifier
from assay.models.folding import folded
from assay.pixels.cache import Cache
from assay.predictions.inference import PLAIN, Inference, View, move
from assay.steps.fit_settings import FitSettings
from assay.steps.start import remember, remembered
from assay.steps.state import Context
from assay.training.hardware import Hardware, candidates, choose
from assay.training.loop import Source
from assay.training.losses import head_losses
from assay.training.machine import Machine
from assay.training.objective import Objective
from assay.training.sources import Features, Known, Pictures


@dataclass(frozen=True)
class Part:
    """The network that learns, what it is fed, and how it answers for validation pictures."""

    network: nn.Module
    source: Source
    answer: Callable[[], np.ndarray]  # logits (N, width) of the validation pictures
    hardware: Hardware


@contextmanager
def trained_parts(
    settings: FitSettings,
    classifier: Classifier,
    cache: Cache,
    train: Samples,
    validation: Samples,
    context: Context,
    *,
    soft: Sequence[npt.NDArray[np.float32] | None] | None = None,
) -> Iterator[Part]:
    """The head on cached features where the backbone is frozen; else the whole classifier on pictures."""
    known = Known(train, soft)
    if settings.freeze == "backbone":
        hardware = remembered(context, "inference") or Hardware(context.device)
        move(classifier, hardware)
        yield _head_part(settings, classifier, cache, known, validation, hardware, context)
        return
    with context.processes.main_process_first():  # the others take what it has chosen
        hardware = remembered(context, "training") or _fastest_training(settings, classifier, known, context)
    move(classifier, hardware)
    example = hardware.place(torch.rand(1, 3, settings.size, settings.size))
    source = Pictures(
        known, cache, settings.size, settings.augment, context.seed, context.number, hardware, settings.mix
    )
    inference = Inference(classifier, cache, settings.size, hardware)

    def answer() -> np.ndarray:
        return inference.logits(validation.ids)

    with folded(classifier.backbone, example) if settings.batch_norm == "frozen" else nullcontext():
        yield Part(classifier, source, answer, hardware)


def _head_part(
    settings: FitSettings,
    classifier: Classifier,
    cache: Cache,
    known: Known,
    validation: Samples,
    hardware: Hardware,
    context: Context,
) -> Part:
    inference = Inference(classifier, cache, settings.size, hardware)

    def features(ids: list[str], number: int) -> np.ndarray:
        view = View(settings.augment, context.seed, number) if number else PLAIN
        return inference.features(ids, folder=context.run / "cache", watch=context.watch, view=view)

    with context.processes.main_process_first():  # the others find the features on disk
        views = [features(known.ids, view) for view in range(settings.views)]
        shown = torch.from_numpy(np.array(features(validation.ids, 0)))

    def answer() -> np.ndarray:
        classifier.eval()
        with torch.inference_mode():
            logits: Tensor = classifier.head(hardware.place(shown))
            return logits.float().cpu().numpy()

    return Part(classifier.head, Features(known, views, hardware), answer, hardware)


def _fastest_training(settings: FitSettings, classifier: Classifier, known: Known, context: Context) -> Hardware:
    """Time real optimiser steps of a copy in each precision and layout, and remember the choice."""
    rows = np.resize(np.arange(len(known.ids)), settings.batch)
    objective = Objective(known.space, head_losses(known.space, settings.loss))  # weights cost no time
    pictures = torch.rand(settings.batch, 3, settings.size, settings.size)

    def prepare(option: Hardware) -> Callable[[], object]:
        trial = copy.deepcopy(classifier)
        move(trial, option)
        set_training_mode(trial, settings.batch_norm)
        trained = [p for p in trial.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.0)
        machine = Machine(context.processes, option)

        def step() -> None:
            inputs = option.place(pictures)
            with option.autocast():
                logits = trial(inputs)
            machine.backward(objective(logits, [known.of(rows).to(inputs.device)]).loss)
            machine.optimizer_step(trial, optimizer, clip=None)

        return step

    best, seconds = choose(candidates(context.device), prepare)
    remember(context, "training", best, seconds)
    return best
