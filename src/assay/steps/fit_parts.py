"""What a fit trains: the network that learns, the images or features it is fed, and the hardware they lie on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from assay.arrays import Floats
from assay.errors import PlanError
from assay.images.cache import Cache
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.subset import partly_unknown
from assay.models.backbones import set_training_mode
from assay.models.classifier import Classifier
from assay.models.decision_rule import DecisionRule
from assay.models.folding import fold_batch_norm
from assay.predictions.inference import PLAIN, Inference, View, move
from assay.progress import Progress
from assay.steps.base import Context
from assay.steps.fit_settings import FitSettings, SamplingPlan
from assay.steps.start import store_hardware, stored_hardware
from assay.training.devices import Hardware, Machine, candidates, choose_fastest
from assay.training.fit_task import Source
from assay.training.losses import AnyLoss, ByHead, CrossEntropy, head_losses
from assay.training.objective import Objective
from assay.training.sampling import Order
from assay.training.semi_supervised import Consistency, PseudoLabelSelector, Views
from assay.training.sources import FeatureSource, ImageSource, LabelTensors


@dataclass(frozen=True)
class Trainable:
    """The network that learns, what it is fed in what order, and how it answers for validation images."""

    network: nn.Module
    source: Source
    order: Order
    answer: Callable[[], np.ndarray]  # logits (N, width) of the validation images
    hardware: Hardware


@contextmanager
def trainable(
    settings: FitSettings,
    classifier: Classifier,
    cache: Cache,
    train: Samples,
    validation: Samples,
    context: Context,
    balance: SamplingPlan,
    *,
    soft: Sequence[Floats | None] | None = None,
) -> Iterator[Trainable]:
    """The head on cached features where the backbone is frozen; else the whole classifier on images."""
    known = LabelTensors(train, soft)
    if settings.freeze == "backbone":
        hardware = stored_hardware(context, "inference") or Hardware(context.device)
        move(classifier, hardware)
        yield _head_part(settings, classifier, cache, known, validation, hardware, context, balance)
        return
    with context.processes.main_process_first():  # the others take what it has chosen
        hardware = stored_hardware(context, "training") or _fastest_training(settings, classifier, known, context)
    move(classifier, hardware)
    drawn = torch.Generator().manual_seed(0)  # the same in every process: what is folded must not hang on chance
    example = hardware.to_device(torch.rand(1, 3, settings.size, settings.size, generator=drawn))
    source = ImageSource(
        known=known,
        cache=cache,
        size=settings.size,
        augment=settings.augment,
        seed=context.seed,
        step=context.number,
        hardware=hardware,
        mix=settings.mix,
        chosen=balance.chosen,
    )
    inference = Inference(classifier, cache, settings.size, hardware)

    def answer() -> np.ndarray:
        return inference.logits(validation.ids)

    with fold_batch_norm(classifier.backbone, example) if settings.batch_norm == "frozen" else nullcontext():
        yield Trainable(classifier, source, balance.order, answer, hardware)


def unlabelled_images(settings: FitSettings, samples: Samples, progress: Progress) -> Samples | None:
    """The training images with an unknown label, if the fit is to use them; that there are none is said."""
    if settings.unlabelled is None:
        return None
    _require_reachable(settings.unlabelled.threshold, settings.loss, samples.space)
    found = partly_unknown(samples.part("train"))
    if len(found) == 0:
        progress.line("  unlabelled: every label of the training images is known, so the fit learns from these alone")
        return None
    return found


def consistency(
    settings: FitSettings,
    part: Trainable,
    unlabelled: Samples | None,
    *,
    known: Samples,
    cache: Cache,
    objective: Objective,
    deciding: DecisionRule,
    context: Context,
) -> Consistency | None:
    """What the images with unknown labels add to the training of a part; None where the fit leaves them out."""
    own = settings.unlabelled
    if own is None or unlabelled is None:
        return None
    weak, strong = own.views(settings.augment)
    views = Views(unlabelled.ids, cache, settings.size, weak, strong, context.seed, context.number, part.hardware)
    of_heads = zip(unlabelled.space, known.codes(), unlabelled.codes(), strict=True)
    judges = [PseudoLabelSelector(head, labels, codes, own) for head, labels, codes in of_heads]
    weights = torch.from_numpy(unlabelled.weights())
    return Consistency(part.network, views, judges, weights, objective, deciding, own, settings.batch)


def _require_reachable(threshold: float, loss: AnyLoss, space: LabelSpace) -> None:
    """Raise PlanError where smoothed labels teach to stay below the threshold, so that nothing would be learnt from."""
    smoothing = loss.smoothing if isinstance(loss, ByHead | CrossEntropy) else 0.0
    for head in space:
        most = 1 - smoothing * (1 - 1 / (head.size if head.kind == "multiclass" else 2))
        if most < threshold:
            raise PlanError(
                f"unlabelled: smoothing {smoothing:g} teaches head {head.name!r} to be sure by {most:.3f} at most, and "
                f"threshold {threshold:g} is above that. Lower one of the two."
            )


def _head_part(
    settings: FitSettings,
    classifier: Classifier,
    cache: Cache,
    known: LabelTensors,
    validation: Samples,
    hardware: Hardware,
    context: Context,
    balance: SamplingPlan,
) -> Trainable:
    inference = Inference(classifier, cache, settings.size, hardware)
    chosen = None if balance.chosen is None else dict(zip(known.ids, balance.chosen.tolist(), strict=True))

    def features(ids: list[str], number: int) -> np.ndarray:
        view = View(settings.augment, context.seed, number, chosen=chosen) if number else PLAIN
        return inference.features(ids, folder=context.run.cache, progress=context.progress, view=view)

    with context.processes.main_process_first():  # the others find the features on disk
        views = [features(known.ids, view) for view in range(settings.views)]
        shown = torch.from_numpy(np.array(features(validation.ids, 0)))

    def answer() -> np.ndarray:
        classifier.eval()
        with torch.inference_mode():
            logits: Tensor = classifier.head(hardware.to_device(shown))
            return logits.float().cpu().numpy()

    return Trainable(classifier.head, FeatureSource(known, views, hardware), balance.order, answer, hardware)


def _fastest_training(settings: FitSettings, classifier: Classifier, known: LabelTensors, context: Context) -> Hardware:
    """Time real optimiser steps of a copy in each precision and layout, and remember the choice."""
    rows = np.resize(np.arange(len(known.ids)), settings.batch)
    objective = Objective(known.space, head_losses(known.space, settings.loss))  # weights cost no time
    images = torch.rand(settings.batch, 3, settings.size, settings.size)

    def prepare(option: Hardware) -> Callable[[], object]:
        trial = copy.deepcopy(classifier)
        move(trial, option)
        set_training_mode(trial, settings.batch_norm)
        trained = [p for p in trial.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.0)
        machine = Machine(context.processes, option)

        def step() -> None:
            inputs = option.to_device(images)
            with option.autocast():
                logits = trial(inputs)
            machine.backward(objective(logits, [known.of(rows).to(inputs.device)]).loss)
            machine.optimizer_step(trial, optimizer, clip=None)

        return step

    best, seconds = choose_fastest(candidates(context.device), prepare)
    store_hardware(context, "training", best, seconds)
    return best
