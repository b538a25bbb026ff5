"""fit: train the classifier, all of it or its upper part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from assay.arrays import Ints
from assay.labels.samples import Samples
from assay.metrics.metrics import higher_is_better, probabilities_of, stream
from assay.models.backbones import freeze, set_training_mode, stages
from assay.models.classifier import Classifier
from assay.models.trained_model import TrainedModel, training_hashes
from assay.predictions.predict import Predictions
from assay.steps.base import Context, State, StepResult, write_history
from assay.steps.fit_parts import Trainable, consistency, trainable, unlabelled_images
from assay.steps.fit_settings import FitObjective, FitSettings, fit_objective, sampling_plan
from assay.steps.pseudo_label import soft_targets
from assay.steps.start import classifier_for, describe_network, labelled_parts, trained_before
from assay.training import optimizers
from assay.training.devices import Machine, warm_seconds
from assay.training.fit_task import EpochLogits, FitConfig, FitState, FitTask
from assay.training.loop import fit, optimizer_step
from assay.training.sampling import Order, split_batches
from assay.training.semi_supervised import Consistency
from assay.training.sources import ImageSource, LabelTensors, mix_counts, mix_lines


@dataclass(frozen=True)
class PreparedFit:
    """A fit that may begin: what is trained, for how long and on what, and what it is trained from."""

    job: FitTask
    course: FitConfig
    machine: Machine
    train: Samples
    waiting: Samples | None  # training images with unknown labels, where it learns from them
    network: dict[str, Any]  # described


@contextmanager
def prepared_fit(settings: FitSettings, state: State, context: Context) -> Iterator[PreparedFit]:
    """Within the block everything is there for `loop.fit`. Raises AssayError for what the user can mend."""
    train, validation = labelled_parts(state.samples)
    waiting = unlabelled_images(settings, state.samples, context.progress)
    with context.processes.main_process_first():  # the others find the cache made
        cache = context.images(settings.size, settings.resize)
    classifier = classifier_for(settings.start, state, context, size=settings.size)
    network = describe_network(classifier, context, size=settings.size)
    freeze(classifier, settings.freeze)
    course = fit_config(settings, train, context)
    balance = sampling_plan(settings, train, seed=course.seed)
    aim = fit_objective(settings, train, balance)
    trained_on, learnt_from = trained_before(settings.start, state, context)
    if settings.freeze != "backbone":
        trained_on = np.union1d(trained_on, training_hashes(train.hashes))
    learnt_from = np.union1d(learnt_from, training_hashes(train.hashes))
    saved = TrainedModel(
        classifier,
        state.samples.space,
        settings.size,
        cache.side,
        settings.resize,
        aim.deciding,
        trained_on=trained_on,
        learnt_from=learnt_from,
    )
    soft = soft_targets(state.soft, train)
    with trainable(settings, classifier, cache, train, validation, context, balance, soft=soft) as part:
        job = _job(settings, saved, aim, part, train, validation, context)
        further = consistency(
            settings,
            part,
            waiting,
            known=train,
            cache=cache,
            objective=aim.shown,
            deciding=aim.deciding,
            context=context,
        )
        machine = Machine(context.processes, part.hardware)
        yield PreparedFit(replace(job, unlabelled=further), course, machine, train, waiting, network)


def step_seconds(begun: PreparedFit) -> float:
    """Return the seconds of a warm optimiser step, one that learns from all its images with unknown labels."""
    job, machine, unlabelled = begun.job, begun.machine, begun.job.unlabelled
    (rows, *_) = split_batches(job.order.rows(0), begun.course.step_size)
    answered, forward = EpochLogits.empty(len(job.source.ids), begun.course.width), machine.wrap(job.network)
    optimizers.set_rate(job.optimizer, 0.0)  # the weights stay
    job.to_training_mode()
    if isinstance(unlabelled, Consistency):
        for judge in unlabelled.selectors:
            judge.settings = judge.settings.model_copy(update={"threshold": 1e-9})

    def step() -> None:
        if isinstance(unlabelled, Consistency):
            unlabelled.round = unlabelled.taken = 0  # the same images, which are decoded by now
        heads = len(job.objective.losses)
        state = FitState(sums=[0.0] * heads, counts=[0.0] * heads)
        optimizer_step(job, begun.course, state, machine, forward, rows, answered)

    with torch.random.fork_rng(devices=machine.seeded_devices):
        return warm_seconds(step, machine.hardware)


def run(settings: FitSettings, state: State, context: Context) -> StepResult:
    """Train; the checkpoints lie in best/ and last/ as models that can be loaded by themselves."""
    checkpoint = context.folder.checkpoint
    with prepared_fit(settings, state, context) as begun:
        job, course, machine = begun.job, begun.course, begun.machine
        _tell_order(job.order, begun.train, context)
        context.progress.begin(context.name, settings.epochs * job.order.length)
        progress = fit(job, course, machine=machine, checkpoint=checkpoint, progress=context.progress)
        context.progress.end()
    if context.processes.is_main_process:
        write_history(context.folder.history, context.name, progress.history)
        checkpoint.unlink(missing_ok=True)
    shown = job.order.length * progress.epoch
    details = {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "images_an_epoch": job.order.length,
        "training_seconds": round(progress.seconds, 2),
        "images_per_second": round(shown / max(progress.seconds, 1e-9), 1),
        "hardware": machine.hardware.to_json(),
        "network": begun.network,
        **_mixed(job, course, begun.train, progress.epoch, context),
    }
    if settings.unlabelled is not None:
        details["unlabelled_images"] = len(begun.waiting or ())
    return StepResult(context.folder.path / settings.take, details=details)


def _job(
    settings: FitSettings,
    saved: TrainedModel,
    aim: FitObjective,
    part: Trainable,
    train: Samples,
    validation: Samples,
    context: Context,
) -> FitTask:
    space, classifier, deciding = saved.space, saved.classifier, saved.decision_rule
    train_codes, validation_codes = train.codes(), validation.codes()
    judged = LabelTensors(validation).of(np.arange(len(validation)))
    newest: list[Predictions] = []  # of validation, by the weights about to be saved

    def evaluate(shown: Ints, training_logits: Tensor) -> dict[str, dict[str, float]]:
        seen = probabilities_of(space, deciding.logits(training_logits.numpy()))
        metrics = {"training": dict(stream(space, [codes[shown] for codes in train_codes], seen))}
        raw = part.answer()
        newest[:] = [Predictions.of(validation.ids, space, deciding.logits(raw), model=context.name)]
        metrics["validation"] = dict(stream(space, validation_codes, newest[0].probabilities))
        if len(validation):
            metrics["validation"]["loss"] = float(aim.once(torch.from_numpy(raw), [judged]).loss)
        return metrics

    def save(which: Literal["best", "last"]) -> None:
        if settings.keep in ("both", which):
            newest[0].write(context.folder.path / which / "predictions.parquet")
            saved.save(context.folder.path / which)

    groups = optimizers.parameter_groups(
        part.network,
        _stage_names(classifier, part.network),
        lr=settings.lr,
        discriminative=settings.discriminative,
        weight_decay=settings.optimizer.weight_decay,
    )
    return FitTask(
        network=part.network,
        optimizer=optimizers.build(settings.optimizer, groups),
        source=part.source,
        order=part.order,
        objective=aim.shown,
        to_training_mode=lambda: set_training_mode(classifier, settings.batch_norm),
        evaluate=evaluate,
        save=save,
        mixed=(settings.mix and settings.mix.share) or 1.0,
    )


def _tell_order(order: Order, train: Samples, context: Context) -> None:
    if order.length != len(train):
        context.progress.line(f"  an epoch shows {order.length:,} images, of {len(train):,} that there are")


def _mixed(job: FitTask, course: FitConfig, train: Samples, epochs: int, context: Context) -> dict[str, Any]:
    """What was mixed of each class, for done.json; said in a line a head too."""
    source = job.source
    if not isinstance(source, ImageSource) or source.mix is None:
        return {}
    space, codes = train.space, train.codes()
    found = mix_counts(source, source.mix, space, codes, job.order, step=course.step_size, epochs=epochs)
    for line in mix_lines(found):
        context.progress.line(f"  {line}")
    return {"mixed": found}


def fit_config(settings: FitSettings, train: Samples, context: Context) -> FitConfig:
    """How long and how fast, with the seed that the step's place in the plan gives it."""
    return FitConfig(
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
