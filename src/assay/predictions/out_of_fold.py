"""Out-of-fold predictions: each image is predicted by a model that was trained on the other folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from assay.arrays import Bools, Floats, Ints
from assay.errors import DataError
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.split import one_fold_reason
from assay.messages import quoted
from assay.predictions.predict import Predictions
from assay.training.linear import find_strengths, fit_linear

FitPredict = Callable[[Samples, Samples], Floats]
"""Training images, held-out images -> logits (n, width) of those held out."""


def out_of_fold(samples: Samples, features: Floats, fold: Ints, *, seed: int) -> Predictions:
    """Return predictions of logistic regressions on features (N, F) of a backbone not trained on these images.

    The strength of each regression is searched once, on all folds: one of a few numbers, chosen by the loss over
    thousands of images, does not leak single labels, and searching it in every fold takes five times as long.
    Raises DataError as `out_of_fold_by` does.
    """
    codes, weights, space = samples.codes(), samples.weights(), samples.space
    _require_parts(samples, fold)
    strengths = find_strengths(space, features, codes, weights, seed=seed)
    row = {name: number for number, name in enumerate(samples.ids)}

    def fit_predict(train: Samples, held: Samples) -> Floats:
        train_rows, held_rows = ([row[name] for name in part.ids] for part in (train, held))
        linear = fit_linear(space, features[train_rows], train.codes(), train.weights(), seed=seed, strengths=strengths)
        return linear.logits(features[held_rows])

    return out_of_fold_by(samples, fold, fit_predict)


def out_of_fold_by(samples: Samples, fold: Ints, fit_predict: FitPredict) -> Predictions:
    """Return predictions for all images, those of each fold (N,) by `fit_predict` from the other folds.

    Raises DataError where no label is known, and where all images lie in one fold.
    """
    _require_parts(samples, fold)
    logits = np.empty((len(samples), samples.space.width), dtype=np.float32)
    for number in np.unique(fold):
        held = np.flatnonzero(fold == number)
        logits[held] = fit_predict(samples.take(np.flatnonzero(fold != number)), samples.take(held))
    return replace(Predictions.of(samples.ids, samples.space, logits, model="out of fold"), out_of_fold=True)


def single_fold_labels(samples: Samples, fold: Ints) -> list[Bools]:
    """Return masks of the labels that occur in one fold only, one a head, shaped like its codes.

    The model that predicts them was trained without their class, so that it cannot show whether they are right.
    """
    return [_single_fold(head, codes, fold) for head, codes in zip(samples.space, samples.codes(), strict=True)]


def single_fold_notes(samples: Samples, masks: Sequence[Bools]) -> list[str]:
    """Return a line for each head with labels that occur in one fold only."""
    notes = []
    for head, codes, mask in zip(samples.space, samples.codes(), masks, strict=True):
        labels = codes[mask] if head.multiclass else np.nonzero(mask)[1]
        names = [head.classes[label] for label in np.unique(labels)]
        if names:
            notes.append(
                f"{head.name}: {quoted(names)}: all images lie in one fold, so no model has learnt from others "
                f"like them; {int(mask.sum())} labels are not checked."
            )
    return notes


def _single_fold(head: Head, codes: Codes, fold: Ints) -> Bools:
    folds = np.unique(fold)
    single = np.zeros(codes.shape, dtype=np.bool_)
    for value in range(head.values):
        equal = codes == value
        in_folds = np.stack([equal[fold == number].any(axis=0) for number in folds]).sum(axis=0)  # () or (K,)
        single |= equal & (in_folds == 1)
    return single


def _require_parts(samples: Samples, fold: Ints) -> None:
    if not samples.labelled().any():
        raise DataError("no training image has a known label, so there is nothing to judge. Label some.")
    if len(np.unique(fold)) < 2:
        raise DataError(
            f"the labelled training images cannot be split into folds: {one_fold_reason(samples)}. "
            "Bring more images, or leave out the step that judges labels."
        )
