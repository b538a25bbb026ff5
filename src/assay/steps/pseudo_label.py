"""pseudo_label: labels for what is unknown, as the newest model answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from assay.arrays import Bools, Floats
from assay.errors import PlanError
from assay.files import whole
from assay.labels.edits import Edit
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.subset import partly_unknown
from assay.metrics.metrics import probabilities_of
from assay.models.ensemble import load_model
from assay.predictions.inference import PLAIN, View
from assay.predictions.tta import Flips, TTASettings, tta_logits, tta_views
from assay.repair.pseudo_labels import (
    Agreement,
    Changes,
    Confidence,
    Keep,
    LabelWeight,
    PseudoLabels,
    choose_pseudo_labels,
    pseudo_label_edits,
    without_labels,
)
from assay.settings import Settings
from assay.steps.base import Context, State, StepResult
from assay.steps.start import heads_named, stored_hardware
from assay.training.devices import Hardware

STEP = "pseudo_label"
TOLD = 12  # classes whose counts a line names


class PseudoLabelSettings(Settings):
    """Give unknown training labels the answers of the model so far, anew each time."""

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to label; default: all.")
    keep: Keep = Field(Confidence(), description="Which of the answers become labels.")
    soft: bool = Field(False, description="Let a fit follow the probabilities themselves, not the class alone.")
    tta: TTASettings = Field(Flips(), description="The views that must agree, where that is what is kept.")
    weight: LabelWeight = Field(1.0, description="What a pseudo-label counts, or `confidence`: its own probability.")

    @model_validator(mode="after")
    def _consistent(self) -> PseudoLabelSettings:
        if self.tta != Flips() and not isinstance(self.keep, Agreement):
            raise ValueError(f"tta is asked whether they agree, and keep: {self.keep.kind} does not; drop one of them")
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
    known = [without_labels(head, train, before) for _, head, _ in heads]
    asked = np.flatnonzero(np.any([_images((codes < 0) & ~closed) for codes, closed in known], axis=0))
    views = _answers(settings, state.model, train, asked, context=context)
    proposed: list[Edit] = []
    details: dict[str, Any] = {}
    soft = {name: path for name, path in state.soft.items() if name not in {head.name for _, head, _ in heads}}
    now = train.codes()
    for (place, head, columns), (codes, closed) in zip(heads, known, strict=True):
        chosen = choose_pseudo_labels(
            head,
            codes,
            views[0][:, columns],
            keep=settings.keep,
            view_probabilities=[view[:, columns] for view in views],
            closed=closed,
            soft=settings.soft,
        )
        if settings.soft and len(chosen.rows):
            soft[head.name] = context.folder.path / f"soft-{place}.parquet"
            write_soft_targets(soft[head.name], chosen, train)
        proposed += pseudo_label_edits(chosen, train, context.name, weight=settings.weight, before=before)
        changes = chosen.changed_since(now[place])
        details[head.name] = _told(chosen, changes, int(((codes < 0) & ~closed).sum()), context)
    return StepResult(None, details=details, edits=proposed, soft=soft)


def _answers(
    settings: PseudoLabelSettings, model: Path, train: Samples, asked: npt.NDArray[np.intp], *, context: Context
) -> list[Floats]:
    """Probabilities (N, W) by view, the plain image's first; NaN for images that are not asked about."""
    unknown = np.full((len(train), train.space.width), np.nan, np.float32)
    if len(asked) == 0:
        return [unknown]
    hardware = stored_hardware(context, "inference") or Hardware(context.device)
    ids, found = train.take(asked).ids, []
    for logits in tta_logits(load_model(model), context.images, ids, views=_views(settings), hardware=hardware):
        found.append(unknown.copy())
        found[-1][asked] = probabilities_of(train.space, logits)
    return found


def _views(settings: PseudoLabelSettings) -> list[View]:
    """The views that are answered, the plain image first."""
    others = tta_views(settings.tta) if isinstance(settings.keep, Agreement) else ()
    return [PLAIN, *(view for view in others if view != PLAIN)]


def images_to_answer(settings: PseudoLabelSettings, samples: Samples) -> int:
    """Return how many images, or views of them, pass through the network."""
    return len(_views(settings)) * len(partly_unknown(samples.part("train")))


def _images(cells: Bools) -> Bools:
    """Which images (N,) have such a cell."""
    return cells if cells.ndim == 1 else np.any(cells, axis=1)


def _told(chosen: PseudoLabels, changes: Changes, unknown: int, context: Context) -> dict[str, Any]:
    """How many were kept and changed under one head, for done.json; said in a line too."""
    head, kept = chosen.head, int(chosen.kept.sum())
    by_class = chosen.counts if head.kind == "multiclass" else chosen.counts[:, 1]
    counts = {name: int(number) for name, number in zip(head.classes, by_class, strict=True)}
    for note in chosen.notes:
        context.progress.line(f"  note: {note}")
    listed = [f"{name} {number:,}" for name, number in counts.items() if number]
    more = f" and {len(listed) - TOLD} more" if len(listed) > TOLD else ""
    of_class = f": {', '.join(listed[:TOLD])}{more}" if listed else ""
    what = "" if head.kind == "multiclass" else " (counted below: present)"
    context.progress.line(
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


# Soft pseudo-labels: probabilities that training follows in place of a label, in a file of the step that gave it.


def write_soft_targets(path: Path, chosen: PseudoLabels, samples: Samples) -> None:
    """Write the soft targets of the pseudo-labels kept, a row an image of the samples that were asked about."""
    assert chosen.soft is not None
    ids = samples.ids
    table = pl.DataFrame({"id": [ids[row] for row in chosen.rows], "targets": chosen.soft[chosen.rows]})
    with whole(path) as beside:
        table.write_parquet(beside)


def soft_targets(places: Mapping[str, Path], samples: Samples) -> list[Floats | None]:
    """Soft targets (N, K) of each head, NaN where there is none; None for a head without any.

    `places` are files of `write_soft` by head. A target counts only where the label is still the answer that it was
    written for: what was undone or corrected since is no longer a pseudo-label.
    """
    row_of = {name: row for row, name in enumerate(samples.ids)}
    found: list[Floats | None] = []
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        if head.name not in places:
            found.append(None)
            continue
        table = pl.read_parquet(places[head.name])
        table = table.filter(pl.col("id").is_in(samples.ids))
        targets = np.full((len(samples), head.size), np.nan, np.float32)
        given = np.asarray(table["targets"].to_numpy(), np.float32).reshape(-1, head.size)
        targets[[row_of[name] for name in table["id"]]] = given
        targets[~_stands(head, codes, targets)] = np.nan
        found.append(targets)
    return found


def _stands(head: Head, codes: Codes, targets: Floats) -> Bools:
    """Where the label is what the targets answer: (N,) multi-class, (N, K) multi-label."""
    if head.kind == "multiclass":
        stands: Bools = np.isfinite(targets).all(axis=1) & (targets.argmax(axis=1) == codes)
        return stands
    stands = np.isfinite(targets) & ((targets >= 0.5) == (codes == 1)) & (codes >= 0)
    return stands
