"""Weights of the members of an ensemble, and the choice of members, by validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy  # its modules are imported when they are first used
from scipy.special import expit, log_expit, log_softmax, softmax

from assay.arrays import Doubles, Reals
from assay.labels.space import Codes, Head, LabelSpace
from assay.models.combiners import MeanOf
from assay.predictions.cross_fitting import folds_of

Loss = Callable[[Doubles], tuple[float, Doubles]]
"""Weights (M,) -> loss, gradient."""


def best_weights(space: LabelSpace, codes: Sequence[Codes], logits: Sequence[Reals], *, of: MeanOf) -> Doubles:
    """Return the weights (M,), 0 or more and summing to 1, at which the mean prediction has the lowest loss.

    The loss is the sum over heads of the mean negative log-likelihood of the known labels, which is convex in the
    weights, for a mean of probabilities (a linear pool) and of logits (a logarithmic one). Equal weights where no
    label is known.
    """
    count = len(logits)
    equal = np.full(count, 1 / count)
    stacked = np.stack([np.asarray(member, dtype=np.float64) for member in logits])  # (M, N, W)
    losses = [
        head_loss(head, known, stacked[:, :, columns], of)
        for head, columns, known in space.each(codes)
        if head.known(known).any()
    ]
    if not losses or count == 1:
        return equal

    def total(weights: Doubles) -> tuple[float, Doubles]:
        values, slopes = zip(*(loss(weights) for loss in losses), strict=True)
        return float(sum(values)), np.sum(slopes, axis=0)

    whole = {"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like}
    bounds = [(0.0, 1.0)] * count
    options = {"ftol": 1e-12, "maxiter": 500}
    best = scipy.optimize.minimize(
        total, equal, jac=True, method="SLSQP", bounds=bounds, constraints=whole, options=options
    )
    clipped: Doubles = np.clip(best.x, 0, None)
    return np.asarray(clipped / clipped.sum())


def cross_fitted_weights(
    space: LabelSpace, codes: Sequence[Codes], logits: Sequence[Reals], *, of: MeanOf, folds: int, seed: int
) -> Doubles:
    """Return, for each image, the best weights on the other folds: (M, N)."""
    fold = folds_of(len(logits[0]), folds, seed=seed)
    weights = np.empty((len(logits), len(fold)))
    for number in np.unique(fold):
        others = fold != number
        chosen = best_weights(space, [known[others] for known in codes], [member[others] for member in logits], of=of)
        weights[:, ~others] = chosen[:, None]
    return weights


def greedy(values: Sequence[float], value_of: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """Return the members of a greedy soup (Wortsman et al. 2022, "Model soups", algorithm 1).

    Members are added from the best down, each where it does not lower the value. `values` are those of each member
    alone, higher is better; `value_of` is that of several members averaged.
    """
    best_first = sorted(range(len(values)), key=lambda member: -values[member])
    chosen: tuple[int, ...] = (best_first[0],)
    best = values[best_first[0]]
    for member in best_first[1:]:
        candidate = tuple(sorted((*chosen, member)))
        if (value := value_of(candidate)) >= best:
            chosen, best = candidate, value
    return chosen


def head_loss(head: Head, codes: Codes, logits: Reals, of: MeanOf) -> Loss:
    """Return the loss of one head from the logits (M, N, K) of every member; some label must be known."""
    known = codes >= 0
    if head.multiclass:
        logits, truth = logits[:, known], codes[known]
        if of == "logits":
            return _loss_of_logits(logits, truth)
        likelihood = np.take_along_axis(log_softmax(logits, axis=2), truth[None, :, None], axis=2)[..., 0]
    else:
        signs, cells = 2 * codes[known] - 1, logits[:, known]  # (C,), (M, C): one column a known cell
        if of == "logits":
            return _loss_of_margins(signs * cells)
        likelihood = log_expit(signs * cells)
    return _loss_of_likelihoods(likelihood)


def _loss_of_likelihoods(likelihood: Reals) -> Loss:
    """Return the loss of a mean of probabilities, from log-likelihoods (M, C) of the labels."""
    top = likelihood.max(axis=0)
    shares = np.exp(likelihood - top)  # at least one of each column is 1

    def loss(weights: Doubles) -> tuple[float, Doubles]:
        mixed = np.maximum(weights @ shares, np.finfo(np.float64).tiny)
        return float(-(np.log(mixed) + top).mean()), -(shares / mixed).mean(axis=1)

    return loss


def _loss_of_logits(logits: Reals, truth: Codes) -> Loss:
    """Return the loss of a mean of logits (M, C, K), of which one class is true."""
    rows = np.arange(len(truth))

    def loss(weights: Doubles) -> tuple[float, Doubles]:
        mixed = np.tensordot(weights, logits, axes=1)
        wrong = softmax(mixed, axis=1)
        wrong[rows, truth] -= 1
        value = -log_softmax(mixed, axis=1)[rows, truth].mean()
        return float(value), np.tensordot(logits, wrong, axes=2) / len(truth)

    return loss


def _loss_of_margins(margins: Reals) -> Loss:
    """Return the loss of a mean of logits (M, C), negated where the tag is absent."""

    def loss(weights: Doubles) -> tuple[float, Doubles]:
        mixed = weights @ margins
        return float(-log_expit(mixed).mean()), -(margins * expit(-mixed)).mean(axis=1)

    return loss
