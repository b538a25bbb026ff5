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

from assay.arrays import Floats, Ints
from assay.errors import DataError
from assay.files import fingerprint, whole
from assay.images.decode import Resize
from assay.labels.edits import Edit, apply
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.split import folds
from assay.labels.subset import labelled
from assay.metrics.intervals import Metric, share, wilson
from assay.models.classifier import require_size
from assay.models.trained_model import TrainedModel, require_unseen
from assay.predictions.out_of_fold import out_of_fold_by, single_fold_labels, single_fold_notes
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
from assay.settings import Source
from assay.steps.base import Context, State, Step, StepList, StepPlan, StepResult, StepSettings
from assay.steps.fit_settings import FitSettings
from assay.steps.start import bare_classifier, heads_named, inference_for, trained_before


class CleanLabelsSettings(StepSettings):
    """List the training labels that are probably wrong, by models not trained on them; change them where asked."""

    changes_labels = True

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to judge; default: all.")
    by: JudgeName | None = Field(
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
    def judge(self) -> JudgeName:
        """The name of the judge in `JUDGES`."""
        return self.by or ("both" if self.fine_tune is None else "confident_learning")


def run(settings: CleanLabelsSettings, state: State, context: Context) -> StepResult:
    """Judge each label by what the other folds teach; list the suspects, and propose the edits that are asked for.

    Only training labels are judged, pseudo-labels not among them: a prediction of a model is no evidence. Raises
    DataError where none is known, PlanError for a judge that learnt from them and for edits that would empty a class.
    """
    if not (context.processes.is_main_process or settings.fine_tune):
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
    by_head = _apply_action(settings, suspects, samples, probabilities, ledger=ledger, step=context.name)
    write_suspects(context.folder.suspects, by_head, samples)
    for of_head in by_head:
        suspect_lines(of_head, context.progress)
    edits = [edit for of_head in by_head for edit in of_head.edits]
    return StepResult(None, details=suspect_details(by_head, notes), edits=edits)


def holds(settings: CleanLabelsSettings, state: State, context: Context) -> list[StepList]:
    """Return the fit of a fold, where labels are judged by fits."""
    if settings.fine_tune is None:
        return []
    train = state.samples.table["split"].to_numpy() == "train"
    others = state.samples.take(np.flatnonzero(~train | (np.cumsum(train) % settings.folds > 0)))
    fit = settings.fine_tune.model_copy(update={"start": initial_weights(settings.fine_tune)})
    steps = [StepPlan(kind="fit", settings=fit)]
    return [StepList(steps, replace(state, samples=others), context.for_part("fold-1", 1), settings.folds)]


STEP = Step(
    CleanLabelsSettings,
    run,
    purpose="labels that are probably wrong",
    report=("size", "by", "weights"),
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


# Probabilities of training images by models that did not learn from their labels: on features, or fine-tuned.


def _out_of_fold_probabilities(
    settings: CleanLabelsSettings, known: Samples, samples: Samples, fold: Ints, *, state: State, context: Context
) -> Floats:
    """Return probabilities (N, W). Raises PlanError where the backbone has learnt from the labels."""
    model = context.model
    if settings.weights is not None:
        model = model.model_copy(update={"weights": settings.weights, "init_from": None})
    context = replace(context, model=model)
    trained_on, _ = trained_before(initial_weights(settings.fine_tune), state, context)
    require_unseen(trained_on, samples, what="clean_labels")
    if settings.fine_tune is not None:
        return judge_by_fine_tuning(settings.fine_tune, samples, fold, state=state, context=context)
    if model.weights == "none" and model.init_from is None:
        context.progress.line("  note: the judging network was trained on nothing, so its suspects are of little worth")
    return judge_by_features(settings, known, samples, fold, state=state, context=context)


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


def judge_by_fine_tuning(fit: FitSettings, samples: Samples, fold: Ints, *, state: State, context: Context) -> Floats:
    """Return probabilities (N, W) of the samples, by a fit of the other folds for each fold.

    Validation chooses the epoch of each fit. Finished folds are kept after a kill.
    """
    validation = state.samples.part("val")
    settings = fit.model_copy(update={"start": initial_weights(fit), "keep": fit.take})
    numbers = count(1)

    def predict(train: Samples, held: Samples) -> Floats:
        number = next(numbers)
        name = f"fold-{number}"
        table = pl.concat([train.table, validation.table])
        key = fingerprint(state.key, name, train.fingerprint())
        begun = State(replace(samples, table=table), None, key, state.done)
        step = StepPlan(kind="fit", settings=settings)
        ended = context.run_steps([step], begun, context.for_part(name, number))
        if ended.model is None or not context.processes.is_main_process:
            return np.zeros((len(held), samples.space.width), np.float32)  # the main process judges
        model = TrainedModel.load(ended.model)
        logits = inference_for(model.classifier, model, context).logits(held.ids)
        return model.decision_rule.logits(logits)

    return out_of_fold_by(samples, fold, predict).probabilities


def initial_weights(fit: FitSettings | None) -> str:
    """Return what the judge begins with: `pretrained`, unless a fit in every fold names a run."""
    return fit.start if fit is not None and fit.start != "previous" else "pretrained"


# The list of suspects, its summary, and its lines.

LISTED_CONFUSIONS = 3
SUSPECT_COLUMNS = ("image", "head", "class", "given", "suggested", "quality", "confidence", "done")


def write_suspects(path: Path, by_head: Sequence[SuspectRows], samples: Samples) -> None:
    """Write the suspects of all heads as CSV, the most suspicious first.

    `image`, `head` and `class` (of tags) name a label as a person's corrections do; `quality` is the probability of
    the given label, `confidence` that of the suggested one, `done` what was done.
    """
    ids = samples.ids
    tables = [
        pl.DataFrame(
            {
                "image": [ids[row] for row in of_head.table["row"].to_list()],
                "head": [of_head.suspects.head.name] * of_head.table.height,
                "class": of_head.table["tag"],
                **{name: of_head.table[name] for name in ("given", "suggested", "quality", "confidence")},
                "done": actions_done(of_head.table, of_head.suspects.head, ids, of_head.edits),
            },
            schema_overrides=dict.fromkeys(("image", "head", "class", "done"), pl.String),
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
