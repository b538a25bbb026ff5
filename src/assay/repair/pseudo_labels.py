"""Pseudo-labels (Lee 2013): predictions of a model as labels for what is unknown, and which of them to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, assert_never

import numpy as np
from pydantic import Field

from assay.arrays import Bools, Doubles, Floats, Ints, Reals
from assay.errors import DataError
from assay.labels.edits import Edit, current_values, persons_cells
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.settings import Choice, Settings, by_name, parse_tagged
from assay.training.semi_supervised import best_values, learnable_values, value_index

ALIKE = 1e-6  # difference of probabilities that is rounding


class All(Choice):
    """Every label."""

    kind: Literal["all"] = "all"


class Confidence(Choice):
    """Labels of at least this probability."""

    kind: Literal["confidence"] = "confidence"
    confidence: float = Field(0.95, ge=0, le=1, description="Least probability of the label.")


class Relative(Choice):
    """Labels of at least the threshold of their class, which is lower the less sure the model is of that class."""

    kind: Literal["relative"] = "relative"
    relative: float = Field(0.95, ge=0, le=1, description="Threshold of the class that the model is surest of.")


class ClassShare(Settings):
    """A share of the labels of each class."""

    share: float = Field(gt=0, le=1, description="Share of the labels of each class, rounded; at least one.")


class Quota(Choice):
    """The most confident labels of each class; of each tag so many present and so many absent."""

    kind: Literal["quota"] = "quota"
    quota: Annotated[int, Field(ge=1)] | ClassShare = Field(description="Labels a class, or `{share: 0.2}` of them.")


class Agreement(Choice):
    """Labels that every view of test-time augmentation gives."""

    kind: Literal["agreement"] = "agreement"
    agreement: Literal["views"] = Field("views", description="Whose answers must agree.")


AnyKeep = All | Confidence | Relative | Quota | Agreement


Keep = Annotated[AnyKeep, Field(discriminator="kind"), by_name(AnyKeep, parse_tagged)]
"""Which pseudo-labels to keep, in a plan: `all`, or a mapping such as `{confidence: 0.95}`."""


class Changes(NamedTuple):
    """Counts of labels that were unknown before and are kept now, that differ, and that are unknown again."""

    new: int
    different: int
    gone: int


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Predictions of the unknown labels of one head, and which of them are kept.

    All arrays but `soft` have the shape of codes, (N,) or (N, K). `given` are the labels known before. `codes` are
    predictions, kept or not; -1 where a label is known or none can be given. `confidence` is the probability of the
    prediction, NaN where there is none. `soft` (N, K) holds the probabilities themselves as targets, NaN where no
    pseudo-label is kept; None for hard labels. `notes` say why labels could not be given.
    """

    head: Head
    given: Codes
    codes: Codes
    confidence: Doubles
    kept: Bools
    soft: Floats | None = None
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> Ints:
        """The images with a pseudo-label that is kept."""
        return np.flatnonzero(self.head.any_cell(self.kept)).astype(np.int64)

    @property
    def labels(self) -> Codes:
        """All labels known now: those given before, and those kept."""
        return np.where(self.kept, self.codes, self.given)

    @property
    def counts(self) -> Ints:
        """Labels kept of each class (K,), or absent and present of each tag (K, 2)."""
        if self.head.multiclass:
            return self.head.counts(self.codes[self.kept])
        by_value = [np.sum(self.kept & (self.codes == value), axis=0) for value in (0, 1)]
        return np.stack(by_value, axis=1).astype(np.int64)

    def changed_since(self, previous: Codes) -> Changes:
        """Return how the pseudo-labels differ from previous codes of the same images. Given labels do not count."""
        now, was = self.labels[self.given < 0], previous[self.given < 0]
        new, gone = (now >= 0) & (was < 0), (now < 0) & (was >= 0)
        return Changes(int(new.sum()), int(((now != was) & ~new & ~gone).sum()), int(gone.sum()))


def choose_pseudo_labels(
    head: Head,
    codes: Codes,
    probabilities: Reals,
    *,
    keep: AnyKeep,
    view_probabilities: Sequence[Reals] | None = None,
    closed: Bools | None = None,
    soft: bool = False,
) -> PseudoLabels:
    """Predict the unknown labels of codes (N,) or (N, K) by probabilities (N, K), and keep some of the predictions.

    The prediction is the most probable class, the first of equals; a tag is present from one half up. No label is
    given to cells that are `closed`, to images with a probability that is not finite (unreadable ones), of classes
    without a known label, and of tags of which not both present and absent are known: no model can have learnt these
    from `codes`. None is given where all images have the same probabilities. `view_probabilities`, (N, K) each, are
    for `keep: agreement`.

    Raises DataError where no label is known.
    """
    if not (codes >= 0).any():
        raise DataError(
            f"No label is known under head {head.name!r}, so no model can have learnt to give any. "
            "Label some images, or take the step out."
        )
    predicted, confidence = best_values(head, probabilities)
    groups = value_index(head, predicted)
    open_cells, notes = _open_cells(head, codes, probabilities, closed)
    able = open_cells & learnable_values(head, codes)[groups]
    if (open_cells & ~able).any():
        classes = np.unique(groups[open_cells & ~able] // (1 if head.multiclass else 2))
        names = ", ".join(repr(head.classes[index]) for index in classes.tolist())
        notes.append(f"no pseudo-labels of {names}: the labels known do not teach it")
    kept = np.zeros(codes.shape, np.bool_)
    if isinstance(keep, Agreement):
        if view_probabilities is None:
            raise ValueError("`keep: agreement` takes the probabilities of the views")
        kept[able] = _agreed(head, predicted, view_probabilities)[able]
    else:
        kept[able] = _kept(keep, confidence[able], groups[able])
    targets = np.where(head.columns(kept), probabilities, np.nan).astype(np.float32) if soft else None
    return PseudoLabels(
        head, codes, np.where(able, predicted, -1), np.where(able, confidence, np.nan), kept, targets,
        tuple(f"Head {head.name!r}: {note}." for note in notes),
    )  # fmt: skip


def thresholds(confidence: Reals, groups: Ints, share: float) -> Doubles:
    """Return a threshold for each group of predictions, in proportion to its mean confidence; the highest is `share`.

    After the flexible thresholds of FlexMatch (Zhang et al. 2021), but a class counts as learnt by its mean
    confidence, not by its number of confident images, which is small for every rare class as well.
    """
    sizes = np.bincount(groups)
    means = np.bincount(groups, weights=confidence) / np.maximum(sizes, 1)
    scaled: Doubles = share * (means / means.max(initial=np.finfo(np.float64).tiny))
    return scaled


def _open_cells(head: Head, codes: Codes, probabilities: Reals, closed: Bools | None) -> tuple[Bools, list[str]]:
    """Return the unknown cells that may get a label, in the shape of codes, and why others may not."""
    unknown: Bools = codes < 0 if closed is None else (codes < 0) & ~closed
    if not unknown.any():
        return unknown, ["no label is unknown, so there is none to give"]
    readable: Bools = np.all(np.isfinite(probabilities), axis=1)
    notes = []
    if unreadable := np.count_nonzero(head.any_cell(unknown) & ~readable):
        notes.append(f"no pseudo-labels for {unreadable} images for which the model has no answer")
    if np.count_nonzero(readable) > 1 and np.ptp(probabilities[readable], axis=0).max() <= ALIKE:
        notes.append("no pseudo-labels, since the model answers the same for all images")
        readable[:] = False
    return unknown & head.spread(readable), notes


def _kept(keep: All | Confidence | Relative | Quota, confidence: Reals, groups: Ints) -> Bools:
    """Return which predictions (n,) are kept."""
    match keep:
        case All():
            return np.ones(len(confidence), np.bool_)
        case Confidence():
            return confidence >= keep.confidence
        case Relative():
            return confidence >= thresholds(confidence, groups, keep.relative)[groups]
        case Quota():
            return _most_confident(confidence, groups, keep.quota)
        case _:
            assert_never(keep)


def _most_confident(confidence: Reals, groups: Ints, quota: int | ClassShare) -> Bools:
    """Return which (n,) are among the most confident of their group; of equally confident ones the first are."""
    order = np.lexsort((-confidence, groups))
    sizes = np.bincount(groups)
    ranks = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[groups[order]]
    limits = np.maximum(np.rint(quota.share * sizes), 1)[groups[order]] if isinstance(quota, ClassShare) else quota
    kept = np.zeros(len(order), np.bool_)
    kept[order] = ranks < limits
    return kept


def _agreed(head: Head, predicted: Codes, view_probabilities: Sequence[Reals]) -> Bools:
    """Return where every view predicts the same, in the shape of codes; one view at a time, since all take memory."""
    agreed = np.ones(predicted.shape, np.bool_)
    for view in view_probabilities:
        agreed &= best_values(head, view).codes == predicted
        agreed[~np.isfinite(view).all(axis=1)] = False
    return agreed


# Pseudo-labels in the ledger: the edits that give them to samples, and the labels without them.

LabelWeight = Annotated[float, Field(gt=0)] | Literal["confidence"]
"""Weight of a pseudo-label: a number, or its confidence."""

KEPT = "pseudo-label"
NO_LONGER_KEPT = "pseudo-label no longer kept"
WEIGHTED = "weight of pseudo-labels"


def without_labels(head: Head, samples: Samples, before: Sequence[Edit]) -> tuple[Codes, Bools]:
    """Return codes of a head without pseudo-labels, and which cells are closed; both (N,) or (N, K).

    `before` are the edits that made the samples, without those undone. Closed are cells that were dropped, or that a
    person decided.
    """
    codes = replace(samples, space=LabelSpace((head,))).codes()[0]
    closed = np.zeros(codes.shape, np.bool_)
    row_of = {name: row for row, name in enumerate(samples.ids)}
    persons = persons_cells(before)
    last = {edit.cell: edit for edit in before if edit.action != "weight" and edit.cell not in persons}
    for name, of_head, tag in [*persons, *last]:
        # A person's weight, or a class added, is no label's cell.
        if of_head != head.name or name not in row_of or (tag is None) != head.multiclass:
            continue
        cell = row_of[name] if tag is None else (row_of[name], head.index[tag])
        edit = last.get((name, of_head, tag))
        if edit is None or edit.action == "drop":
            closed[cell] = True
        elif edit.action == "set" and edit.origin != "corrected":
            codes[cell] = -1
    return codes, closed


def pseudo_label_edits(
    chosen: PseudoLabels, samples: Samples, step: str, *, weight: LabelWeight = 1.0, before: Sequence[Edit] = ()
) -> list[Edit]:
    """Return the edits that give the samples, of the same images, the labels chosen: a `set` for each label kept.

    Pseudo-labels of an earlier round that are kept no more are `unset`. `weight` multiplies the weight that an image
    has without its pseudo-labels, by the edits `before` that made the samples. An image has one weight under a head,
    so one with given labels too keeps it; with several tags the mean confidence counts.
    """
    head, labels = chosen.head, chosen.labels
    now = replace(samples, space=LabelSpace((head,))).codes()[0]
    rows, cells = np.nonzero(head.columns(chosen.kept | ((labels < 0) & (now >= 0))))
    ids, tags = samples.ids, [head.cell_names[cell] for cell in cells.tolist()]
    columns = zip(
        rows.tolist(),
        tags,
        current_values(samples, head, rows, tags),
        head.columns(labels)[rows, cells].tolist(),
        head.columns(chosen.confidence)[rows, cells].tolist(),
        strict=True,
    )
    of_labels = [
        Edit(
            id=ids[row], head=head.name, tag=tag, action="set", old=old, new=head.value_names[code],
            reason=KEPT, score=score, step=step, origin="pseudo",
        )
        if code >= 0
        else Edit(id=ids[row], head=head.name, tag=tag, action="unset", old=old, reason=NO_LONGER_KEPT, step=step)
        for row, tag, old, code, score in columns
    ]  # fmt: skip
    return of_labels + _weight_edits(chosen, samples, step, weight=weight, before=before)


def _weight_edits(
    chosen: PseudoLabels, samples: Samples, step: str, *, weight: LabelWeight, before: Sequence[Edit]
) -> list[Edit]:
    head = chosen.head
    now = samples.table[f"weight:{head.name}"].to_numpy().astype(np.float32)
    wanted = now.copy()
    for row, base in _weights_before(head, samples, before).items():
        wanted[row] = base
    kept = head.columns(chosen.kept)
    rows = np.flatnonzero(kept.any(axis=1) & ~head.known(chosen.given))
    if weight == "confidence":
        confidence = chosen.confidence.reshape(kept.shape)[rows]
        wanted[rows] *= np.mean(confidence, axis=1, where=kept[rows]).astype(np.float32)
    else:
        wanted[rows] *= np.float32(weight)
    ids = samples.ids
    return [
        Edit(
            id=ids[row], head=head.name, action="weight", reason=WEIGHTED, step=step,
            old=repr(float(now[row])), new=repr(float(wanted[row])),
        )
        for row in np.flatnonzero(wanted != now).tolist()
    ]  # fmt: skip


def _weights_before(head: Head, samples: Samples, before: Sequence[Edit]) -> dict[int, float]:
    """Return row -> weight before pseudo-labels, of the images whose weight they changed."""
    row_of = {name: row for row, name in enumerate(samples.ids)}
    persons = persons_cells(before)
    weights: dict[int, float] = {}
    for edit in before:
        if edit.action != "weight" or edit.head != head.name or edit.id not in row_of or edit.cell in persons:
            continue
        if edit.reason == WEIGHTED:
            weights.setdefault(row_of[edit.id], float(edit.old or 1))
        else:
            weights.pop(row_of[edit.id], None)
    return weights
