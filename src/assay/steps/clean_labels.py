"""clean_labels: the training labels that are probably wrong, listed, and changed where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from assay.errors import DataError
from assay.labels.edits import apply
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.split import folds
from assay.labels.subset import labelled
from assay.models.seen import refuse_seen
from assay.predictions.out_of_fold import blind, blind_notes
from assay.repair.confident_learning import HeadSuspects
from assay.repair.judges import IN_WORDS, judged, only, persons_cells, without_pseudo_labels
from assay.repair.suspect_edits import Judge, capped, edits, refuse_emptied
from assay.steps.clean_settings import CleanLabelsSettings
from assay.steps.judging import by_features, by_fine_tuning, starts_from
from assay.steps.start import trained_before
from assay.steps.state import Context, State, StepResult
from assay.steps.suspects import Found, details_of, tell, write_suspects
from assay.steps.validated import heads_named

STEP = "clean_labels"
Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


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
    named = [head.name for _, head, _ in heads_named(state.samples.space, settings.heads, step=STEP)]
    samples = labelled(only(known, named))
    if len(samples) == 0:
        raise DataError(f"{STEP}: no training picture has a known label, so there is nothing to judge. Label some.")
    fold = folds(samples, settings.folds, seed=context.seed)
    if len(np.unique(fold)) < 2:
        context.watch.line("  nothing can be judged: all labelled pictures are copies of one, or of one group")
        write_suspects(context.folder / "suspects.csv", [], samples)
        return StepResult(None, details=details_of([], ["there is but one picture, or one group"]))
    probabilities = _probabilities(settings, known, samples, fold, state=state, context=context)
    if not context.processes.is_main_process:
        return StepResult(None)
    notes = blind_notes(samples, blind(samples, fold))
    for note in notes:
        context.watch.line(f"  {note}")
    suspects = judged(samples, probabilities, fold, filter_by=settings.filter)
    found = _acted(settings, suspects, samples, probabilities, ledger=ledger, step=context.name)
    write_suspects(context.folder / "suspects.csv", found, samples)
    for one in found:
        tell(one, context.watch)
    return StepResult(None, details=details_of(found, notes), edits=[edit for one in found for edit in one.edits])


def _probabilities(
    settings: CleanLabelsSettings, known: Samples, samples: Samples, fold: Ints, *, state: State, context: Context
) -> Array:
    """Answers (N, W) of judges that did not see the labels. Raises PlanError where the backbone has seen them."""
    model = context.model
    if settings.weights is not None:
        model = model.model_copy(update={"weights": settings.weights, "init_from": None})
    context = replace(context, model=model)
    trained_on, _ = trained_before(starts_from(settings.fine_tune), state, context)
    refuse_seen(trained_on, samples, what=STEP)
    if settings.fine_tune is not None:
        return by_fine_tuning(settings.fine_tune, samples, fold, state=state, context=context)
    if model.weights == "none" and model.init_from is None:
        context.watch.line("  note: the judging network was trained on nothing, so its suspects are of little worth")
    return by_features(settings, known, samples, fold, state=state, context=context)


def _acted(
    settings: CleanLabelsSettings,
    suspects: Sequence[HeadSuspects],
    samples: Samples,
    probabilities: Array,
    *,
    ledger: Ledger,
    step: str,
) -> list[Found]:
    """The suspects of each head with what is done about them, once it is sure that no class loses all its labels."""
    persons, ids = persons_cells(ledger.effective()), samples.ids
    by = IN_WORDS[settings.judge]
    found = []
    for one, codes, columns in zip(suspects, samples.codes(), samples.space.slices, strict=True):
        table = capped(one, codes, settings.max_share)
        cells = [(ids[row], one.head.name, tag) in persons for row, tag in table.select("row", "tag").iter_rows()]
        table = table.filter(~pl.Series(cells, dtype=pl.Boolean))
        done = ledger.allowed(edits(table, one.head, samples, Judge(step, by), action=settings.action))
        found.append(Found(one, table, done, _agreement(one.head, codes, probabilities[:, columns])))
    after = apply(samples, [edit for one in found for edit in one.edits])
    for head, was, now in zip(samples.space, samples.codes(), after.codes(), strict=True):
        refuse_emptied(head, was, now, step=STEP)
    return found


def _agreement(head: Head, codes: Codes, probabilities: Array) -> float | None:
    """The share of the known labels that are the most probable answer."""
    known = codes >= 0
    answers = probabilities.argmax(axis=1) if head.kind == "exclusive" else (probabilities >= 0.5).astype(np.int64)
    return float((answers == codes)[known].mean()) if known.any() else None
