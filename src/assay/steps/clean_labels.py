"""clean_labels: labels that are probably wrong, listed, and those of training changed where that is asked for."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from assay.arrays import Floats, Ints, Keys
from assay.errors import DataError
from assay.files import fingerprint
from assay.images.decode import Resize
from assay.labels.edits import apply
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Codes, LabelSpace
from assay.labels.split import folds, one_fold_reason
from assay.labels.subset import labelled
from assay.messages import formula_note
from assay.metrics.intervals import share
from assay.models.classifier import require_size
from assay.models.ensemble import load_model
from assay.models.trained_model import require_unseen, trained_on_mask
from assay.predictions.inference import Inference
from assay.predictions.out_of_fold import out_of_fold_by, single_fold_labels, single_fold_notes
from assay.predictions.tta import tta_logits
from assay.progress import stage
from assay.repair.confident_learning import Filter, HeadSuspects
from assay.repair.suspects import (
    JUDGES,
    Action,
    Flag,
    JudgeName,
    capped,
    find_held_suspects,
    find_suspects,
    persons_cells,
    require_labels_left,
    restrict,
    suspect_edits,
    without_pseudo_labels,
)
from assay.settings import Source, sources
from assay.steps.base import (
    Context,
    State,
    Step,
    StepList,
    StepPlan,
    StepResult,
    StepSettings,
    kind_that_changes_labels,
)
from assay.steps.ensemble_members import MemberPlan, train_member
from assay.steps.fit_settings import FitSettings
from assay.steps.sources import trained_on, trained_on_at_start
from assay.steps.start import bare_classifier, heads_named, inference_for, inference_hardware
from assay.steps.suspect_lists import Split, SuspectRows, suspect_details, suspect_lines, write_suspects


class CleanLabelsSettings(StepSettings):
    """List labels that are probably wrong, by models not trained on them; change those of training where asked."""

    changes_labels = True

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to judge; default: all.")
    by: JudgeName | None = Field(
        None, description="Whose probabilities judge; default: both on features, confident_learning with steps."
    )
    size: int = Field(192, ge=16, description="Images are resized to size x size pixels.")
    resize: Resize = Resize()
    weights: Annotated[str | None, Source("weights", frozenset({"pretrained", "none"}))] = Field(
        None, description="Weights of the judging backbone, as under model; default: those that the plan begins with."
    )
    steps: tuple[StepPlan, ...] = Field(
        (), description="Judge by the model that these make, anew for every fold, instead of on cached features."
    )
    folds: int = Field(5, ge=2, description="Parts of the images, each judged by what the others teach.")
    neighbours: int = Field(20, ge=1, description="How many of the nearest images are asked.")
    filter: Filter = Field("class", description="Which of the labels that probabilities contradict are suspect.")
    action: Action = Field(Flag(), description="What is done about suspects.")
    max_share: float = Field(
        1.0, gt=0, le=1, description="Share of the labels of each class that may be suspect, the worst first."
    )

    @model_validator(mode="after")
    def _consistent(self) -> CleanLabelsSettings:
        if self.steps and self.by in ("neighbours", "both"):
            raise ValueError(
                f"by: {self.by} looks for neighbours in the features of a backbone that no label has touched, and "
                "steps make another judge; drop one of them"
            )
        if (kind := kind_that_changes_labels(self)) is not None:
            raise ValueError(f"{kind} changes labels, and a judge only learns from them; put it before this step")
        return self

    @property
    def judge(self) -> JudgeName:
        """The name of the judge in `JUDGES`."""
        return self.by or ("confident_learning" if self.steps else "both")


def run(settings: CleanLabelsSettings, state: State, context: Context) -> StepResult:
    """Judge each label by what the other folds teach; list the suspects, and propose the edits that are asked for.

    Pseudo-labels are not judged: a prediction of a model is no evidence. Validation labels are, by a judge on features
    that learnt from all training labels, and are listed without an edit. Raises DataError where no training label is
    known, PlanError for a judge that learnt from them and for edits that would empty a class.
    """
    if not (context.processes.is_main_process or settings.steps):
        return StepResult(None)
    ledger = Ledger.read(context.ledger)
    before = ledger.of(state.done).effective()
    named = [head.name for _, head, _ in heads_named(state.samples.space, settings.heads, step="clean_labels")]
    train = _Images.of(without_pseudo_labels(state.samples.part("train"), before), named)
    samples = train.subset
    if len(samples) == 0:
        raise DataError("clean_labels: no training image has a known label, so there is nothing to judge. Label some.")
    fold = folds(samples, settings.folds, seed=context.seed)
    if len(np.unique(fold)) < 2:
        why = one_fold_reason(samples)
        context.progress.line(f"  nothing can be judged: {why}")
        write_suspects(context.folder.suspects, [])
        return StepResult(None, details=suspect_details([], [why]))
    context = _with_judging_weights(settings, context)
    learnt = _learnt_before(settings.steps, samples.space, context)
    require_unseen(learnt, samples, what="clean_labels")
    held = _Images.of(state.samples.part("val"), named).without(learnt)
    held_rows: list[SuspectRows] = []
    if settings.steps:  # validation chose the epochs of these models, so that they judge none of it
        probabilities = judge_by_training(settings.steps, samples, fold, state=state, context=context)
    else:
        probabilities, held_probabilities = judge_by_features(settings, train, fold, held, state=state, context=context)
        of_heads = find_held_suspects(
            held.subset, held_probabilities, samples, probabilities, fold, filter_by=settings.filter
        )
        persons, codes = persons_cells(ledger.effective()), held.subset.codes()
        held_rows = [
            _rows("val", one, samples=held.subset, codes=of_head, persons=persons, max_share=settings.max_share)
            for one, of_head in zip(of_heads, codes, strict=True)
        ]
    if not context.processes.is_main_process:
        return StepResult(None)
    notes = single_fold_notes(samples, single_fold_labels(samples, fold))
    for note in notes:
        context.progress.line(f"  {note}")
    suspects = find_suspects(samples, probabilities, fold, filter_by=settings.filter)
    by_head = _apply_action(settings, suspects, samples, probabilities, ledger=ledger, step=context.name)
    by_head += held_rows
    _show(by_head, context)
    edits = [edit for of_head in by_head for edit in of_head.edits]
    return StepResult(None, details=suspect_details(by_head, notes), edits=edits)


def _show(by_head: Sequence[SuspectRows], context: Context) -> None:
    """Write the list of suspects and print its summary."""
    write_suspects(context.folder.suspects, by_head)
    for of_head in by_head:
        suspect_lines(of_head, context.progress)
    listed = [image for of_head in by_head for image in of_head.images]
    listed += [name for of_head in by_head for name in of_head.suspects.head.classes]
    for note in formula_note(listed, "Import the columns of suspects.csv as text"):
        context.progress.line(f"  note: {note}")


def holds(settings: CleanLabelsSettings, state: State, context: Context) -> list[StepList]:
    """Return the steps of a fold, where they make the judge."""
    if not settings.steps:
        return []
    train = state.samples.table["split"].to_numpy() == "train"
    others = state.samples.take(np.flatnonzero(~train | (np.cumsum(train) % settings.folds > 0)))
    begun = replace(state, samples=others, model=None)
    return [StepList(settings.steps, begun, context.for_part("fold-1", 1), settings.folds)]


STEP = Step(
    CleanLabelsSettings,
    run,
    purpose="labels that are probably wrong",
    report=("size", "by", "weights"),
    edits=lambda settings: settings.action.kind != "flag",
    repairs=True,
    on_every_process=True,
    computes=lambda settings: True,
    holds=holds,
)


@dataclass(frozen=True)
class _Images:
    """Images of a part with a known label under any head, and under the heads to judge: `subset`."""

    known: Samples
    subset: Samples

    @staticmethod
    def of(part: Samples, heads: Sequence[str]) -> _Images:
        known = labelled(part)
        return _Images(known, labelled(restrict(known, heads)))

    def without(self, images: Keys) -> _Images:
        """Return the same, but judging none of these images."""
        return replace(self, subset=self.subset.take(np.flatnonzero(~trained_on_mask(images, self.subset))))

    def features(self, inference: Inference, context: Context) -> Floats:
        """Return features (N, F) of those judged; taken of all known ones, of which a probe left them in the cache."""
        features = inference.features(self.known.ids, folder=context.run.cache, progress=context.progress)
        if len(self.known) == len(self.subset):
            return features
        row = {image: number for number, image in enumerate(self.known.ids)}
        return features[[row[image] for image in self.subset.ids]]


def _apply_action(
    settings: CleanLabelsSettings,
    suspects: Sequence[HeadSuspects],
    samples: Samples,
    probabilities: Floats,
    *,
    ledger: Ledger,
    step: str,
) -> list[SuspectRows]:
    """Return suspects and edits of each head. Raises PlanError where a class would lose all its labels."""
    persons = persons_cells(ledger.effective())
    judge = JUDGES[settings.judge].text
    by_head = []
    for of_head, (head, _, codes, predicted) in zip(
        suspects, samples.space.each(samples.codes(), probabilities), strict=True
    ):
        rows = _rows("train", of_head, samples=samples, codes=codes, persons=persons, max_share=settings.max_share)
        edits = suspect_edits(rows.table, head, samples, action=settings.action, step=step, judge=judge)
        known = codes >= 0
        agreement = share((head.decide(predicted) == codes)[known])
        by_head.append(replace(rows, edits=ledger.allowed(edits), agreement=agreement))
    after = apply(samples, [edit for of_head in by_head for edit in of_head.edits])
    for head, old, new in zip(samples.space, samples.codes(), after.codes(), strict=True):
        require_labels_left(head, old, new, step="clean_labels")
    return by_head


def _rows(
    split: Split,
    suspects: HeadSuspects,
    *,
    samples: Samples,
    codes: Codes,
    persons: Container[tuple[str, str, str | None]],
    max_share: float,
) -> SuspectRows:
    """Return the suspects of a head that `max_share` and a person's decisions leave, without edits."""
    name, ids = suspects.head.name, samples.ids
    table = capped(suspects, codes, max_share)
    cells = [(ids[row], name, tag) in persons for row, tag in table.select("row", "tag").iter_rows()]
    return SuspectRows(split, samples, suspects, table.filter(~pl.Series(cells, dtype=pl.Boolean)))


# Probabilities of images by models that did not learn from their labels: on features, or trained anew.


def _with_judging_weights(settings: CleanLabelsSettings, context: Context) -> Context:
    """Return the context with the weights that the judge begins with."""
    model = context.model
    if settings.weights is not None:
        model = model.model_copy(update={"weights": settings.weights, "init_from": None})
    if not settings.steps and model.weights == "none" and model.init_from is None:
        context.progress.line("  note: the judging network was trained on nothing, so its suspects are of little worth")
    return replace(context, model=model)


def _learnt_before(steps: Sequence[StepPlan], space: LabelSpace, context: Context) -> Keys:
    """Return the images whose labels any part of a judge was trained on before its first fold."""
    run = context.run.path
    named = [
        trained_on(source, context.base / path, run, space)
        for step in steps
        for _, source, path in sources(step.settings)
    ]
    starts = [getattr(step.settings, "start", "pretrained") for step in steps] or ["pretrained"]
    if "pretrained" in starts or starts[0] == "previous":
        named.append(trained_on_at_start(context.model, context.base, run))
    return np.unique(np.concatenate(named))


def judge_by_features(
    settings: CleanLabelsSettings, train: _Images, fold: Ints, held: _Images, *, state: State, context: Context
) -> tuple[Floats, Floats]:
    """Return probabilities (N, W) of training images, each by the other folds, and (M, W) of held-out ones by all.

    The features are those of the backbone that the plan begins with.
    """
    classifier = bare_classifier(state, context, size=settings.size)
    require_size(classifier, settings.size)
    inference = inference_for(classifier, settings, context)
    features = train.features(inference, context)
    judge = partial(
        JUDGES[settings.judge].posterior,
        train.subset,
        features,
        fold,
        neighbours=settings.neighbours,
        seed=context.seed,
    )
    held_features = held.features(inference, context) if len(held.subset) else None
    with stage(context.progress, "judging the labels"):
        if held_features is None:
            return judge(), np.zeros((0, train.subset.space.width), np.float32)
        return judge(), judge(held=held_features)


def judge_by_training(
    steps: Sequence[StepPlan], samples: Samples, fold: Ints, *, state: State, context: Context
) -> Floats:
    """Return probabilities (N, W) of the samples, by a model that the steps make of the other folds, for each fold.

    Validation chooses the epochs of its fits. Finished folds are kept after a kill. Raises PlanError where the steps
    make no model.
    """
    validation = state.samples.part("val")
    member = MemberPlan(steps=tuple(_keeping_what_is_taken(step) for step in steps))
    numbers = count(1)

    def predict(train: Samples, held: Samples) -> Floats:
        number = next(numbers)
        others = replace(samples, table=pl.concat([train.table, validation.table]))
        begun = State(others, None, fingerprint(state.key, train.fingerprint()), state.done)
        folder = train_member(member, begun, context.for_part(f"fold-{number}", number))
        if not context.processes.is_main_process:
            return np.zeros((len(held), samples.space.width), np.float32)  # the main process judges
        return next(tta_logits(load_model(folder), context.images, held.ids, hardware=inference_hardware(context)))

    return out_of_fold_by(samples, fold, predict).probabilities


def _keeping_what_is_taken(step: StepPlan) -> StepPlan:
    """Return a step; a fit keeps the one checkpoint that it hands on, since every fold writes its own."""
    if not isinstance(step.settings, FitSettings):
        return step
    return step.model_copy(update={"settings": step.settings.model_copy(update={"keep": step.settings.take})})
