"""Members of an ensemble that are trained on other parts of the training images, each validated on the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.files import ModelFolder, fingerprint
from assay.labels.samples import Samples
from assay.labels.split import folds as folds_of_samples
from assay.labels.subset import labelled
from assay.metrics.metrics import overall, to_json
from assay.models.combiners import MeanOf, mean_prediction
from assay.models.ensemble import member_of
from assay.predictions.predict import Predictions, score_predictions
from assay.steps.base import Context, State
from assay.steps.ensemble_members import GAIN_METRICS, MemberPlan, TrainedMember, predict_validation, train_member


@dataclass(frozen=True)
class FoldMember:
    """A member to be trained: its plan, its samples of which one fold validates, and where it is trained."""

    plan: MemberPlan
    begun: State
    context: Context


def members_by_fold(plans: Sequence[MemberPlan], count: int, state: State, context: Context) -> Iterator[FoldMember]:
    """Yield each member once a fold: the fold's labelled images validate, and the other training images train.

    What validates the ensemble is in no part of its members. Folds are stratified over all heads; copies of an image
    and images of a group share one. Unlabelled images train in every fold.
    Raises DataError where a fold would have no labelled image.
    """
    fold = _folds(state.samples, count, context.seed)
    number = 0
    for plan in plans:
        for held in range(count):
            number += 1
            samples, as_read = (_with_fold(one, fold, held) for one in (state.samples, context.as_read))
            key = fingerprint(state.key, "fold", str(held), samples.fingerprint())
            part = replace(context.for_part(f"member-{number}", number), as_read=as_read)
            yield FoldMember(plan, replace(state, samples=samples, key=key), part)


def train_members_by_fold(
    plans: Sequence[MemberPlan], count: int, of: MeanOf, state: State, context: Context
) -> tuple[list[TrainedMember], dict[str, object]]:
    """Train every member on all folds but one, `count` times, and return them with out-of-fold metrics for done.json.

    Nothing is predicted but in the main process.
    """
    trained = []
    for one in members_by_fold(plans, count, state, context):
        held = len(one.begun.samples.part("val"))
        context.progress.line(f"{one.context.name}: {held} of the training images validate it")
        trained.append((one, train_member(one.plan, one.begun, one.context)))
    if not context.processes.is_main_process:
        return [], {}
    validation, members = labelled(state.samples.part("val")), []
    for one, folder in trained:
        member, name = member_of(folder), one.context.name
        members.append(TrainedMember(name, member, predict_validation(member.model, validation, context, name=name)))
    return members, {"out of fold": _out_of_fold_scores(trained, len(plans), of, state.samples, context)}


def _out_of_fold_scores(
    trained: Sequence[tuple[FoldMember, Path]], plans: int, of: MeanOf, samples: Samples, context: Context
) -> dict[str, object]:
    """Return metrics of the training images, each predicted by the members that held it out, and print the first ones.

    Every plan has held each image out once; the mean over the `plans` is taken.
    """
    space, count = samples.space, len(trained) // plans
    train, parts = labelled(samples.part("train")), []
    for first in range(0, len(trained), count):
        folders = [folder for _, folder in trained[first : first + count]]
        files = [ModelFolder(folder).predictions for folder in folders]
        by_fold = Predictions.joined([Predictions.read(file, space, model="out of fold") for file in files])
        row = {image: number for number, image in enumerate(by_fold.ids)}
        parts.append(by_fold.take([row[image] for image in train.ids]))
    logits = mean_prediction(space, [part.logits for part in parts], of=of)
    thresholds = np.stack([part.thresholds for part in parts]).mean(axis=0)
    predictions = Predictions.of(train.ids, space, logits, model="out of fold", thresholds=np.asarray(thresholds))
    scores = score_predictions(replace(predictions, out_of_fold=True), train)
    for name, metric in overall(scores).items():
        if name in GAIN_METRICS:
            context.progress.line(f"  out of fold: {name} {metric.value:.4f}{metric.limits()}, n = {metric.n}")
    return to_json(scores)


def _folds(samples: Samples, count: int, seed: int) -> dict[str, int]:
    """Return the fold of each labelled training image. Raises DataError where a fold would be empty."""
    train = labelled(samples.part("train"))
    fold = folds_of_samples(train, count, seed=seed)
    if len(np.unique(fold)) < count:
        raise DataError(
            f"ensemble: training_folds: {count}: the training part has {len(train)} labelled images that may be "
            "parted, too few for that many folds. Take fewer folds, or label more."
        )
    return dict(zip(train.ids, fold.tolist(), strict=True))


def _with_fold(samples: Samples, fold: dict[str, int], held: int) -> Samples:
    """Return the samples with the images of a fold as validation and the rest of the training part as it was."""
    validates = pl.Series([fold.get(name) == held for name in samples.ids], dtype=pl.Boolean)
    train = pl.col("split") == "train"
    split = pl.when(pl.lit(validates)).then(pl.lit("val")).when(train).then(pl.lit("train")).alias("split")
    return replace(samples, table=samples.table.with_columns(split))
