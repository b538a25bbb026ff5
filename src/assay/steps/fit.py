"""fit: train the classifier, all of it or its upper part.

In the order of the file: the fit as a whole, the model that is saved, what is trained on which batches, the losses of
images with unknown labels, and the task of the loop with its metrics and predictions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from assay.arrays import Floats, Ints, Keys
from assay.files import ModelFolder
from assay.images.streamed import StreamedImages
from assay.labels.samples import Samples
from assay.metrics.metrics import higher_is_better, probabilities_of, stream
from assay.metrics.tallies import row_blocks
from assay.models.backbones import freeze, set_training_mode, stages
from assay.models.classifier import Classifier
from assay.models.trained_model import TrainedModel, training_hashes
from assay.predictions.predict import Predictions
from assay.steps.base import Context, State, Step, StepResult
from assay.steps.fit_settings import FitObjective, FitSettings, check_fit, fit_objective, sampling_plan
from assay.steps.history import write_history
from assay.steps.soft_targets import soft_targets
from assay.steps.start import classifier_for, describe_network, labelled_parts, trained_before
from assay.steps.trainable import FitData, Trainable, consistency_of, trainable, unlabelled_images
from assay.training import loop, optimizers
from assay.training.devices import return_freed_memory
from assay.training.fit_task import EpochLogits, FitConfig, FitTask, TimeLimit
from assay.training.objective import Objective
from assay.training.processes import Machine
from assay.training.sampling import split_batches
from assay.training.semi_supervised import Consistency
from assay.training.sources import LabelTensors, MixingSource, mix_counts, mix_lines


def run(settings: FitSettings, state: State, context: Context) -> StepResult:
    """Train; write the models of the best and the last epoch to best/ and last/."""
    checkpoint = context.folder.checkpoint  # for going on after a kill
    with prepared_fit(settings, state, context) as prepared:
        task, config, data = prepared.task, prepared.config, prepared.data
        images = task.order.length
        if images != len(data.train):
            context.progress.line(f"  an epoch shows {images:,} images, of {len(data.train):,} that there are")
        kept = len(EpochLogits.empty(len(data.train), config.width).images)
        if kept < len(data.train):
            context.progress.line(f"  training metrics of an epoch are those of {kept:,} images, drawn at random")
        context.progress.begin(context.name, 0 if config.limit else settings.epochs * images)
        final = loop.fit(task, config, machine=prepared.machine, checkpoint=checkpoint, progress=context.progress)
        context.progress.end()
    if context.processes.is_main_process:
        write_history(context.folder.history, context.name, final.history)
        for file in (checkpoint, context.folder.views):  # a kill from here to done.json trains again
            file.unlink(missing_ok=True)
    per_epoch = len(split_batches(np.arange(images), config.step_size))
    trained = round(images * min(final.epoch, final.total / per_epoch))
    details = {
        "epochs": final.epoch,
        "best_epoch": final.best_epoch,
        "images_an_epoch": images,
        "images": trained,
        "training_seconds": round(final.seconds, 2),
        "images_per_second": round(trained / max(final.seconds, 1e-9), 1),
        "hardware": prepared.machine.hardware.to_json(),
        "network": prepared.network,
        **_mix_details(task, config, data.train, final.epoch, context),
    }
    if prepared.part.views:
        details["views"] = prepared.part.views  # cached ones of an image
    if settings.unlabelled is not None:
        details |= {"unlabelled_images": len(data.unlabelled or ()), "notes": list(data.notes)}
    return StepResult(context.folder.path / settings.take, details=details)


STEP = Step(
    FitSettings,
    run,
    purpose="training by gradient descent",
    report=("size", "epochs", "freeze", "lr", "batch", "start", "keep"),
    learns=True,
    on_every_process=True,
    computes=lambda settings: True,
    check=check_fit,
)


@dataclass(frozen=True)
class PreparedFit:
    """A fit that may begin."""

    task: FitTask
    config: FitConfig
    machine: Machine
    data: FitData
    network: Mapping[str, Any]  # parameters, stride and receptive field, for done.json
    part: Trainable


@contextmanager
def prepared_fit(settings: FitSettings, state: State, context: Context) -> Iterator[PreparedFit]:
    """Give all that `loop.fit` takes, for the time of the block. Raises AssayError for what the user can mend."""
    train, validation = labelled_parts(state.samples)
    hashes = training_hashes(train.hash_names)
    train, validation = narrowed(train), narrowed(validation)
    limit = None
    if settings.seconds is not None:  # from here on: preparing the network and its images takes time too
        limit = TimeLimit(time.monotonic() + settings.seconds, len(validation), context.time_left)
    with context.processes.main_process_first():  # the others find the cache made
        cache = context.images(settings.size, settings.resize)
    unlabelled, notes = unlabelled_images(settings, state, context)
    classifier = classifier_for(settings.start, state, context, size=settings.size)
    network = describe_network(classifier, context, size=settings.size)
    freeze(classifier, settings.freeze)
    config = replace(fit_config(settings, train, context), limit=limit)
    streamed = isinstance(cache, StreamedImages)
    sampling = sampling_plan(settings, train, seed=config.seed, by_shard=streamed)
    objective = fit_objective(settings, train, sampling)
    data = FitData(cache, train, validation, unlabelled, soft_targets(state.soft, train), sampling, notes)
    model = _model_to_save(settings, classifier, hashes, objective, state, context, side=cache.side)
    with trainable(settings, classifier, data, objective, context) as part:
        consistency = consistency_of(settings, part, data, objective, context)
        task = _task(settings, model, objective, part, data, consistency, context)
        return_freed_memory()  # of what has made all of this: the loop asks for other sizes
        yield PreparedFit(task, config, Machine(context.processes, part.hardware), data, network, part)


def narrowed(samples: Samples) -> Samples:
    """Return the samples without the columns of text that a fit does not read: of a million images they take 200 MB."""
    unread = {"path", "split", "group", "hash", *(f"origin:{head.name}" for head in samples.space)}
    return replace(samples, table=samples.table.drop(unread))


def fit_config(settings: FitSettings, train: Samples, context: Context) -> FitConfig:
    """Return the length and pace of the loop, with the seed that the step's position in the plan gives it."""
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


def _model_to_save(
    settings: FitSettings,
    classifier: Classifier,
    hashes: Keys,
    objective: FitObjective,
    state: State,
    context: Context,
    *,
    side: int,
) -> TrainedModel:
    """Return the model around the classifier, with the hashes of all images that its layers will have learnt from.

    `hashes` are those of the training images, `side` is that of the cached ones.
    """
    trained_on, learnt_from = trained_before(settings.start, state, context)
    if settings.freeze != "backbone":
        trained_on = np.union1d(trained_on, hashes)
    return TrainedModel(
        classifier,
        state.samples.space,
        settings.size,
        side,
        settings.resize,
        objective.rule,
        trained_on=trained_on,
        learnt_from=np.union1d(learnt_from, hashes),
    )


# The task of the loop: optimiser, objective, and what is measured and saved after an epoch.


def _task(
    settings: FitSettings,
    model: TrainedModel,
    objective: FitObjective,
    part: Trainable,
    data: FitData,
    consistency: Consistency | None,
    context: Context,
) -> FitTask:
    space, classifier, rule = model.space, model.classifier, model.decision_rule
    train_codes, validation_codes = data.train.codes(), data.validation.codes()
    known = LabelTensors(data.validation, class_weights=objective.validation_mean)
    newest: list[Predictions] = []  # of validation, by the weights about to be saved

    def evaluate(rows: Ints, training_logits: Tensor) -> dict[str, dict[str, float]]:
        trained = probabilities_of(space, rule.logits(training_logits.numpy()))
        metrics = {"training": dict(stream(space, [codes[rows] for codes in train_codes], trained))}
        logits = part.predict()
        newest[:] = [Predictions.of(data.validation.ids, space, rule.logits(logits), model=context.name)]
        metrics["validation"] = dict(stream(space, validation_codes, newest[0].probabilities))
        if len(data.validation):
            metrics["validation"]["loss"] = mean_loss(objective.validation, logits, known)
        return metrics

    def save(which: Literal["best", "last"]) -> None:
        if settings.keep in ("both", which):
            folder = ModelFolder(context.folder.path / which)
            newest[0].write(folder.predictions)
            model.save(folder.path)

    groups = optimizers.parameter_groups(
        part.network,
        _stage_names(classifier, part.network),
        lr=settings.lr,
        discriminative=settings.discriminative,
        weight_decay=settings.optimizer.weight_decay,
        decays=settings.optimizer.decays,
    )
    return FitTask(
        network=part.network,
        optimizer=optimizers.build(settings.optimizer, groups),
        source=part.source,
        order=data.sampling.order,
        objective=objective.training,
        to_training_mode=lambda: set_training_mode(classifier, settings.batch_norm),
        evaluate=evaluate,
        save=save,
        mixed=(settings.mix and settings.mix.share) or 1.0,
        unlabelled=consistency,
    )


def mean_loss(objective: Objective, logits: Floats, known: LabelTensors) -> float:
    """Return the loss of logits (N, W), of a part of very many at a time: dense targets take as much memory again."""
    rows = np.arange(len(logits))
    parts = [objective(torch.from_numpy(logits[block]), [known.of(rows[block])]) for block in row_blocks(logits)]
    sums = torch.stack([one.sums for one in parts]).sum(dim=0)
    counts = torch.stack([one.counts for one in parts]).sum(dim=0)
    return float(objective.mean(sums, counts))


def _stage_names(classifier: Classifier, network: nn.Module) -> list[list[str]]:
    """Return the parameter names of the network that learns, from the first stage to the head."""
    if network is classifier.head:
        return [[name for name, _ in network.named_parameters()]]
    below = [[f"backbone.{name}" for name in stage.parameters] for stage in stages(classifier.backbone)]
    return [*below, [f"head.{name}" for name, _ in classifier.head.named_parameters()]]


def _mix_details(task: FitTask, config: FitConfig, train: Samples, epochs: int, context: Context) -> dict[str, object]:
    """Return how often images of each class were mixed, for done.json; print it, a line a head."""
    source = task.source
    if not isinstance(source, MixingSource) or source.mix is None:
        return {}
    counts = mix_counts(
        source, source.mix, train.space, train.codes(), task.order, step=config.step_size, epochs=epochs
    )
    for line in mix_lines(counts):
        context.progress.line(f"  {line}")
    return {"mixed": counts}
