"""clean_labels: labels that are probably wrong, listed, and those of training changed where that is asked for."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

from assay.arrays import Floats, Ints, Keys
from assay.errors import DataError
from assay.images.decode import Resize
from assay.labels.edits import apply, persons_cells
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.labels.split import folds, one_fold_reason
from assay.labels.subset import labelled
from assay.messages import formula_note
from assay.metrics.intervals import Metric, share
from assay.models.backbones import require_all_known
from assay.models.classifier import NamedBackbone, require_size
from assay.models.trained_model import require_unseen, trained_on_mask
from assay.predictions.inference import Inference
from assay.predictions.out_of_fold import single_fold_labels, single_fold_notes
from assay.progress import stage
from assay.repair.confident_learning import Filter, HeadSuspects, beats_chance
from assay.repair.judges import JUDGE_TEXTS, JUDGES, JudgeName, Probabilities
from assay.repair.suspects import (
    Action,
    Flag,
    Soft,
    capped,
    find_held_suspects,
    find_suspects,
    require_labels_left,
    restrict,
    suspect_edits,
    without_pseudo_labels,
)
from assay.repair.wrong_probability import likely_counts
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
from assay.steps.fold_judges import fine_tuning, judge_by_training, spare_validation, write_soft_labels
from assay.steps.hardware import inference_for
from assay.steps.sources import trained_on, trained_on_at_start
from assay.steps.start import bare_classifier, heads_named
from assay.steps.suspect_lists import (
    Split,
    SuspectRows,
    suspect_details,
    suspect_lines,
    write_probabilities,
    write_suspects,
)

TRAINED: tuple[JudgeName, ...] = ("fine_tuned", "all")  # for every fold, by steps that are not the plan's


class CleanLabelsSettings(StepSettings):
    """List labels that are probably wrong, by models not trained on them; change those of training where asked."""

    changes_labels = True

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to judge; default: all.")
    by: JudgeName | None = Field(
        None,
        description="Whose probabilities judge: on features confident_learning, neighbours or both, the default; "
        "fine_tuned, trained anew for every fold; or all, the mean of fine_tuned and both.",
    )
    size: int = Field(192, ge=16, description="Images are resized to size x size pixels.")
    resize: Resize = Resize()
    backbone: NamedBackbone | None = Field(
        None, description="The backbone that judges, a + b: side by side; default: that of the plan."
    )
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
    only_if_better: bool = Field(
        False,
        description="Change labels only where models that learn from labels repaired by the judge predict more of the "
        "labels held out from them, beyond chance, than models of the labels as they are.",
    )
    max_share: float = Field(
        1.0, gt=0, le=1, description="Share of the labels of each class that may be suspect, the worst first."
    )

    def require_consistent(self) -> None:
        if self.only_if_better and (self.judge not in ("both", "all") or self.folds < 3):
            raise ValueError(
                "only_if_better compares the two rounds of the judge on features; drop it, or take by: both or all, "
                "and three folds or more"
            )
        if self.steps and self.by in TRAINED:
            raise ValueError(f"by: {self.by} has steps of its own; drop it, or steps")
        if self.steps and self.by in ("neighbours", "both"):
            raise ValueError(
                f"by: {self.by} looks for neighbours in the features of a backbone that no label has touched, and "
                "steps make another judge; drop one of them"
            )
        if (kind := kind_that_changes_labels(self)) is not None:
            raise ValueError(f"{kind} changes labels, and a judge only learns from them; put it before this step")

    @property
    def judge(self) -> JudgeName:
        """The name of the judge in `JUDGE_TEXTS`."""
        return self.by or ("confident_learning" if self.steps else "both")

    @property
    def trains(self) -> bool:
        """Whether the judge is trained anew for every fold."""
        return bool(self.steps) or self.by in TRAINED


def run(settings: CleanLabelsSettings, state: State, context: Context) -> StepResult:
    """Judge each label by what the other folds teach; list the suspects, and propose the edits that are asked for.

    Pseudo-labels are not judged: a prediction of a model is no evidence. Validation labels are, by a judge on features
    that learnt from all training labels, and are listed without an edit. Raises DataError where no training label is
    known, PlanError for a judge that learnt from them and for edits that would empty a class.
    """
    if not (context.processes.is_main_process or settings.trains):
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
    steps = _steps_of_judge(settings, state, context)
    learnt = _learnt_before(steps, samples.space, context)
    require_unseen(learnt, samples, what="clean_labels")
    held = _Images.of(state.samples.part("val"), named).without(learnt)
    held_rows: list[SuspectRows] = []
    judges_held = not steps or spare_validation(steps)
    if not judges_held:  # it chose the epochs of these models, so that they judge none of it
        held = replace(held, subset=held.subset.take(np.zeros(0, np.int64)))
    judges = []
    if steps:
        judges.append(judge_by_training(steps, samples, fold, held.subset, state=state, context=context))
    if not steps or (settings.by == "all" and context.processes.is_main_process):
        judges.append(judge_by_features(settings, train, fold, held, state=state, context=context))
    probabilities, of_held = (
        sum(answers[1:], answers[0]) / np.float32(len(answers))
        for answers in zip(*((judge.train, judge.held) for judge in judges), strict=True)
    )
    if not context.processes.is_main_process:
        return StepResult(None)
    if judges_held:
        of_heads = find_held_suspects(held.subset, of_held, samples, probabilities, fold, filter_by=settings.filter)
        persons, codes = persons_cells(ledger.effective()), held.subset.codes()
        for one, (head, _, of_head, answers) in zip(of_heads, held.subset.space.each(codes, of_held), strict=True):
            rows = _rows("val", one, samples=held.subset, codes=of_head, persons=persons, max_share=settings.max_share)
            held_rows.append(replace(rows, agreement=agreement(head, of_head, answers)))
    notes = single_fold_notes(samples, single_fold_labels(samples, fold))
    for note in notes:
        context.progress.line(f"  {note}")
    suspects = find_suspects(samples, probabilities, fold, filter_by=settings.filter)
    gains = judges[-1].gains or (None,) * len(suspects)
    by_head = _apply_action(settings, suspects, samples, probabilities, gains=gains, ledger=ledger, step=context.name)
    softened = [of_head.suspects.head.name for of_head in by_head if of_head.action == "soft"]
    by_head += held_rows
    _show(by_head, context)
    edits = [edit for of_head in by_head for edit in of_head.edits]
    soft = None
    if isinstance(settings.action, Soft):
        folder, answer = context.folder.path / "soft", settings.action.soft
        files = write_soft_labels(samples, probabilities, fold, folder, context, heads=softened, answer=answer)
        soft = {**state.soft, **files}
    return StepResult(None, details=suspect_details(by_head, notes), edits=edits, soft=soft)


def _show(by_head: Sequence[SuspectRows], context: Context) -> None:
    """Write the list of suspects and print its summary."""
    write_suspects(context.folder.suspects, by_head)
    write_probabilities(context.folder.label_probabilities, by_head)
    for of_head in by_head:
        suspect_lines(of_head, context.progress)
    listed = [image for of_head in by_head for image in of_head.images]
    listed += [name for of_head in by_head for name in of_head.suspects.head.classes]
    for note in formula_note(listed, "Import the columns of suspects.csv as text"):
        context.progress.line(f"  note: {note}")


def holds(settings: CleanLabelsSettings, state: State, context: Context) -> list[StepList]:
    """Return the steps of a fold, where they make the judge."""
    if not settings.trains:
        return []
    train = state.samples.table["split"].to_numpy() == "train"
    others = state.samples.take(np.flatnonzero(~train | (np.cumsum(train) % settings.folds > 0)))
    begun = replace(state, samples=others, model=None)
    steps = _steps_of_judge(settings, state, _with_judging_weights(settings, context))
    return [StepList(steps, begun, context.for_part("fold-1", 1), settings.folds)]


STEP = Step(
    CleanLabelsSettings,
    run,
    purpose="labels that are probably wrong",
    report=("size", "by", "backbone", "weights"),
    edits=lambda settings: settings.action.kind != "flag",
    repairs=True,
    on_every_process=True,
    computes=lambda settings: True,
    check=lambda settings, space: require_all_known(settings.backbone),
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
        """Return the images of the part, of which none of these is judged."""
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
    gains: Sequence[Metric | None],
    ledger: Ledger,
    step: str,
) -> list[SuspectRows]:
    """Return suspects and edits of each head. Raises PlanError where a class would lose all its labels."""
    persons = persons_cells(ledger.effective())
    judge = JUDGE_TEXTS[settings.judge]
    by_head = []
    for of_head, gain, (head, _, codes, predicted) in zip(
        suspects, gains, samples.space.each(samples.codes(), probabilities), strict=True
    ):
        rows = _rows("train", of_head, samples=samples, codes=codes, persons=persons, max_share=settings.max_share)
        known = codes >= 0
        rows = replace(rows, beats_chance=not known.any() or beats_chance(head, codes, predicted))
        better = not settings.only_if_better or (gain is not None and gain.beyond_chance)
        action = settings.action if rows.beats_chance and better else Flag()
        rows = replace(rows, action=action.kind, gain=gain, better=better)
        if head.multiclass and known.any() and not of_head.unjudged:
            rows = replace(rows, likely_counts=likely_counts(predicted[known], codes[known]))
        edits = suspect_edits(rows.table, head, samples, action=action, step=step, judge=judge)
        by_head.append(replace(rows, edits=ledger.allowed(edits), agreement=agreement(head, codes, predicted)))
    after = apply(samples, [edit for of_head in by_head for edit in of_head.edits])
    for head, old, new in zip(samples.space, samples.codes(), after.codes(), strict=True):
        require_labels_left(head, old, new, step="clean_labels")
    return by_head


def agreement(head: Head, codes: Codes, probabilities: Floats) -> Metric | None:
    """Return the share of the known labels that are the answer of probabilities (N, K), None where none is known."""
    return share((head.decide(probabilities) == codes)[codes >= 0])


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
    model = context.model.published(settings.backbone)
    if settings.weights is not None:
        model = model.model_copy(update={"weights": settings.weights, "init_from": None})
    if not settings.trains and model.weights == "none" and model.init_from is None:
        context.progress.line("  note: the judging network was trained on nothing, so its suspects are of little worth")
    return replace(context, model=model)


def _steps_of_judge(settings: CleanLabelsSettings, state: State, context: Context) -> tuple[StepPlan, ...]:
    """Return the steps that make the judge of a fold; none for a judge on features."""
    if settings.by in TRAINED:
        return fine_tuning(state, context, size=settings.size, resize=settings.resize)
    return settings.steps


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
) -> Probabilities:
    """Return probabilities of training images, each by the other folds, and of held-out ones by all.

    The features are those of the backbone that the plan begins with.
    """
    by = settings.by if settings.by in JUDGES else "both"
    classifier = bare_classifier(state, context, size=settings.size)
    require_size(classifier, settings.size)
    inference = inference_for(classifier, settings, context)
    features = train.features(inference, context)
    of_held = held.features(inference, context) if len(held.subset) else np.zeros((0, features.shape[1]), np.float32)
    with stage(context.progress, "judging the labels"):
        return JUDGES[by](train.subset, features, fold, held=of_held, neighbours=settings.neighbours, seed=context.seed)
