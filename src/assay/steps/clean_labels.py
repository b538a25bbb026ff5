"""What a clean_labels may be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from assay.arrays import Floats, Ints
from assay.errors import DataError
from assay.files import fingerprint, whole
from assay.images.decode import Resize
from assay.labels.edits import Edit, apply
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.split import folds
from assay.labels.subset import labelled
from assay.models.classifier import require_size
from assay.models.trained_model import TrainedModel, require_unseen
from assay.predictions.out_of_fold import out_of_fold_by, single_fold_labels, single_fold_notes
from assay.progress import Progress
from assay.repair.confident_learning import Filter, HeadSuspects
from assay.repair.suspects import (
    IN_WORDS,
    Action,
    CleanAction,
    Flag,
    Judges,
    actions_done,
    averaged_posterior,
    capped,
    find_suspects,
    persons_cells,
    refuse_emptied,
    restrict,
    suspect_edits,
    without_pseudo_labels,
)
from assay.settings import Settings, Source
from assay.steps.base import Context, State, StepList, StepPlan, StepResult
from assay.steps.fit_settings import FitSettings
from assay.steps.start import bare_classifier, heads_named, inference_for, trained_before


class CleanLabelsSettings(Settings):
    """List the training labels that are probably wrong, by models that did not see them; change them if told to."""

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to judge; default: all.")
    by: Judges | None = Field(
        None, description="Whose probabilities judge; default: both on features, confident_learning with fine_tune."
    )
    size: int = Field(192, ge=16, description="Images are resized to size x size pixels.")
    resize: Resize = Resize()
    weights: Annotated[str | None, Source("weights", frozenset({"pretrained", "none"}))] = Field(
        None, description="Weights of the judging backbone, as under model; default: those that the plan begins with."
    )
    fine_tune: FitSettings | None = Field(
        None, description="Judge by such a fit, anew for every fold, instead of on the features of a frozen backbone."
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
        if self.fine_tune is None:
            return self
        if self.by in ("neighbours", "both"):
            raise ValueError(
                f"by: {self.by} looks for neighbours in the features of a backbone that no label has touched, and "
                "fine_tune asks for another judge; drop one of them"
            )
        if self.fine_tune.start == "previous" and "start" in self.fine_tune.model_fields_set:
            raise ValueError(
                "fine_tune begins anew in every fold, and start: previous would begin with a model that has seen "
                "the labels it is to judge; drop start"
            )
        return self

    @property
    def judge(self) -> Judges:
        """Whose probabilities judge."""
        return self.by or ("both" if self.fine_tune is None else "confident_learning")


# clean_labels: the training labels that are probably wrong, listed, and changed where that is asked for.

CLEAN_STEP = "clean_labels"


def run(settings: CleanLabelsSettings, state: State, context: Context) -> StepResult:
    """Judge each label by what the other folds teach; list the suspects, and propose the edits that are asked for.

    Only training labels are judged, pseudo-labels not among them: a model's answer is no evidence. Raises DataError
    where none is known, PlanError for a judge that has seen them and for edits that would empty a class.
    """
    if not (context.processes.is_main_process or settings.fine_tune):
        return StepResult(None)
    ledger = Ledger.read(context.ledger)
    before = ledger.of(state.done).effective()
    known = labelled(without_pseudo_labels(state.samples.part("train"), before))
    named = [head.name for _, head, _ in heads_named(state.samples.space, settings.heads, step=CLEAN_STEP)]
    samples = labelled(restrict(known, named))
    if len(samples) == 0:
        raise DataError(f"{CLEAN_STEP}: no training image has a known label, so there is nothing to judge. Label some.")
    fold = folds(samples, settings.folds, seed=context.seed)
    if len(np.unique(fold)) < 2:
        context.progress.line("  nothing can be judged: all labelled images are copies of one, or of one group")
        write_suspects(context.folder.suspects, [], samples)
        return StepResult(None, details=suspect_details([], ["there is but one image, or one group"]))
    probabilities = _out_of_fold_probabilities(settings, known, samples, fold, state=state, context=context)
    if not context.processes.is_main_process:
        return StepResult(None)
    notes = single_fold_notes(samples, single_fold_labels(samples, fold))
    for note in notes:
        context.progress.line(f"  {note}")
    suspects = find_suspects(samples, probabilities, fold, filter_by=settings.filter)
    found = _apply_action(settings, suspects, samples, probabilities, ledger=ledger, step=context.name)
    write_suspects(context.folder.suspects, found, samples)
    for one in found:
        suspect_lines(one, context.progress)
    return StepResult(None, details=suspect_details(found, notes), edits=[edit for one in found for edit in one.edits])


def _out_of_fold_probabilities(
    settings: CleanLabelsSettings, known: Samples, samples: Samples, fold: Ints, *, state: State, context: Context
) -> Floats:
    """Answers (N, W) of judges that did not see the labels. Raises PlanError where the backbone has seen them."""
    model = context.model
    if settings.weights is not None:
        model = model.model_copy(update={"weights": settings.weights, "init_from": None})
    context = replace(context, model=model)
    trained_on, _ = trained_before(initial_weights(settings.fine_tune), state, context)
    require_unseen(trained_on, samples, what=CLEAN_STEP)
    if settings.fine_tune is not None:
        return judge_by_fine_tuning(settings.fine_tune, samples, fold, state=state, context=context)
    if model.weights == "none" and model.init_from is None:
        context.progress.line("  note: the judging network was trained on nothing, so its suspects are of little worth")
    return judge_by_features(settings, known, samples, fold, state=state, context=context)


def _apply_action(
    settings: CleanLabelsSettings,
    suspects: Sequence[HeadSuspects],
    samples: Samples,
    probabilities: Floats,
    *,
    ledger: Ledger,
    step: str,
) -> list[SuspectRows]:
    """The suspects of each head with what is done about them, once it is sure that no class loses all its labels."""
    persons, ids = persons_cells(ledger.effective()), samples.ids
    by = IN_WORDS[settings.judge]
    found = []
    for one, codes, columns in zip(suspects, samples.codes(), samples.space.slices, strict=True):
        table = capped(one, codes, settings.max_share)
        cells = [(ids[row], one.head.name, tag) in persons for row, tag in table.select("row", "tag").iter_rows()]
        table = table.filter(~pl.Series(cells, dtype=pl.Boolean))
        done = ledger.allowed(suspect_edits(table, one.head, samples, CleanAction(step, by), action=settings.action))
        found.append(SuspectRows(one, table, done, _agreement(one.head, codes, probabilities[:, columns])))
    after = apply(samples, [edit for one in found for edit in one.edits])
    for head, was, now in zip(samples.space, samples.codes(), after.codes(), strict=True):
        refuse_emptied(head, was, now, step=CLEAN_STEP)
    return found


def _agreement(head: Head, codes: Codes, probabilities: Floats) -> float | None:
    """The share of the known labels that are the most probable answer."""
    known = codes >= 0
    answers = probabilities.argmax(axis=1) if head.kind == "multiclass" else (probabilities >= 0.5).astype(np.int64)
    return float((answers == codes)[known].mean()) if known.any() else None


# Answers for training images by models that did not see their labels: on features, or fine-tuned in every fold.


def judge_by_features(
    settings: CleanLabelsSettings, known: Samples, samples: Samples, fold: Ints, *, state: State, context: Context
) -> Floats:
    """Probabilities (N, W) for the samples, on features of the backbone that the plan begins with.

    Features are taken of all images `known`, among them the samples: a probe has left just these in the cache.
    """
    classifier = bare_classifier(state, context, size=settings.size)
    require_size(classifier, settings.size)
    inference = inference_for(classifier, settings, context)
    features = inference.features(known.ids, folder=context.run.cache, progress=context.progress)
    row = {name: number for number, name in enumerate(known.ids)}
    own = features if len(known) == len(samples) else features[[row[name] for name in samples.ids]]
    return averaged_posterior(samples, own, fold, by=settings.judge, near=settings.neighbours, seed=context.seed)


def judge_by_fine_tuning(fit: FitSettings, samples: Samples, fold: Ints, *, state: State, context: Context) -> Floats:
    """Probabilities (N, W) for the samples, by a fit of the others for each fold, in a folder of its own.

    Validation chooses the epoch of each, as it does elsewhere. Finished folds are kept after a kill.
    """
    validation = state.samples.part("val")
    own = fit.model_copy(update={"start": initial_weights(fit), "keep": fit.take})
    numbers = count(1)

    def answer(train: Samples, held: Samples) -> Floats:
        name = f"fold-{next(numbers)}"
        table = pl.concat([train.table, validation.table])
        begun = State(
            replace(samples, table=table), None, fingerprint(state.key, name, train.fingerprint()), state.done
        )
        ended = context.run_steps([StepPlan(kind="fit", settings=own)], begun, context.for_part(name, int(name[5:])))
        if ended.model is None or not context.processes.is_main_process:
            return np.zeros((len(held), samples.space.width), np.float32)  # the main process judges
        saved = TrainedModel.load(ended.model)
        raw = inference_for(saved.classifier, saved, context).logits(held.ids)
        return saved.decision_rule.logits(raw)

    return out_of_fold_by(samples, fold, answer).probabilities


def holds(settings: CleanLabelsSettings, state: State, context: Context) -> list[StepList]:
    """Return the fit of a fold, where labels are judged by fits."""
    if settings.fine_tune is None:
        return []
    train = state.samples.table["split"].to_numpy() == "train"
    others = state.samples.take(np.flatnonzero(~train | (np.cumsum(train) % settings.folds > 0)))
    fit = settings.fine_tune.model_copy(update={"start": initial_weights(settings.fine_tune)})
    steps = [StepPlan(kind="fit", settings=fit)]
    return [StepList(steps, replace(state, samples=others), context.for_part("fold-1", 1), settings.folds)]


def initial_weights(fit: FitSettings | None) -> str:
    """What the judge begins with: `pretrained`, unless a fit in every fold names a run."""
    return fit.start if fit is not None and fit.start != "previous" else "pretrained"


# The list of suspect labels that a step leaves, and what is said of them.

LISTED_CLASSES = 3  # confusions named in a line
SUSPECT_COLUMNS = ("image", "head", "class", "given", "suggested", "quality", "confidence", "done")


@dataclass(frozen=True)
class SuspectRows:
    """What was found under one head, and what is done about it.

    `table` are the suspects that `max_share` and a person's word leave, `agreement` is the share of the judged
    labels that the judge would have given as well.
    """

    suspects: HeadSuspects
    table: pl.DataFrame
    edits: Sequence[Edit]
    agreement: float | None


def write_suspects(path: Path, found: Sequence[SuspectRows], samples: Samples) -> None:
    """Write the suspects of all heads as CSV, the most suspicious first.

    `image`, `head` and `class` (of tags) name a label as a person's corrections do; `quality` is the probability of
    the given label, `confidence` that of the suggested one, `done` what was done.
    """
    ids = samples.ids
    tables = [
        pl.DataFrame(
            {
                "image": [ids[row] for row in one.table["row"].to_list()],
                "head": [one.suspects.head.name] * one.table.height,
                "class": one.table["tag"],
                **{name: one.table[name] for name in ("given", "suggested", "quality", "confidence")},
                "done": actions_done(one.table, one.suspects.head, ids, one.edits),
            },
            schema_overrides=dict.fromkeys(("image", "head", "class", "done"), pl.String),
        )
        for one in found
    ]
    empty = pl.DataFrame(schema=dict.fromkeys(SUSPECT_COLUMNS, pl.String))
    table = pl.concat(tables).sort("quality", maintain_order=True) if tables else empty
    with whole(path) as beside:
        table.write_csv(beside, float_precision=4)


def suspect_details(found: Sequence[SuspectRows], notes: Sequence[str]) -> dict[str, Any]:
    """What done.json keeps: by head the counts, the rates of noise, the confident joint and the noise matrix."""
    heads = {
        one.suspects.head.name: {
            "n": one.suspects.n,
            "suspects": one.table.height,
            "edits": len(one.edits),
            "agreement": one.agreement,
            "noise_rate": one.suspects.noise_rate,
            "noise_rates": one.suspects.noise_rates,
            "counts": one.suspects.counts.tolist(),
            "joint": np.round(one.suspects.joint, 6).tolist(),
            "noise_matrix": np.round(one.suspects.noise_matrix, 6).tolist(),
            "unjudged": list(one.suspects.unjudged),
        }
        for one in found
    }
    return {"heads": heads, "notes": list(notes)}


def suspect_lines(found: SuspectRows, progress: Progress) -> None:
    """Say in a few lines what was found under a head."""
    suspects, name = found.suspects, found.suspects.head.name
    rate = suspects.noise_rate
    if rate is None:
        progress.line(f"  {name}: no label could be judged")
        return
    changed = f", {len(found.edits):,} edits" if found.edits else ""
    agreement = "" if found.agreement is None else f"; the judge agrees with {found.agreement:.1%}"
    progress.line(
        f"  {name}: {found.table.height:,} of {suspects.n:,} labels are suspect{changed}; estimated to be wrong: "
        f"{rate:.1%}{agreement}"
    )
    worst = _worst(suspects)
    if worst:
        progress.line(f"    mostly {', '.join(worst)}")
    if suspects.unjudged:
        few = ", ".join(suspects.unjudged)
        progress.line(f"    not judged, for too few labels or answers that are all alike: {few}")


def _worst(suspects: HeadSuspects) -> list[str]:
    """The commonest confusions, with their share of the labels judged."""
    head, counts = suspects.head, suspects.counts
    if head.kind == "multiclass":
        wrong = counts - np.diag(np.diagonal(counts))
        told = [f"{given} for {true}" for given in head.classes for true in head.classes]
    else:
        wrong = np.stack([counts[:, 0, 1], counts[:, 1, 0]], axis=1)
        told = [f"{tag} {how}" for tag in head.classes for how in ("missing", "too much")]
    shares = wrong.ravel() / suspects.n
    order = np.argsort(-shares, kind="stable")[:LISTED_CLASSES]
    return [f"{told[place]} ({shares[place]:.1%})" for place in order.tolist() if shares[place] > 0]
