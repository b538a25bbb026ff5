"""fit: train the classifier, all of it or its upper part."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from assay.balance.class_weights import shift_of, weights_of
from assay.errors import PlanError
from assay.figures.metrics import higher_is_better, probabilities_of, stream
from assay.labels.samples import Samples
from assay.models.backbones import freeze, set_training_mode, stages
from assay.models.classifier import Classifier
from assay.models.deciding import Deciding
from assay.models.saved import Saved
from assay.models.seen import seen
from assay.predictions.predict import Predictions
from assay.steps.fit_parts import Part, consistency, trained_parts, unlabelled_pictures
from assay.steps.fit_settings import FitSettings
from assay.steps.history import write_history
from assay.steps.soft_targets import soft_targets
from assay.steps.start import classifier_for, describe_network, labelled_parts, seen_by
from assay.steps.state import Context, State, StepResult
from assay.training import optimizers
from assay.training.job import Course, Job
from assay.training.loop import fit
from assay.training.losses import head_losses
from assay.training.machine import Machine
from assay.training.objective import Objective
from assay.training.sources import Known


def run(settings: FitSettings, state: State, context: Context) -> StepResult:
    """Train; the checkpoints lie in best/ and last/ as models that can be loaded by themselves."""
    train, validation = labelled_parts(state.samples)
    waiting = unlabelled_pictures(settings, state.samples)
    with context.processes.main_process_first():  # the others find the cache made
        cache = context.pictures(settings.size, settings.resize)
    classifier = classifier_for(settings.start, state, context, size=settings.size)
    network = describe_network(classifier, context, size=settings.size)
    freeze(classifier, settings.freeze)
    objective, deciding = _objective(settings, train)
    trained_on = seen_by(settings.start, state, context)
    if settings.freeze != "backbone":
        trained_on = np.union1d(trained_on, seen(train.hashes))
    space = state.samples.space
    saved = Saved(classifier, space, settings.size, cache.side, settings.resize, deciding, trained_on=trained_on)
    soft = soft_targets(state.soft, train)
    with trained_parts(settings, classifier, cache, train, validation, context, soft=soft) as part:
        job = _job(settings, saved, objective, part, train, validation, context)
        further = consistency(
            settings, part, waiting, known=train, cache=cache, objective=objective, deciding=deciding, context=context
        )
        job = replace(job, unlabelled=further)
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
        "network": network,
    }
    if waiting is not None:
        details["unlabelled_pictures"] = len(waiting)
    return StepResult(context.folder / settings.take, details=details)


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
