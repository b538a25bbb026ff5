"""kind: soup: one network whose weights are the mean of those of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache as remembering
from typing import Any

import numpy as np
import numpy.typing as npt

from assay.errors import DataError, ModelError, PlanError
from assay.figures.metrics import higher_is_better, probabilities_of, stream
from assay.labels.samples import Samples
from assay.labels.subset import labelled
from assay.models.saved import Saved
from assay.models.soup import averaged, require_alike, statistics_differ, take_statistics
from assay.predictions.combine import greedy
from assay.predictions.cross_fitting import folds_of
from assay.predictions.inference import Inference, move
from assay.predictions.predict import Predictions
from assay.steps.combine_settings import CombineSettings
from assay.steps.members import Trained, loaded, trained_models
from assay.steps.start import labelled_parts, remembered
from assay.steps.state import Context, State, StepResult
from assay.steps.worth import worth
from assay.training.hardware import Hardware

Array = npt.NDArray[np.float32]
Pick = tuple[int, ...]


def soup(settings: CombineSettings, state: State, context: Context) -> StepResult:
    """The mean of all members' weights, or of those that validation gains by; the answers written are cross-fitted."""
    models = trained_models(settings.members, state, context)
    if not context.processes.is_main_process:
        return StepResult(None, hands_on_labels=False)
    members = loaded(models, state, context)
    networks = _networks(members)
    validation = labelled(state.samples.part("val"))
    hardware = remembered(context, "inference") or Hardware(context.device)

    @remembering
    def answered(pick: Pick) -> Array:
        """Logits (N, W) for validation pictures of the mean of these members."""
        mixed = _mixed([networks[member] for member in pick], state.samples, context, hardware)
        return _inference(mixed, context, hardware).logits(validation.ids)

    picked: Pick = tuple(range(len(members)))
    if settings.pick == "greedy":
        picked, logits = _picked(settings, len(members), validation, answered, context)
    else:
        logits = answered(picked)
    answers = Predictions.of(validation.ids, state.samples.space, logits, model=context.name)
    details: dict[str, Any] = {
        "kind": settings.kind,
        "pick": settings.pick,
        "picked": [members[member].name for member in picked],
    }
    context.watch.line(f"  the mean of the weights of {', '.join(details['picked'])}")
    if len(validation):
        details["members"], details["gain over the best member"] = worth(
            [one.predictions for one in members], answers, validation, context
        )
    folder = context.folder / "best"
    answers.write(folder / "predictions.parquet")
    _mixed([networks[member] for member in picked], state.samples, context, hardware).save(folder)
    return StepResult(folder, details=details, hands_on_labels=False)


def _networks(members: Sequence[Trained]) -> list[Saved]:
    """The single network of each member. Raises ModelError where they have no mean."""
    networks = []
    for one in members:
        if not isinstance(one.member.model, Saved):
            raise ModelError(
                f"soup: {one.name} is itself a combination of several networks, whose weights have no mean with "
                "others. Take its members, or kind: committee."
            )
        networks.append(one.member.model)
    require_alike(networks, [one.name for one in members])
    return networks


def _mixed(networks: Sequence[Saved], samples: Samples, context: Context, hardware: Hardware) -> Saved:
    """The mean network; where batch-norms have learnt different statistics, with statistics of its own."""
    mixed = averaged(networks)
    if statistics_differ(networks):
        train, _ = labelled_parts(samples)
        inference = _inference(mixed, context, hardware)
        batches = (hardware.place(batch) for batch in inference.batches(train.ids) if len(batch) > 1 or len(train) == 1)
        take_statistics(mixed.classifier, batches)
    mixed.classifier.cpu()
    return mixed


def _inference(saved: Saved, context: Context, hardware: Hardware) -> Inference:
    move(saved.classifier, hardware)
    return Inference(saved.classifier, context.pictures(saved.size, saved.resize), saved.size, hardware)


def _picked(
    settings: CombineSettings, count: int, validation: Samples, answered: Callable[[Pick], Array], context: Context
) -> tuple[Pick, Array]:
    """The members that validation gains by, and logits (N, W) for its pictures, each by a pick made without it."""
    if len(validation) == 0:
        raise DataError(
            "combine: pick: greedy: no validation picture has a known label to pick by. Raise split.val, label some, "
            "or set pick: all."
        )
    space, codes = validation.space, validation.codes()
    sign = 1 if higher_is_better(settings.monitor) else -1

    def pick(rows: npt.NDArray[np.bool_]) -> Pick:
        def value_of(members: Pick) -> float:
            shown = probabilities_of(space, answered(members)[rows])
            figures = dict(stream(space, [known[rows] for known in codes], shown))
            if settings.monitor not in figures:
                raise PlanError(
                    f"combine: monitor: {settings.monitor!r} is not measured on this data. There are: "
                    f"{', '.join(figures)}."
                )
            return sign * figures[settings.monitor]

        return greedy([value_of((member,)) for member in range(count)], value_of)

    fold = folds_of(len(validation), settings.folds, seed=context.seed)
    logits = np.empty((len(validation), space.width), dtype=np.float32)
    for number in np.unique(fold):
        inside = fold == number
        logits[inside] = answered(pick(~inside))[inside]
    return pick(np.ones(len(validation), dtype=np.bool_)), logits
