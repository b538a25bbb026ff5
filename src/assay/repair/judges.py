"""Judges of labels on features: probabilities of images by models that did not learn from their labels."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Literal, NamedTuple, Protocol

import numpy as np

from assay.arrays import Doubles, Floats, Ints, Reals
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.intervals import Metric, half_width
from assay.metrics.metrics import probabilities_of
from assay.repair.confident_learning import contradicted
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

    return by_folds(fit, features, folds, held=held, space=samples.space)


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
        blind = _blind_logits(samples, features, folds, strengths=strengths)
        parts.append(_second_round(samples, features, folds, blind, _softened, held=held, strengths=strengths))
        without = _second_round(samples, features, folds, blind, _left_out, held=held[:0], strengths=strengths)
        gains = gains_of_repair(samples, parts[0].train, parts[-1].train, without.train)
        weights = [(1 - LOCAL) / 2, LOCAL, (1 - LOCAL) / 2]
    train, of_held = (
        np.average(of_parts, axis=0, weights=weights).astype(np.float32)
        for of_parts in zip(*(part[:2] for part in parts), strict=True)
    )
    return Probabilities(train, of_held, gains)


LOCAL = 0.25  # of the mean, by planted noise (docs/RESULTS.md)


def gains_of_repair(samples: Samples, before: Floats, *after: Floats) -> tuple[Metric | None, ...]:
    """Return by head the share of given labels that probabilities (N, W) `after` a repair predict, less that `before`.

    No model learnt from the labels that it predicts. These are as wrong as the others, but a fault that no image shows
    is as hard for both: models that are right more often agree more often. Soft labels also damp a model, which helps
    one of few images without any label being wrong: of several repairs the first counts, unless another gains nothing.
    The interval is over images.
    """
    gains: list[Metric | None] = []
    for head, columns, codes in samples.space.each(samples.codes()):
        changes = [more_predicted(head, codes, before[:, columns], answers[:, columns]) for answers in after]
        gains.append(next((change for change in changes if change is None or change.value <= 0), changes[0]))
    return tuple(gains)


def more_predicted(head: Head, codes: Codes, before: Reals, after: Reals) -> Metric | None:
    """Return the share of the known labels that probabilities (N, K) `after` a change predict, less that `before`.

    The interval is over images; None for fewer than two with a known label.
    """
    known = head.columns(codes >= 0)
    rows = known.any(axis=1)
    if np.count_nonzero(rows) < 2:
        return None
    agreed, agree = ((head.columns(head.decide(answers) == codes) & known).sum(axis=1) for answers in (before, after))
    return _mean((agree - agreed)[rows] / known.sum(axis=1)[rows])


def _mean(values: Doubles) -> Metric:
    value, half = float(values.mean()), half_width(values)
    return Metric(value, len(values), value - half, value + half)


def by_folds(
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


Taught = tuple[Floats, Floats]
"""Targets and weights (n, W) to learn from."""


def _blind_logits(samples: Samples, features: Reals, folds: Ints, *, strengths: Strengths) -> Floats:
    """Return logits (K, N, W): for each of K folds, those of models that learnt neither from it nor from the image's.

    There is one model for each two folds; an image of the fold itself has 0.
    """
    space, numbers = samples.space, np.unique(folds)
    targets, cells = targets_of(space, samples.codes(), samples.weights())
    logits = np.zeros((len(numbers), len(samples), space.width), np.float32)
    for one, other in combinations(range(len(numbers)), 2):
        sides = [np.flatnonzero(folds == numbers[side]) for side in (one, other)]
        rows = np.setdiff1d(np.arange(len(samples)), np.concatenate(sides))
        linear = fit_cells(space, features[rows], targets[rows], cells[rows], strengths)
        for number, asked in zip((one, other), reversed(sides), strict=True):
            logits[number, asked] = linear.logits(features[asked])
    return logits


def _second_round(
    samples: Samples,
    features: Reals,
    folds: Ints,
    blind: Floats,
    teach: Callable[[Head, Codes, Floats], Taught],
    *,
    held: Reals,
    strengths: Strengths,
) -> Probabilities:
    """Return probabilities of logistic regressions on what `teach` makes of labels and `_blind_logits`."""
    space, codes, numbers = samples.space, samples.codes(), np.unique(folds)
    cells = targets_of(space, codes, samples.weights())[1]

    def fit(asked: Ints, rows: Ints) -> Linear:
        if len(asked):
            left_out = blind[np.searchsorted(numbers, folds[asked[0]])]
        else:  # of no fold: all that did not learn from a label
            left_out = blind.sum(axis=0) / (len(numbers) - 1)
        by_head = space.each([one[rows] for one in codes], probabilities_of(space, left_out[rows]))
        taught = [teach(head, known, of_head) for head, _, known, of_head in by_head]
        targets, weights = (np.concatenate(parts, axis=1) for parts in zip(*taught, strict=True))
        return fit_cells(space, features[rows], targets, cells[rows] * weights, strengths)

    return by_folds(fit, features, folds, held=held, space=space)


def _softened(head: Head, codes: Codes, probabilities: Floats) -> Taught:
    """Teach labels as far as they are right, and else the answer."""
    soft = np.nan_to_num(soft_labels(head, codes, probabilities, answer="wrong"))
    return soft, np.ones_like(soft)


def _left_out(head: Head, codes: Codes, probabilities: Floats) -> Taught:
    """Teach labels, without those that a confident answer contradicts."""
    present = head.present(codes).astype(np.float32)
    wrong = contradicted(head, codes, probabilities)
    return present, np.broadcast_to(~wrong, present.shape).astype(np.float32)


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
