"""clean_labels: the training labels that are probably wrong, listed, and changed where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from assay.arrays import Floats, Ints, Keys
from assay.errors import DataError
from assay.files import fingerprint, whole
from assay.images.decode import Resize
from assay.labels.edits import Edit, apply
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.split import folds, one_fold_reason
from assay.labels.subset import labelled
from assay.messages import formula_note
from assay.metrics.intervals import Metric, share, wilson
from assay.models.classifier import require_size
from assay.models.ensemble import load_model
from assay.models.trained_model import require_unseen
from assay.predictions.out_of_fold import out_of_fold_by, single_fold_labels, single_fold_notes
from assay.predictions.tta import tta_logits
from assay.progress import Progress
from assay.repair.confident_learning import Filter, HeadSuspects
from assay.repair.suspects import (
    JUDGES,
    Action,
    Flag,
    JudgeName,
    actions_done,
    capped,
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


class CleanLabelsSettings(StepSettings):
    """List the training labels that are probably wrong, by models not trained on them; change them where asked."""

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

    Only training labels are judged, pseudo-labels not among them: a prediction of a model is no evidence. Raises
    DataError where none is known, PlanError for a judge that learnt from them and for edits that would empty a class.
    """
    if not (context.processes.is_main_process or settings.steps):
        return StepResult(None)
    ledger = Ledger.read(context.ledger)
    before = ledger.of(state.done).effective()
    known = labelled(without_pseudo_labels(state.samples.part("train"), before))
    named = [head.name for _, head, _ in heads_named(state.samples.space, settings.heads, step="clean_labels")]
    samples = labelled(restrict(known, named))
    if len(samples) == 0:
        raise DataError("clean_labels: no training image has a known label, so there is nothing to judge. Label some.")
    fold = folds(samples, settings.folds, seed=context.seed)
    if len(np.unique(fold)) < 2:
        why = one_fold_reason(samples)
        context.progress.line(f"  nothing can be judged: {why}")
        write_suspects(context.folder.suspects, [], samples)
        return StepResult(None, details=suspect_details([], [why]))
    probabilities = _out_of_fold_probabilities(settings, known, samples, fold, state=state, context=context)
    if not context.processes.is_main_process:
        return StepResult(None)
    notes = single_fold_notes(samples, single_fold_labels(samples, fold))
    for note in notes:
        context.progress.line(f"  {note}")
    suspects = find_suspects(samples, probabilities, fold, filter_by=settings.filter)
    by_head = _apply_action(settings, suspects, samples, probabilities, ledger=ledger, step=context.name)
    write_suspects(context.folder.suspects, by_head, samples)
    for of_head in by_head:
        suspect_lines(of_head, context.progress)
    listed = [samples.ids[row] for of_head in by_head for row in of_head.table["row"].to_list()]
    listed += [name for of_head in by_head for name in of_head.suspects.head.classes]
    for note in formula_note(listed, "Import the columns of suspects.csv as text"):
        context.progress.line(f"  note: {note}")
    edits = [edit for of_head in by_head for edit in of_head.edits]
    return StepResult(None, details=suspect_details(by_head, notes), edits=edits)


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
class SuspectRows:
    """Suspects under one head, and the edits that deal with them.

    `table` holds the suspects left by `max_share` and by a person's decisions; `agreement` is the share of the judged
    labels that are the judge's prediction.
    """

    suspects: HeadSuspects
    table: pl.DataFrame
    edits: Sequence[Edit]
    agreement: Metric | None


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
    persons, ids = persons_cells(ledger.effective()), samples.ids
    judge = JUDGES[settings.judge].text
    by_head = []
    for of_head, (head, _, codes, predicted) in zip(
        suspects, samples.space.each(samples.codes(), probabilities), strict=True
    ):
        table = capped(of_head, codes, settings.max_share)
        cells = [(ids[row], head.name, tag) in persons for row, tag in table.select("row", "tag").iter_rows()]
        table = table.filter(~pl.Series(cells, dtype=pl.Boolean))
        edits = suspect_edits(table, head, samples, action=settings.action, step=step, judge=judge)
        known = codes >= 0
        agreement = share((head.decide(predicted) == codes)[known])
        by_head.append(SuspectRows(of_head, table, ledger.allowed(edits), agreement))
    after = apply(samples, [edit for of_head in by_head for edit in of_head.edits])
    for head, old, new in zip(samples.space, samples.codes(), after.codes(), strict=True):
        require_labels_left(head, old, new, step="clean_labels")
    return by_head


# Probabilities of training images by models that did not learn from their labels: on features, or trained anew.


def _out_of_fold_probabilities(
    settings: CleanLabelsSettings, known: Samples, samples: Samples, fold: Ints, *, state: State, context: Context
) -> Floats:
    """Return probabilities (N, W). Raises PlanError where what the judge begins with has learnt from the labels."""
    model = context.model
    if settings.weights is not None:
        model = model.model_copy(update={"weights": settings.weights, "init_from": None})
    context = replace(context, model=model)
    require_unseen(_learnt_before(settings.steps, samples.space, context), samples, what="clean_labels")
    if settings.steps:
        return judge_by_training(settings.steps, samples, fold, state=state, context=context)
    if model.weights == "none" and model.init_from is None:
        context.progress.line("  note: the judging network was trained on nothing, so its suspects are of little worth")
    return judge_by_features(settings, known, samples, fold, state=state, context=context)


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
    settings: CleanLabelsSettings, known: Samples, samples: Samples, fold: Ints, *, state: State, context: Context
) -> Floats:
    """Return probabilities (N, W) of the samples, on features of the backbone that the plan begins with.

    Features are taken of all images `known`, the samples among them: a probe has left just these in the cache.
    """
    classifier = bare_classifier(state, context, size=settings.size)
    require_size(classifier, settings.size)
    inference = inference_for(classifier, settings, context)
    features = inference.features(known.ids, folder=context.run.cache, progress=context.progress)
    if len(known) > len(samples):
        row = {image: number for number, image in enumerate(known.ids)}
        features = features[[row[image] for image in samples.ids]]
    posterior = JUDGES[settings.judge].posterior
    return posterior(samples, features, fold, neighbours=settings.neighbours, seed=context.seed)


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


# The list of suspects, its summary, and its lines.

LISTED_CONFUSIONS = 3
SUSPECT_COLUMNS = ("image", "head", "class", "given", "suggested", "label", "quality", "confidence", "done")


def write_suspects(path: Path, by_head: Sequence[SuspectRows], samples: Samples) -> None:
    """Write the suspects of all heads as CSV, the most suspicious first.

    `image`, `head` and `class` (of tags) name a label as a person's corrections do, and `label` is blank, for the
    person to fill in; `quality` is the probability of the given label, `confidence` that of the suggested one, `done`
    what was done.
    """
    ids = samples.ids
    tables = [
        pl.DataFrame(
            {
                "image": [ids[row] for row in of_head.table["row"].to_list()],
                "head": [of_head.suspects.head.name] * of_head.table.height,
                "class": of_head.table["tag"],
                **{name: of_head.table[name] for name in ("given", "suggested")},
                "label": [None] * of_head.table.height,
                **{name: of_head.table[name] for name in ("quality", "confidence")},
                "done": actions_done(of_head.table, of_head.suspects.head, ids, of_head.edits),
            },
            schema_overrides=dict.fromkeys(("image", "head", "class", "label", "done"), pl.String),
        )
        for of_head in by_head
    ]
    empty = pl.DataFrame(schema=dict.fromkeys(SUSPECT_COLUMNS, pl.String))
    table = pl.concat(tables).sort("quality", maintain_order=True) if tables else empty
    with whole(path) as beside:
        table.write_csv(beside, float_precision=4)


def suspect_details(by_head: Sequence[SuspectRows], notes: Sequence[str]) -> dict[str, object]:
    """Return counts, noise rates, confident joint and noise matrix of each head, for done.json."""
    heads = {
        of_head.suspects.head.name: {
            "n": of_head.suspects.n,
            "suspects": of_head.table.height,
            "edits": len(of_head.edits),
            "agreement": None if of_head.agreement is None else of_head.agreement.to_json(),
            "noise_rate": of_head.suspects.noise_rate,
            "noise_rates": of_head.suspects.noise_rates,
            "counts": of_head.suspects.counts.tolist(),
            "joint": np.round(of_head.suspects.joint, 6).tolist(),
            "noise_matrix": np.round(of_head.suspects.noise_matrix, 6).tolist(),
            "unjudged": list(of_head.suspects.unjudged),
        }
        for of_head in by_head
    }
    return {"heads": heads, "notes": list(notes)}


def suspect_lines(of_head: SuspectRows, progress: Progress) -> None:
    """Print how many labels of a head are suspect, and the commonest confusions."""
    suspects, name = of_head.suspects, of_head.suspects.head.name
    rate = suspects.noise_rate
    if rate is None:
        progress.line(f"  {name}: no label could be judged")
        return
    changed = f", {len(of_head.edits):,} edits" if of_head.edits else ""
    agreement = "" if of_head.agreement is None else f"; the judge agrees with {of_head.agreement.percent()}"
    low, high = wilson(rate * suspects.n, suspects.n)
    progress.line(
        f"  {name}: {of_head.table.height:,} of {suspects.n:,} labels are suspect{changed}; estimated to be wrong: "
        f"{Metric(rate, suspects.n, low, high).percent()}{agreement}"
    )
    confusions = _commonest_confusions(suspects)
    if confusions:
        progress.line(f"    mostly {', '.join(confusions)}")
    if suspects.unjudged:
        progress.line(
            f"    not judged, for too few labels or answers that are all alike: {', '.join(suspects.unjudged)}"
        )


def _commonest_confusions(suspects: HeadSuspects) -> list[str]:
    """Return the commonest confusions as text, with their share of the labels judged."""
    head, counts = suspects.head, suspects.counts
    if head.multiclass:
        wrong = counts - np.diag(np.diagonal(counts))
        names = [f"{given} for {true}" for given in head.classes for true in head.classes]
    else:
        wrong = np.stack([counts[:, 0, 1], counts[:, 1, 0]], axis=1)
        names = [f"{tag} {how}" for tag in head.classes for how in ("missing", "too much")]
    shares = wrong.ravel() / suspects.n
    order = np.argsort(-shares, kind="stable")[:LISTED_CONFUSIONS]
    return [f"{names[cell]} ({shares[cell]:.1%})" for cell in order.tolist() if shares[cell] > 0]
