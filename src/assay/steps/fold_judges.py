"""Judges of labels that are trained anew for every fold: by steps of a plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from assay.arrays import Floats, Ints
from assay.files import ModelFolder, fingerprint
from assay.images.augment import Augment
from assay.images.decode import Resize
from assay.labels.edits import persons_cells
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.models.backbones import stages
from assay.models.ensemble import load_model
from assay.predictions.out_of_fold import out_of_fold_by
from assay.predictions.predict import Predictions
from assay.predictions.tta import tta_logits
from assay.repair.confident_learning import beats_chance
from assay.repair.judges import Probabilities
from assay.repair.suspects import judgeable, soft_labels
from assay.steps.base import Context, State, StepPlan
from assay.steps.ensemble_members import MemberPlan, train_member
from assay.steps.fit_settings import FitSettings
from assay.steps.hardware import inference_hardware
from assay.steps.soft_targets import write_soft_targets
from assay.steps.start import bare_classifier
from assay.training.optimizers import AdamW

FROZEN = 0.75  # of the stages: those above are trained on cached activations
VIEWS, EPOCHS = 5, 5


def fine_tuning(state: State, context: Context, *, size: int, resize: Resize) -> tuple[StepPlan, ...]:
    """Return the steps of the judges `fine_tuned` and `all`: the upper stages, on activations that all folds share."""
    parts = len(stages(bare_classifier(state, context, size=size).backbone))
    fit = FitSettings(
        size=size,
        resize=resize,
        epochs=EPOCHS,
        batch=64,
        start="pretrained",
        freeze=min(max(1, round(FROZEN * parts)), parts - 1) if parts > 1 else "backbone",
        views=VIEWS,
        optimizer=AdamW(weight_decay=0.02),
        lr=1e-3,
        augment=Augment(crop=(0.5, 1.0)),
        ema=0.99,
        take="last",
        keep="last",
    )
    return (StepPlan(kind="fit", settings=fit),)


def spare_validation(steps: Sequence[StepPlan]) -> bool:
    """Return whether the steps choose nothing by validation labels, so that their model may judge these."""
    fits = [step.settings for step in steps if isinstance(step.settings, FitSettings)]
    return len(fits) == len(steps) and all(fit.take == "last" and fit.early_stop is None for fit in fits)


def judge_by_training(
    steps: Sequence[StepPlan],
    samples: Samples,
    fold: Ints,
    held: Samples,
    *,
    state: State,
    context: Context,
) -> Probabilities:
    """Return probabilities by the models that the steps make of the other folds, for each fold.

    They learn from the labels as they are. `held`, labelled images of validation, are judged by the mean over folds.
    Finished folds are kept after a kill. Raises PlanError where the steps make no model.
    """
    validation, space = state.samples.part("val"), samples.space
    member = MemberPlan(steps=tuple(_keeping_what_is_taken(step) for step in steps))
    numbers, of_held = count(1), np.zeros((len(held), space.width), np.float32)

    def predict(train: Samples, left_out: Samples) -> Floats:
        number = next(numbers)
        others = replace(samples, table=pl.concat([train.table, validation.table]))
        begun = State(others, None, fingerprint(state.key, train.fingerprint()), state.done)
        folder = train_member(member, begun, context.for_part(f"fold-{number}", number))
        if not context.processes.is_main_process:
            return np.zeros((len(left_out), space.width), np.float32)  # the main process judges
        if len(held):
            predictions = Predictions.read(ModelFolder(folder).predictions, space, model=context.name)
            row = {image: number for number, image in enumerate(predictions.ids)}
            of_held[:] += predictions.probabilities[[row[image] for image in held.ids]] / len(np.unique(fold))
        return next(tta_logits(load_model(folder), context.images, left_out.ids, hardware=inference_hardware(context)))

    return Probabilities(out_of_fold_by(samples, fold, predict).probabilities, of_held)


def write_soft_labels(
    samples: Samples,
    probabilities: Floats,
    fold: Ints,
    folder: Path,
    context: Context,
    *,
    heads: Collection[str],
    answer: float | Literal["wrong"],
) -> dict[str, Path]:
    """Write `soft_labels` into a folder, and return the file of each head.

    None are written of labels that no other fold teaches or that a person decided, nor of a head that is not among
    `heads`, or whose judge is no better than chance.
    """
    persons, files = persons_cells(Ledger.read(context.ledger).effective()), {}
    for index, (head, _, codes, of_head) in enumerate(samples.space.each(judgeable(samples, fold), probabilities)):
        cells = [[(image, head.name, tag) in persons for tag in head.cell_names] for image in samples.ids]
        given = np.where(head.from_columns(np.array(cells)), -1, codes)
        rows = np.flatnonzero(head.known(given))
        if len(rows) and head.name in heads and beats_chance(head, codes, of_head):
            files[head.name] = folder / f"{index}.parquet"
            targets = soft_labels(head, given, of_head, answer=answer)
            write_soft_targets(files[head.name], head, samples, rows, targets=targets, given=given)
    return files


def _keeping_what_is_taken(step: StepPlan) -> StepPlan:
    """Return a step; a fit keeps the one checkpoint that it hands on, since every fold writes its own."""
    if not isinstance(step.settings, FitSettings):
        return step
    return step.model_copy(update={"settings": step.settings.model_copy(update={"keep": step.settings.take})})
