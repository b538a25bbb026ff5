"""pseudo_label: predictions of the newest model as labels for what is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import Field

from assay.arrays import Floats, Ints
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
from assay.steps.base import Context, State, Step, StepResult, StepSettings
from assay.steps.start import heads_named, inference_hardware

LISTED_CLASSES = 12  # with their counts in a line


class PseudoLabelSettings(StepSettings):
    """Give unknown training labels the answers of the model so far, anew each time."""

    changes_labels = True

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to label; default: all.")
    keep: Keep = Field(Confidence(), description="Which of the answers become labels.")
    soft: bool = Field(False, description="Let a fit follow the probabilities themselves, not the class alone.")
    tta: TTASettings = Field(Flips(), description="The views that must agree, where that is what is kept.")
    weight: LabelWeight = Field(1.0, description="What a pseudo-label counts, or `confidence`: its own probability.")

    def require_consistent(self) -> None:
        if self.tta != Flips() and not isinstance(self.keep, Agreement):
            raise ValueError(f"tta is asked whether they agree, and keep: {self.keep.kind} does not; drop one of them")


def run(settings: PseudoLabelSettings, state: State, context: Context) -> StepResult:
    """Predict every unknown label of the training part, those given by an earlier round too, and keep some.

    Raises PlanError without a model, DataError for a head of which no training label is known.
    """
    if state.model is None:
        raise PlanError("pseudo_label: there is no model yet to answer. Put a probe or a fit before it.")
    train = state.samples.part("train")
    before = Ledger.read(context.ledger).of(state.done).effective()
    heads = heads_named(state.samples.space, settings.heads, step="pseudo_label")
    known = [without_labels(head, train, before) for _, head, _ in heads]
    unknown = [(codes < 0) & ~closed for codes, closed in known]
    rows = np.flatnonzero(
        np.any([head.any_cell(cells) for (_, head, _), cells in zip(heads, unknown, strict=True)], axis=0)
    )
    views = _view_probabilities(settings, state.model, train, rows, context=context)
    edits: list[Edit] = []
    details: dict[str, object] = {}
    soft = {name: path for name, path in state.soft.items() if name not in {head.name for _, head, _ in heads}}
    all_codes = train.codes()
    for (index, head, columns), (codes, closed), cells in zip(heads, known, unknown, strict=True):
        chosen = choose_pseudo_labels(
            head,
            codes,
            views[0][:, columns],
            keep=settings.keep,
            view_probabilities=[view[:, columns] for view in views],
            closed=closed,
            soft=settings.soft,
        )
        targets = _soft_targets(chosen, state.soft, train)
        if (rows := np.flatnonzero(np.isfinite(targets).any(axis=1))).size:
            soft[head.name] = context.folder.path / f"soft-{index}.parquet"
            write_soft_targets(soft[head.name], head, train, rows, targets=targets, given=chosen.labels)
        edits += pseudo_label_edits(chosen, train, context.name, weight=settings.weight, before=before)
        details[head.name] = _details(chosen, chosen.changed_since(all_codes[index]), int(cells.sum()), context)
    return StepResult(None, details=details, edits=edits, soft=soft)


STEP = Step(
    PseudoLabelSettings,
    run,
    purpose="labels for images that had none",
    report=("keep",),
    needs_model=True,
    repairs=True,
    computes=lambda settings: True,
)


def _view_probabilities(
    settings: PseudoLabelSettings, model: Path, train: Samples, rows: Ints, *, context: Context
) -> list[Floats]:
    """Return probabilities (N, W) of these rows by view, the plain image's first; NaN for other rows."""
    unknown = np.full((len(train), train.space.width), np.nan, np.float32)
    if len(rows) == 0:
        return [unknown]
    views, hardware = _views(settings), inference_hardware(context)
    by_view = []
    for logits in tta_logits(load_model(model), context.images, train.take(rows).ids, views=views, hardware=hardware):
        by_view.append(unknown.copy())
        by_view[-1][rows] = probabilities_of(train.space, logits)
    return by_view


def _views(settings: PseudoLabelSettings) -> list[View]:
    """Return the views that are predicted, the plain image first."""
    others = tta_views(settings.tta) if isinstance(settings.keep, Agreement) else ()
    return [PLAIN, *(view for view in others if view != PLAIN)]


def predicted_images(settings: PseudoLabelSettings, samples: Samples) -> int:
    """Return how many images, or views of them, pass through the network."""
    return len(_views(settings)) * len(partly_unknown(samples.part("train")))


def _details(chosen: PseudoLabels, changes: Changes, unknown: int, context: Context) -> dict[str, object]:
    """Return how many labels of one head were kept and changed, for done.json; print them."""
    head, kept = chosen.head, int(chosen.kept.sum())
    by_class = chosen.counts if head.multiclass else chosen.counts[:, 1]
    counts = {name: int(number) for name, number in zip(head.classes, by_class, strict=True)}
    for note in chosen.notes:
        context.progress.line(f"  note: {note}")
    listed = [f"{name} {number:,}" for name, number in counts.items() if number]
    more = f" and {len(listed) - LISTED_CLASSES} more" if len(listed) > LISTED_CLASSES else ""
    of_class = f": {', '.join(listed[:LISTED_CLASSES])}{more}" if listed else ""
    what = "" if head.multiclass else " (counted below: present)"
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


# Soft targets: probabilities in place of a label, in a file of the step that gave them.


def _soft_targets(chosen: PseudoLabels, before: Mapping[str, Path], train: Samples) -> Floats:
    """Return the soft targets (N, K) of the pseudo-labels kept, and of given labels as before; NaN elsewhere."""
    head = chosen.head
    targets = np.full((len(train), head.size), np.nan, np.float32)
    if (earlier := soft_targets(before, train)[train.space.heads.index(head)]) is not None:
        known = head.decided(chosen.given)
        targets[known] = earlier[known]
    return targets if chosen.soft is None else np.where(np.isnan(chosen.soft), targets, chosen.soft)


def write_soft_targets(path: Path, head: Head, samples: Samples, rows: Ints, *, targets: Floats, given: Codes) -> None:
    """Write the targets of these rows, of (N, K) of the samples, with the labels (N,) or (N, K) that they stand for."""
    ids, labels = samples.ids, head.columns(given[rows])
    table = pl.DataFrame({"id": [ids[row] for row in rows], "targets": targets[rows], "labels": labels})
    with whole(path) as beside:
        table.write_parquet(beside)


def soft_targets(paths: Mapping[str, Path], samples: Samples) -> list[Floats | None]:
    """Return soft targets (N, K) of each head, NaN where there is none; None for a head without any.

    `paths` are files of `write_soft_targets` by head. A target counts only where the label still is the one it was
    written for: a label undone or corrected since is another one.
    """
    row_of = {image: row for row, image in enumerate(samples.ids)}
    by_head: list[Floats | None] = []
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        if head.name not in paths:
            by_head.append(None)
            continue
        table = pl.read_parquet(paths[head.name]).filter(pl.col("id").is_in(samples.ids))
        rows = [row_of[image] for image in table["id"]]
        targets, labels = np.full((len(samples), head.size), np.nan, np.float32), head.unknown(len(samples))
        targets[rows] = np.asarray(table["targets"].to_numpy(), np.float32).reshape(-1, head.size)
        labels[rows] = head.from_columns(table["labels"].to_numpy().astype(np.int64).reshape(-1, head.cells))
        targets[~head.columns((labels == codes) & (codes >= 0)).repeat(head.size // head.cells, axis=1)] = np.nan
        by_head.append(targets)
    return by_head
