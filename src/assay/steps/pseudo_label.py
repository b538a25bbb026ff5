"""pseudo_label: labels for what is unknown, as the newest model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from assay.errors import PlanError
from assay.figures.metrics import probabilities_of
from assay.labels.edits import Edit
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.models.composite import load_model
from assay.predictions.inference import PLAIN
from assay.predictions.views import Flips, ViewSettings, view_logits, views_of
from assay.repair.pseudo_label_edits import Weight, edits, unlabelled
from assay.repair.pseudo_labels import Agreement, Changes, Chosen, Confidence, Keep, Mask, choose
from assay.settings import Settings
from assay.steps.soft_targets import write_soft
from assay.steps.start import remembered
from assay.steps.state import Context, State, StepResult
from assay.steps.validated import heads_named
from assay.training.hardware import Hardware

STEP = "pseudo_label"
TOLD = 12  # classes whose counts a line names
Array = npt.NDArray[np.float32]


class PseudoLabelSettings(Settings):
    """Give unknown training labels the answers of the model so far, anew each time."""

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to label; default: all.")
    keep: Keep = Field(Confidence(), description="Which of the answers become labels.")
    soft: bool = Field(False, description="Let a fit follow the probabilities themselves, not the class alone.")
    views: ViewSettings = Field(Flips(), description="The views that must agree, where that is what is kept.")
    weight: Weight = Field(1.0, description="What a pseudo-label counts, or `confidence`: its own probability.")

    @model_validator(mode="after")
    def _consistent(self) -> PseudoLabelSettings:
        if self.views != Flips() and not isinstance(self.keep, Agreement):
            raise ValueError(
                f"views are asked whether they agree, and keep: {self.keep.kind} does not; drop one of them"
            )
        return self


def run(settings: PseudoLabelSettings, state: State, context: Context) -> StepResult:
    """Answer every unknown cell of the training part, those labelled by an earlier round too, and keep some answers.

    Raises PlanError without a model, DataError for a head of which no training label is known.
    """
    if state.model is None:
        raise PlanError(f"{STEP}: there is no model yet to answer. Put a probe or a fit before it.")
    train = state.samples.part("train")
    before = Ledger.read(context.ledger).of(state.done).effective()
    heads = heads_named(state.samples.space, settings.heads, step=STEP)
    known = [unlabelled(head, train, before) for _, head, _ in heads]
    asked = np.flatnonzero(np.any([_pictures((codes < 0) & ~closed) for codes, closed in known], axis=0))
    views = _answers(settings, state.model, train, asked, context=context)
    proposed: list[Edit] = []
    details: dict[str, Any] = {}
    soft = {name: path for name, path in state.soft.items() if name not in {head.name for _, head, _ in heads}}
    now = train.codes()
    for (place, head, columns), (codes, closed) in zip(heads, known, strict=True):
        chosen = choose(
            head,
            codes,
            views[0][:, columns],
            keep=settings.keep,
            view_probabilities=[view[:, columns] for view in views],
            closed=closed,
            soft=settings.soft,
        )
        if settings.soft and len(chosen.rows):
            soft[head.name] = context.folder / f"soft-{place}.parquet"
            write_soft(soft[head.name], chosen, train)
        proposed += edits(chosen, train, context.name, weight=settings.weight, before=before)
        changes = chosen.changed_since(now[place])
        details[head.name] = _told(chosen, changes, int(((codes < 0) & ~closed).sum()), context)
    return StepResult(None, details=details, edits=proposed, soft=soft)


def _answers(
    settings: PseudoLabelSettings, model: Path, train: Samples, asked: npt.NDArray[np.intp], *, context: Context
) -> list[Array]:
    """Probabilities (N, W) by view, the plain picture's first; NaN for pictures that are not asked about."""
    unknown = np.full((len(train), train.space.width), np.nan, np.float32)
    if len(asked) == 0:
        return [unknown]
    others = views_of(settings.views) if isinstance(settings.keep, Agreement) else ()
    views = [PLAIN, *(view for view in others if view != PLAIN)]
    hardware = remembered(context, "inference") or Hardware(context.device)
    ids, found = train.take(asked).ids, []
    for logits in view_logits(load_model(model), context.pictures, ids, views=views, hardware=hardware):
        found.append(unknown.copy())
        found[-1][asked] = probabilities_of(train.space, logits)
    return found


def _pictures(cells: Mask) -> Mask:
    """Which pictures (N,) have such a cell."""
    return cells if cells.ndim == 1 else np.any(cells, axis=1)


def _told(chosen: Chosen, changes: Changes, unknown: int, context: Context) -> dict[str, Any]:
    """How many were kept and changed under one head, for done.json; said in a line too."""
    head, kept = chosen.head, int(chosen.kept.sum())
    by_class = chosen.counts if head.kind == "exclusive" else chosen.counts[:, 1]
    counts = {name: int(number) for name, number in zip(head.classes, by_class, strict=True)}
    for note in chosen.notes:
        context.watch.line(f"  note: {note}")
    listed = [f"{name} {number:,}" for name, number in counts.items() if number]
    more = f" and {len(listed) - TOLD} more" if len(listed) > TOLD else ""
    of_class = f": {', '.join(listed[:TOLD])}{more}" if listed else ""
    what = "" if head.kind == "exclusive" else " (counted below: present)"
    context.watch.line(
        f"  {head.name}: {kept:,} of {unknown:,} unknown labels kept{what}{of_class}; since the round before "
        f"{changes.new:,} new, {changes.different:,} others, {changes.gone:,} gone"
    )
    return {
        "unknown": unknown,
        "kept": kept,
        "kept by class": counts,
        "changed": changes._asdict(),
        "mean confidence": float(chosen.confidence[chosen.kept].mean()) if kept else None,
        "notes": list(chosen.notes),
    }
