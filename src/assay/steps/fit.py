"""fit: train the classifier, all of it or its upper part."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from assay.balance.class_weights import ClassWeights, shift_of, weights_of
from assay.errors import PlanError
from assay.figures.metrics import higher_is_better, probabilities_of, stream
from assay.labels.samples import Samples
from assay.models.backbones import freeze, set_training_mode, stages
from assay.models.classifier import Classifier, require_size
from assay.models.deciding import Deciding
from assay.models.folding import folded
from assay.models.saved import Saved
from assay.models.seen import seen
from assay.pixels.augment import Augment
from assay.pixels.cache import Cache
from assay.pixels.decode import Resize
from assay.pixels.mix import Mix
from assay.predictions.inference import PLAIN, Inference, View, move
from assay.predictions.predict import Predictions
from assay.settings import Settings
from assay.steps.history import write_history
from assay.steps.start import classifier_for, labelled_parts, remember, remembered, seen_by
from assay.steps.state import Context, State, StepResult
from assay.training import optimizers
from assay.training.hardware import Hardware, candidates, choose
from assay.training.loop import Course, Job, Source, fit
from assay.training.losses import ByHead, LossSettings, head_losses
from assay.training.machine import Machine
from assay.training.objective import Objective
from assay.training.optimizers import AdamW, OptimizerSettings
from assay.training.schedules import OneCycle, ScheduleSettings
from assay.training.sources import Features, Known, Pictures

Positive = Annotated[float, Field(gt=0)]


class FitSettings(Settings):
    """Train on the labelled training pictures; validation chooses the epoch that is handed on."""

    size: int = Field(128, ge=16, description="Pictures are trained on at size x size pixels.")
    resize: Resize = Resize()
    epochs: int = Field(8, ge=1)
    batch: int = Field(32, ge=1, description="Pictures a forward pass.")
    accumulate: int = Field(1, ge=1, description="Forward passes an optimiser step.")
    start: str = Field("previous", description="previous, pretrained, or the folder of a run")
    freeze: Literal["none", "backbone", "all_but_last_stage"] | int = Field(
        "none",
        description="What does not learn: nothing, the backbone, all but its last stage, or its first n stages.",
    )
    batch_norm: Literal["frozen", "train"] = Field(
        "frozen",
        description="Whether batch-norm keeps the statistics it came with, or takes those of each batch.",
    )
    views: int = Field(1, ge=1, description="Cached views a picture of a frozen backbone; further ones are augmented.")
    optimizer: OptimizerSettings = AdamW()
    lr: float = Field(5e-4, gt=0, description="Top learning rate.")
    discriminative: tuple[Positive, Positive] | None = Field(
        None,
        description="Top learning rates of the first and the last stage; those between are spaced geometrically.",
    )
    schedule: ScheduleSettings = OneCycle()
    loss: LossSettings = ByHead()
    class_weights: ClassWeights | None = Field(
        None, description="Weights of classes in the loss; the prior they shift is set right again at prediction."
    )
    head_weights: dict[str, Positive] = Field({}, description="What the loss of a head counts, where that is not 1.")
    augment: Augment | None = None
    mix: Mix | None = None
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of an average of the weights, used for all figures.")
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient.")
    monitor: str = Field("loss", description="The validation figure that chooses the best epoch.")
    early_stop: int | None = Field(None, ge=1, description="Epochs without a better figure after which to stop.")
    take: Literal["best", "last"] = Field("best", description="The epoch that is handed on.")
    keep: Literal["both", "best", "last"] = Field("both", description="The checkpoints that stay on disk.")

    @model_validator(mode="after")
    def _consistent(self) -> FitSettings:
        if self.keep not in ("both", self.take):
            raise ValueError(f"take: {self.take} hands on what keep: {self.keep} does not keep; make them the same")
        if self.freeze == "backbone" and self.augment is not None and self.views == 1:
            raise ValueError("freeze: backbone with views: 1 trains on plain pictures; raise views, or drop augment")
        if self.freeze == "backbone" and self.mix is not None:
            raise ValueError(
                "mix mixes pictures, and a frozen backbone trains on cached features; drop mix, or freeze less"
            )
        if self.freeze != "backbone" and self.views > 1:
            raise ValueError("views are cached features of a frozen backbone; set freeze: backbone, or drop views")
        return self


@dataclass(frozen=True)
class Part:
    """The network that learns, what it is fed, and how it answers for validation pictures."""

    network: nn.Module
    source: Source
    answer: Callable[[], np.ndarray]  # logits (N, width) of the validation pictures
    hardware: Hardware


def run(settings: FitSettings, state: State, context: Context) -> StepResult:
    """Train; the checkpoints lie in best/ and last/ as models that can be loaded by themselves."""
    train, validation = labelled_parts(state.samples)
    with context.processes.main_process_first():  # the others find the cache made
        cache = context.pictures(settings.size, settings.resize)
    classifier = classifier_for(settings.start, state, context, size=settings.size)
    require_size(classifier, settings.size)
    freeze(classifier, settings.freeze)
    objective, deciding = _objective(settings, train)
    trained_on = seen_by(settings.start, state, context)
    if settings.freeze != "backbone":
        trained_on = np.union1d(trained_on, seen(train.hashes))
    space = state.samples.space
    saved = Saved(classifier, space, settings.size, cache.side, settings.resize, deciding, trained_on=trained_on)
    with _parts(settings, classifier, cache, train, validation, context) as part:
        job = _job(settings, saved, objective, part, train, validation, context)
        machine = Machine(context.processes, part.hardware)
        course = _course(settings, train, context)
        checkpoint = context.folder / "checkpoint.safetensors"
        context.watch.begin(context.name, settings.epochs * len(train))
        progress = fit(job, course, machine=machine, checkpoint=checkpoint, watch=context.watch)
        context.watch.end()
    if context.processes.is_main_process:
        write_history(context.folder / "history.csv", context.name, progress.history)
        checkpoint.unlink(missing_ok=True)
    details = {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "training_seconds": round(progress.seconds, 2),
        "pictures_per_second": round(len(train) * progress.epoch / max(progress.seconds, 1e-9), 1),
        "hardware": part.hardware.to_json(),
    }
    return StepResult(context.folder / settings.take, details=details)


@contextmanager
def _parts(
    settings: FitSettings,
    classifier: Classifier,
    cache: Cache,
    train: Samples,
    validation: Samples,
    context: Context,
) -> Iterator[Part]:
    """The head on cached features where the backbone is frozen; else the whole classifier on pictures."""
    known = Known(train)
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


def _job(
    settings: FitSettings,
    saved: Saved,
    objective: Objective,
    part: Part,
    train: Samples,
    validation: Samples,
    context: Context,
) -> Job:
    space, classifier, deciding = saved.space, saved.classifier, saved.deciding
    train_codes, validation_codes = train.codes(), validation.codes()
    judged = Known(validation).of(np.arange(len(validation)))
    newest: list[Predictions] = []  # of validation, by the weights about to be saved

    def evaluate(training_logits: Tensor) -> dict[str, dict[str, float]]:
        seen = probabilities_of(space, deciding.logits(training_logits.numpy()))
        figures = {"training": dict(stream(space, train_codes, seen))}
        raw = part.answer()
        newest[:] = [Predictions.of(validation.ids, space, deciding.logits(raw), model=context.name)]
        figures["validation"] = dict(stream(space, validation_codes, newest[0].probabilities))
        if len(validation):
            figures["validation"]["loss"] = float(objective(torch.from_numpy(raw), [judged]).loss)
        return figures

    def save(which: Literal["best", "last"]) -> None:
        if settings.keep in ("both", which):
            newest[0].write(context.folder / which / "predictions.parquet")
            saved.save(context.folder / which)

    groups = optimizers.parameter_groups(
        part.network,
        _stage_names(classifier, part.network),
        lr=settings.lr,
        discriminative=settings.discriminative,
        weight_decay=settings.optimizer.weight_decay,
    )
    return Job(
        network=part.network,
        optimizer=optimizers.build(settings.optimizer, groups, lr=settings.lr),
        source=part.source,
        objective=objective,
        to_training_mode=lambda: set_training_mode(classifier, settings.batch_norm),
        evaluate=evaluate,
        save=save,
    )


def _objective(settings: FitSettings, train: Samples) -> tuple[Objective, Deciding]:
    """The loss over all heads, and how logits are to be read that were learnt under it."""
    space, deciding = train.space, Deciding.plain(train.space)
    weights = None
    if settings.class_weights is not None:
        by_head = weights_of(settings.class_weights, train)
        weights = [torch.from_numpy(own) for own in by_head]
        deciding = replace(deciding, shift=shift_of(space, by_head))
    strange = settings.head_weights.keys() - {head.name for head in space}
    if strange:
        heads = ", ".join(head.name for head in space)
        raise PlanError(f"head_weights: there is no head {min(strange)!r}. There are: {heads}.")
    factors = tuple(settings.head_weights.get(head.name, 1.0) for head in space)
    return Objective(space, head_losses(space, settings.loss, class_weights=weights), factors), deciding


def _course(settings: FitSettings, train: Samples, context: Context) -> Course:
    return Course(
        epochs=settings.epochs,
        batch=settings.batch,
        seed=int(np.random.SeedSequence([context.seed, context.number]).generate_state(1)[0]),
        width=train.space.width,
        schedule=settings.schedule,
        monitor=settings.monitor,
        higher_is_better=higher_is_better(settings.monitor),
        accumulate=settings.accumulate,
        clip=settings.clip,
        ema=settings.ema,
        patience=settings.early_stop,
    )


def _stage_names(classifier: Classifier, network: nn.Module) -> list[list[str]]:
    """Parameter names of the network that learns, from the first stage to the head."""
    if network is classifier.head:
        return [[name for name, _ in network.named_parameters()]]
    below = [[f"backbone.{name}" for name in stage.parameters] for stage in stages(classifier.backbone)]
    return [*below, [f"head.{name}" for name, _ in classifier.head.named_parameters()]]


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
