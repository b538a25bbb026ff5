"""Who judges labels: models and neighbours that did not see them, and what they make suspect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from assay.figures.intervals import Floats
from assay.labels.edits import PERSON, Edit, apply, current
from assay.labels.samples import Samples
from assay.labels.space import Codes, LabelSpace
from assay.predictions.out_of_fold import blind, out_of_fold
from assay.repair import neighbours
from assay.repair.confident_learning import ROUNDING, Filter, HeadSuspects, nothing_judged, suspects
from assay.repair.pseudo_label_edits import unlabelled

By = Literal["confident_learning", "neighbours", "both"]
Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

IN_WORDS: dict[By, str] = {
    "confident_learning": "confident learning",
    "neighbours": "its neighbours",
    "both": "confident learning with its neighbours",
}
"""By whom an edit says it was suggested."""


def posterior(
    samples: Samples, features: Floats, fold: Ints, *, by: By, near: int, seed: int
) -> npt.NDArray[np.float32]:
    """Probabilities (N, W) of all heads for the pictures of features (N, F), each by what other folds (N,) teach.

    By logistic regressions, by the `near` nearest pictures (NaN under a head of which none of a picture's labels is
    known), or the mean of both: a linear and a local estimate of the same probabilities err in different places.
    """
    linear = out_of_fold(samples, features, fold, seed=seed).probabilities if by != "neighbours" else None
    if by == "confident_learning" and linear is not None:
        return linear
    local = np.concatenate(
        [
            neighbours.posterior(head, codes, features, neighbours=near, fold=fold)
            for head, codes in zip(samples.space, samples.codes(), strict=True)
        ],
        axis=1,
    )
    mean: Array = local if linear is None else (linear + local) / 2
    return mean


def judged(samples: Samples, probabilities: Floats, fold: Ints, *, filter_by: Filter) -> list[HeadSuspects]:
    """The suspects of each head, by probabilities (N, W) of models that learnt from other folds (N,).

    Not judged are labels that occur in one fold only, classes of fewer labels than there are folds, and by answers
    that are alike for all pictures of a fold.
    """
    found = []
    probabilities = _levelled(probabilities, fold)
    least = len(np.unique(fold))
    parts = zip(samples.space, samples.space.slices, visible(samples, fold), strict=True)
    for head, columns, codes in parts:
        if (codes >= 0).any():
            found.append(suspects(head, codes, probabilities[:, columns], filter_by=filter_by, least=least))
        else:
            found.append(nothing_judged(head, codes))
    return found


def _levelled(probabilities: Floats, fold: Ints) -> Floats:
    """Columns that differ between folds alone, as the frequencies of classes do, made all the same."""
    within = [np.ptp(probabilities[fold == number], axis=0) for number in np.unique(fold)]
    return np.where(np.max(within, axis=0) <= ROUNDING, probabilities.mean(axis=0), probabilities)


def visible(samples: Samples, fold: Ints) -> list[Codes]:
    """The codes of each head, unknown where no model of another fold has seen the like."""
    masks = blind(samples, fold)
    return [np.where(mask, -1, codes) for codes, mask in zip(samples.codes(), masks, strict=True)]


def without_pseudo_labels(samples: Samples, before: Sequence[Edit]) -> Samples:
    """The samples as if no pseudo-label had been given: a model's own answer is no evidence about labels.

    `before` are the edits that made the samples, without those undone.
    """
    taken: list[Edit] = []
    ids = samples.ids
    for head, now in zip(samples.space, samples.codes(), strict=True):
        codes, _ = unlabelled(head, samples, before)
        cells = np.nonzero((now >= 0) & (codes < 0))
        rows = cells[0]
        tags = [None] * len(rows) if head.kind == "exclusive" else [head.classes[tag] for tag in cells[1].tolist()]
        olds = current(samples, head, rows, tags)
        taken += [
            Edit(id=ids[row], head=head.name, tag=tag, action="unset", old=old, step="judge")
            for row, tag, old in zip(rows.tolist(), tags, olds, strict=True)
        ]
    return apply(samples, taken) if taken else samples


def persons_cells(before: Sequence[Edit]) -> set[tuple[str, str, str | None]]:
    """The cells that a person decided: they are no longer suspect."""
    return {edit.cell for edit in before if edit.step == PERSON}


def only(samples: Samples, heads: Sequence[str]) -> Samples:
    """The samples under these heads alone."""
    return replace(samples, space=LabelSpace(tuple(samples.space[name] for name in heads)))
