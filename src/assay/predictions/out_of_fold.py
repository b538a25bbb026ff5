"""Answers for the images whose labels are to be judged, each by a model that did not see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from assay.arrays import Bools, Floats, Ints
from assay.errors import DataError
from assay.labels.build import quoted
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.predictions.predict import Predictions
from assay.training.linear import find_strengths, fit_linear

Answer = Callable[[Samples, Samples], Floats]
"""From images to learn from, and images held back, to the logits (n, width) of those held back."""


def out_of_fold(samples: Samples, features: Floats, fold: Ints, *, seed: int) -> Predictions:
    """Answers of logistic regressions on features (N, F) of a backbone that was never trained on these images.

    The strength of each regression is searched once, on all folds: one of a few numbers, chosen by the loss over
    thousands of images, tells of no single label, and searching it in every fold takes five times as long.
    Raises DataError as `out_of_fold_by` does.
    """
    codes, weights, space = samples.codes(), samples.weights(), samples.space
    _require_parts(samples, fold)
    strengths = find_strengths(space, features, codes, weights, seed=seed)
    row = {name: number for number, name in enumerate(samples.ids)}

    def answer(train: Samples, held: Samples) -> Floats:
        rows, asked = ([row[name] for name in part.ids] for part in (train, held))
        linear = fit_linear(space, features[rows], train.codes(), train.weights(), seed=seed, strengths=strengths)
        return linear.logits(features[asked])

    return out_of_fold_by(samples, fold, answer)


def out_of_fold_by(samples: Samples, fold: Ints, answer: Answer) -> Predictions:
    """Answers for all images, those of each fold (N,) by what `answer` learns from the others.

    Raises DataError where no label is known, and where all images lie in one fold.
    """
    _require_parts(samples, fold)
    logits = np.empty((len(samples), samples.space.width), dtype=np.float32)
    for number in np.unique(fold):
        held = np.flatnonzero(fold == number)
        logits[held] = answer(samples.take(np.flatnonzero(fold != number)), samples.take(held))
    return replace(Predictions.of(samples.ids, samples.space, logits, model="out of fold"), out_of_fold=True)


def single_fold_labels(samples: Samples, fold: Ints) -> list[Bools]:
    """Which labels no model of their fold can judge, one array a head, shaped like its codes.

    Those are labels that occur in one fold only: the model that judges them has never seen their like, and
    calls them wrong whatever the image shows.
    """
    return [_single_fold(head, codes, fold) for head, codes in zip(samples.space, samples.codes(), strict=True)]


def single_fold_notes(samples: Samples, masks: Sequence[Bools]) -> list[str]:
    """What is to be said of labels that cannot be judged, a line a head."""
    notes = []
    for head, codes, mask in zip(samples.space, samples.codes(), masks, strict=True):
        places = codes[mask] if head.kind == "multiclass" else np.nonzero(mask)[1]
        names = [head.classes[place] for place in np.unique(places)]
        if names:
            notes.append(
                f"{head.name}: {quoted(names)}: all images lie in one fold, so no model has learnt from others "
                f"like them; {int(mask.sum())} labels are left unjudged."
            )
    return notes


def _single_fold(head: Head, codes: Codes, fold: Ints) -> Bools:
    folds = np.unique(fold)
    found = np.zeros(codes.shape, dtype=np.bool_)
    for label in range(head.size if head.kind == "multiclass" else 2):
        alike = codes == label
        in_folds = np.stack([alike[fold == number].any(axis=0) for number in folds]).sum(axis=0)  # () or (K,)
        found |= alike & (in_folds == 1)
    return found


def _require_parts(samples: Samples, fold: Ints) -> None:
    if not samples.labelled().any():
        raise DataError("no training image has a known label, so there is nothing to judge. Label some.")
    if len(np.unique(fold)) < 2:
        raise DataError(
            f"the {len(samples)} labelled training images cannot be parted into folds: there is but one, or all are "
            "copies of each other or of one group. Bring more images, or leave out the step that judges labels."
        )
