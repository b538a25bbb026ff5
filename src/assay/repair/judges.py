"""Judges of labels on features: probabilities of images by models that did not learn from their labels."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Literal, NamedTuple, Protocol

import numpy as np

from assay.arrays import Floats, Ints, Reals
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.metrics.intervals import Metric, Z
from assay.metrics.metrics import probabilities_of
from assay.repair.neighbours import posterior
from assay.repair.suspects import soft_labels
from assay.training.linear import Linear, Strengths, find_strengths, fit_cells, targets_of

FeatureJudge = Literal["confident_learning", "neighbours", "both"]
JudgeName = Literal[FeatureJudge, "fine_tuned", "all"]


class Probabilities(NamedTuple):
    """Probabilities (N, W) of training images, each by models of other folds, and (M, W) of held-out ones.

    `gains`: by head, how many more of the given labels are predicted out of fold by models of repaired labels than by
    models of the labels as they are; none where no such models were compared.
    """

    train: Floats
    held: Floats
    gains: tuple[Metric | None, ...] = ()


class Posterior(Protocol):
    """Return probabilities for images of features (N, F), each by what the other folds (N,) teach, and for others.

    The others, of features (M, F), are judged by what all the images teach.
    """

    def __call__(
        self, samples: Samples, features: Reals, folds: Ints, *, held: Reals, neighbours: int, seed: int
    ) -> Probabilities: ...


def linear_posterior(
    samples: Samples, features: Reals, folds: Ints, *, held: Reals, neighbours: int, seed: int
) -> Probabilities:
    """Return probabilities of logistic regressions."""
    return _first_round(samples, features, folds, held=held, strengths=_strengths(samples, features, seed))


def _strengths(samples: Samples, features: Reals, seed: int) -> Strengths:
    return find_strengths(samples.space, features, samples.codes(), samples.weights(), seed=seed)


def _first_round(samples: Samples, features: Reals, folds: Ints, *, held: Reals, strengths: Strengths) -> Probabilities:
    """Return probabilities of logistic regressions on the labels as they are."""
    targets, cells = targets_of(samples.space, samples.codes(), samples.weights())

    def fit(asked: Ints, rows: Ints) -> Linear:
        return fit_cells(samples.space, features[rows], targets[rows], cells[rows], strengths)

    return _by_folds(fit, features, folds, held=held, space=samples.space)


def local_posterior(
    samples: Samples, features: Reals, folds: Ints, *, held: Reals, neighbours: int, seed: int
) -> Probabilities:
    """Return probabilities by the nearest images; NaN under a head of which none of an image's labels is known."""

    def of(held: Reals | None) -> Floats:
        by_head = zip(samples.space, samples.codes(), strict=True)
        return np.concatenate(
            [posterior(head, codes, features, neighbours=neighbours, fold=folds, held=held) for head, codes in by_head],
            axis=1,
        )

    return Probabilities(of(None), of(held))


def mean_posterior(
    samples: Samples, features: Reals, folds: Ints, *, held: Reals, neighbours: int, seed: int
) -> Probabilities:
    """Return a mean of both, and of logistic regressions of a second round.

    A linear and a local estimate of the same probabilities err on different images. The second round learns from the
    labels as far as a first one leaves them right (`soft_labels`). No model saw a label that it helps to judge.
    """
    strengths = _strengths(samples, features, seed)  # the search takes longest
    gains: tuple[Metric | None, ...] = ()
    parts = [
        _first_round(samples, features, folds, held=held, strengths=strengths),
        local_posterior(samples, features, folds, held=held, neighbours=neighbours, seed=seed),
    ]
    weights = [1 - LOCAL, LOCAL]
    if len(np.unique(folds)) > 2:  # of two folds, none would be left for its first round to learn from
        parts.append(_second_round(samples, features, folds, held=held, strengths=strengths))
        gains = gains_of_repair(samples, parts[0].train, parts[-1].train)
        weights = [(1 - LOCAL) / 2, LOCAL, (1 - LOCAL) / 2]
    train, of_held = (
        np.average(of_parts, axis=0, weights=weights).astype(np.float32)
        for of_parts in zip(*(part[:2] for part in parts), strict=True)
    )
    return Probabilities(train, of_held, gains)


LOCAL = 0.25  # of the mean, by planted noise (docs/RESULTS.md)


def gains_of_repair(samples: Samples, before: Floats, after: Floats) -> tuple[Metric | None, ...]:
    """Return by head the share of given labels that probabilities (N, W) `after` a repair predict, less that `before`.

    No model learnt from the labels that it predicts. These are as wrong as the others, but a fault that no image shows
    is as hard for both: models that are right more often agree more often. The interval is over images.
    """
    gains: list[Metric | None] = []
    for head, columns, codes in samples.space.each(samples.codes()):
        known = head.columns(codes >= 0)
        agreed, agrees = (
            (head.columns(head.decide(answers[:, columns]) == codes) & known).sum(axis=1) for answers in (before, after)
        )
        rows = known.any(axis=1)
        values = (agrees - agreed)[rows] / known.sum(axis=1)[rows]
        if len(values) < 2:
            gains.append(None)
            continue
        value, half = float(values.mean()), float(Z * values.std(ddof=1) / np.sqrt(len(values)))
        gains.append(Metric(value, len(values), value - half, value + half))
    return tuple(gains)


def _by_folds(
    fit: Callable[[Ints, Ints], Linear], features: Reals, folds: Ints, *, held: Reals, space: LabelSpace
) -> Probabilities:
    """Return probabilities by `fit`, which takes the rows of a fold, none for all of them, and those to learn from."""
    train, of_held = (np.empty((len(part), space.width), np.float32) for part in (features, held))
    for number in np.unique(folds):
        rows = np.flatnonzero(folds == number)
        train[rows] = fit(rows, np.flatnonzero(folds != number)).logits(features[rows])
    if len(held):
        of_held = fit(np.empty(0, np.int64), np.arange(len(folds))).logits(held)
    return Probabilities(probabilities_of(space, train), probabilities_of(space, of_held))


def _second_round(
    samples: Samples, features: Reals, folds: Ints, *, held: Reals, strengths: Strengths
) -> Probabilities:
    """Return probabilities of logistic regressions on soft labels.

    Those that a fold is judged by are of models that learnt from neither it nor the fold of the label: one for each
    two folds.
    """
    space, codes, numbers = samples.space, samples.codes(), np.unique(folds)
    targets, cells = targets_of(space, codes, samples.weights())
    first = np.zeros((len(numbers), len(samples), space.width), np.float32)  # logits by the fold that is left out too
    for one, other in combinations(range(len(numbers)), 2):
        sides = [np.flatnonzero(folds == numbers[side]) for side in (one, other)]
        rows = np.setdiff1d(np.arange(len(samples)), np.concatenate(sides))
        linear = fit_cells(space, features[rows], targets[rows], cells[rows], strengths)
        for number, asked in zip((one, other), reversed(sides), strict=True):
            first[number, asked] = linear.logits(features[asked])

    def fit(asked: Ints, rows: Ints) -> Linear:
        if len(asked):
            left_out = first[np.searchsorted(numbers, folds[asked[0]])]
        else:  # of no fold: all that did not learn from a label
            left_out = first.sum(axis=0) / (len(numbers) - 1)
        by_head = space.each([one[rows] for one in codes], probabilities_of(space, left_out[rows]))
        soft = [soft_labels(head, known, of_head, answer="wrong") for head, _, known, of_head in by_head]
        return fit_cells(space, features[rows], np.nan_to_num(np.concatenate(soft, axis=1)), cells[rows], strengths)

    return _by_folds(fit, features, folds, held=held, space=space)


JUDGES: dict[FeatureJudge, Posterior] = {
    "confident_learning": linear_posterior,
    "neighbours": local_posterior,
    "both": mean_posterior,
}
"""Judges on features."""

JUDGE_TEXTS: dict[JudgeName, str] = {
    "confident_learning": "confident learning",
    "neighbours": "its neighbours",
    "both": "confident learning with its neighbours",
    "fine_tuned": "confident learning by fine-tuned networks",
    "all": "confident learning by fine-tuned networks and features",
}
"""Judges as edits name them."""
