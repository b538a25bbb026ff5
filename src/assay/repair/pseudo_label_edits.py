"""Pseudo-labels in the ledger: the edits that give samples what was chosen, and the labels without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from assay.labels.edits import PERSON, TAG_TEXTS, Edit, current
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.repair.pseudo_labels import Chosen, Mask

Weight = Annotated[float, Field(gt=0)] | Literal["confidence"]
"""What a pseudo-label weighs: a number, or its own confidence."""

KEPT = "pseudo-label"
NO_LONGER_KEPT = "pseudo-label no longer kept"
WEIGHTED = "weight of pseudo-labels"


def unlabelled(head: Head, samples: Samples, before: Sequence[Edit]) -> tuple[Codes, Mask]:
    """Codes of a head as if no pseudo-label had been given, and which cells are closed; both (N,) or (N, K).

    `before` are the edits that made the samples, without those undone. Closed is what was dropped or a person's.
    """
    codes = replace(samples, space=LabelSpace((head,))).codes()[0]
    closed = np.zeros(codes.shape, np.bool_)
    row_of = {name: row for row, name in enumerate(samples.ids)}
    persons = _persons(before)
    last = {edit.cell: edit for edit in before if edit.action != "weight" and edit.cell not in persons}
    for name, of_head, tag in [*persons, *last]:
        of_label = (tag is None) == (
            head.kind == "exclusive"
        )  # a person's weight, or a class added, is no label's cell
        if of_head != head.name or name not in row_of or not of_label:
            continue
        cell = row_of[name] if tag is None else (row_of[name], head.index[tag])
        edit = last.get((name, of_head, tag))
        if edit is None or edit.action == "drop":
            closed[cell] = True
        elif edit.action == "set" and edit.origin != "corrected":
            codes[cell] = -1
    return codes, closed


def edits(
    chosen: Chosen, samples: Samples, step: str, *, weight: Weight = 1.0, before: Sequence[Edit] = ()
) -> list[Edit]:
    """The edits that give the samples, of the same pictures, what was chosen: a `set` for each label kept.

    Pseudo-labels of an earlier round that are kept no more are `unset`. `weight` multiplies the weight that a picture
    has without its pseudo-labels, which `before`, the edits that made the samples, tell. A picture has one weight
    under a head, so one with given labels too keeps its own; with several tags the mean confidence counts.
    """
    head, labels = chosen.head, chosen.labels
    now = replace(samples, space=LabelSpace((head,))).codes()[0]
    cells = np.nonzero(chosen.kept | ((labels < 0) & (now >= 0)))
    rows, ids = cells[0], samples.ids
    tags = [None] * len(rows) if head.kind == "exclusive" else [head.classes[tag] for tag in cells[1].tolist()]
    texts = (None, *head.classes) if head.kind == "exclusive" else TAG_TEXTS
    columns = zip(
        rows.tolist(),
        tags,
        current(samples, head, rows, tags),
        labels[cells].tolist(),
        chosen.confidence[cells].tolist(),
        strict=True,
    )
    of_labels = [
        Edit(
            id=ids[row], head=head.name, tag=tag, action="set", old=old, new=texts[code + 1],
            reason=KEPT, score=score, step=step, origin="pseudo",
        )
        if code >= 0
        else Edit(id=ids[row], head=head.name, tag=tag, action="unset", old=old, reason=NO_LONGER_KEPT, step=step)
        for row, tag, old, code, score in columns
    ]  # fmt: skip
    return of_labels + _weight_edits(chosen, samples, step, weight=weight, before=before)


def _weight_edits(chosen: Chosen, samples: Samples, step: str, *, weight: Weight, before: Sequence[Edit]) -> list[Edit]:
    head = chosen.head
    now = samples.table[f"weight:{head.name}"].to_numpy().astype(np.float32)
    wanted = now.copy()
    for row, base in _weights_before(head, samples, before).items():
        wanted[row] = base
    kept = chosen.kept if head.kind == "independent" else chosen.kept[:, None]
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
    """Row -> its weight before pseudo-labels, where they changed it."""
    row_of = {name: row for row, name in enumerate(samples.ids)}
    persons = _persons(before)
    found: dict[int, float] = {}
    for edit in before:
        if edit.action != "weight" or edit.head != head.name or edit.id not in row_of or edit.cell in persons:
            continue
        if edit.reason == WEIGHTED:
            found.setdefault(row_of[edit.id], float(edit.old or 1))
        else:
            found.pop(row_of[edit.id], None)
    return found


def _persons(before: Sequence[Edit]) -> set[tuple[str, str, str | None]]:
    """The cells that a person edited, where the edits of steps are not carried out."""
    return {edit.cell for edit in before if edit.step == PERSON}
