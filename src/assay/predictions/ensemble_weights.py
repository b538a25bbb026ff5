"""How answers of several models are weighed or picked by validation, and what that is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax, softmax

from assay.arrays import Doubles, Reals
from assay.labels.space import Codes, LabelSpace
from assay.models.combiners import MeanOf
from assay.predictions.cross_fitting import folds_of

Loss = Callable[[Doubles], tuple[float, Doubles]]
"""From weights (M,) to a loss and its slope."""


def best_weights(space: LabelSpace, codes: Sequence[Codes], logits: Sequence[Reals], *, of: MeanOf) -> Doubles:
    """The weights (M,), 0 or more and summing to 1, at which the mean of several answers loses least.

    The loss is the sum over heads of the mean negative log-likelihood of what is known, which is convex in the
    weights, of probabilities (a linear pool) and of logits (a logarithmic one). Equal weights where nothing is known.
    """
    count = len(logits)
    equal = np.full(count, 1 / count)
    losses = [loss for loss in _losses(space, codes, logits, of) if loss is not None]
    if not losses or count == 1:
        return equal

    def total(weights: Doubles) -> tuple[float, Doubles]:
        values, slopes = zip(*(loss(weights) for loss in losses), strict=True)
        return float(sum(values)), np.sum(slopes, axis=0)

    whole = {"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like}
    bounds = [(0.0, 1.0)] * count
    options = {"ftol": 1e-12, "maxiter": 500}
    found = minimize(total, equal, jac=True, method="SLSQP", bounds=bounds, constraints=whole, options=options)
    clipped: Doubles = np.clip(found.x, 0, None)
    return np.asarray(clipped / clipped.sum())


def cross_fitted_weights(
    space: LabelSpace, codes: Sequence[Codes], logits: Sequence[Reals], *, of: MeanOf, folds: int, seed: int
) -> Doubles:
    """For each image the best weights on the other folds: (M, N)."""
    fold = folds_of(len(logits[0]), folds, seed=seed)
    weights = np.empty((len(logits), len(fold)))
    for number in np.unique(fold):
        others = fold != number
        chosen = best_weights(space, [known[others] for known in codes], [own[others] for own in logits], of=of)
        weights[:, ~others] = chosen[:, None]
    return weights


def greedy(values: Sequence[float], value_of: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """A greedy soup (Wortsman et al. 2022, "Model soups", algorithm 1): from the best member down, whoever helps.

    `values` are those of each member alone, higher is better; `value_of` is that of several members averaged. One
    that leaves the value as it is is taken too.
    """
    best_first = sorted(range(len(values)), key=lambda member: -values[member])
    chosen: tuple[int, ...] = (best_first[0],)
    best = values[best_first[0]]
    for member in best_first[1:]:
        tried = tuple(sorted((*chosen, member)))
        if (value := value_of(tried)) >= best:
            chosen, best = tried, value
    return chosen


def _losses(space: LabelSpace, codes: Sequence[Codes], logits: Sequence[Reals], of: MeanOf) -> list[Loss | None]:
    parts = zip(space, codes, space.slices, strict=True)
    stacked = np.stack([np.asarray(own, dtype=np.float64) for own in logits])
    return [_loss(codes_of, stacked[:, :, columns], of, head.kind == "multiclass") for head, codes_of, columns in parts]


def _loss(codes: Codes, logits: Reals, of: MeanOf, multiclass: bool) -> Loss | None:
    """The loss of one head from the logits (M, N, K) of every member; None where nothing is known."""
    known = codes >= 0
    if not known.any():
        return None
    if multiclass:
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
    """Of a mean of probabilities: from log-likelihoods (M, C) of what is true."""
    top = likelihood.max(axis=0)
    shares = np.exp(likelihood - top)  # at least one of each column is 1

    def loss(weights: Doubles) -> tuple[float, Doubles]:
        mixed = np.maximum(weights @ shares, np.finfo(np.float64).tiny)
        return float(-(np.log(mixed) + top).mean()), -(shares / mixed).mean(axis=1)

    return loss


def _loss_of_logits(logits: Reals, truth: Codes) -> Loss:
    """Of a mean of logits (M, C, K) of which one class is true."""
    rows = np.arange(len(truth))

    def loss(weights: Doubles) -> tuple[float, Doubles]:
        mixed = np.tensordot(weights, logits, axes=1)
        wrong = softmax(mixed, axis=1)
        wrong[rows, truth] -= 1
        value = -log_softmax(mixed, axis=1)[rows, truth].mean()
        return float(value), np.tensordot(logits, wrong, axes=2) / len(truth)

    return loss


def _loss_of_margins(margins: Reals) -> Loss:
    """Of a mean of logits (M, C), each with the sign of the truth."""

    def loss(weights: Doubles) -> tuple[float, Doubles]:
        mixed = weights @ margins
        return float(-log_expit(mixed).mean()), -(margins * expit(-mixed)).mean(axis=1)

    return loss
