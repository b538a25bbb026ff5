"""The probability that a label is wrong.

Of a cell of given value g and probabilities p of its true value, by models that did not learn from it, the true value
is y with a probability proportional to p[y] x P(g | y). P(given | true), the noise matrix, and what the labels mean are
estimated in turn (Raykar et al. 2010, "Learning from Crowds", with one annotator). What a person decided is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import expit

from assay.arrays import Bools, Doubles, Ints, Reals
from assay.labels.space import Codes, Head
from assay.metrics.remaining import CLIP, log_odds, logistic_map

COUNTED = 2.0  # labels a pair of values counts as before any
FREEDOM = (1.0, 0.3, 0.3, 0.3, 0.3)  # standard deviations of the coefficients of `wrong_by_decisions`
ROUNDS = 3  # of noise and posterior
AT_FIRST = 0.05  # of the labels that are wrong, before noise is estimated
POWERS = tuple(np.geomspace(0.7, 7.0, 13).tolist())  # of probabilities, for `calibrated_wrong`
DIRECT = 0.25  # of what the judge says itself: best on planted noise of ten kinds, see the results
STEPS = 10  # of noise and posterior, at each
ENOUGH = 5_000  # labels to estimate a noise matrix by


def true_posterior(probabilities: Reals, given: Ints, noise: Reals) -> Doubles:
    """Return P(true | image, given) (n, V) from probabilities (n, V) and a noise matrix (V given, V true)."""
    joint = probabilities * noise[given]
    return np.asarray(joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300))


def noise_matrix(posterior: Reals, given: Ints) -> Doubles:
    """Return P(given | true) (V given, V true) that is most likely by P(true | image, given) (n, V)."""
    counts = np.zeros((posterior.shape[1],) * 2)
    np.add.at(counts, given, posterior)
    return _columns(counts)


def mislabelled(probabilities: Reals, given: Ints, learnt: tuple[Reals, Ints] | None = None) -> Doubles:
    """Return the probability (n,) that each given value is wrong, from probabilities (n, V) out of fold.

    Noise and posterior are estimated in turn, from labels that are mostly right: those of `learnt`, where it is given.
    A rare value that is hardly recognised has a low probability wherever it is given, so that this says little against
    a single label of it.
    """
    teaching, values = learnt or (probabilities, given)
    shares = np.maximum(np.bincount(values, minlength=probabilities.shape[1]), 1) / max(1, len(values))
    counts = AT_FIRST * shares[:, None] * shares / np.maximum(1 - shares, CLIP)[:, None]
    np.fill_diagonal(counts, (1 - AT_FIRST) * shares)
    noise = counts / counts.sum(axis=0)
    for _ in range(ROUNDS):
        noise = noise_matrix(true_posterior(teaching, values, noise), values)
    return np.asarray(1 - true_posterior(probabilities, given, noise)[np.arange(len(given)), given])


def calibrated_wrong(probabilities: Reals, given: Ints, learnt: tuple[Reals, Ints] | None = None) -> Doubles:
    """Return the probability (n,) that each given value is wrong, from probabilities (n, V) out of fold.

    What learnt from noisy labels predicts noisy labels: it is unsure of the true value. Of the powers of its
    probabilities, each with its noise matrix, that is taken which makes the given values the likeliest. Those are the
    values of `learnt` where it is given, as probabilities and values of other images; values that never occur do not
    count. To the likelihood, faults on hard images look like answers that are unsure: the log odds of the probabilities
    themselves count by the share `DIRECT`.
    """
    teaching, values = learnt or (probabilities, given)
    if len(given) == 0 or len(values) == 0:
        return np.zeros(len(given))
    occurring = np.union1d(values, given)
    probabilities, teaching = probabilities[:, occurring], teaching[:, occurring]
    given, values = np.searchsorted(occurring, given), np.searchsorted(occurring, values)
    power, noise = _likeliest(teaching, values)
    each = np.arange(len(given))
    wrong = 1 - true_posterior(_raised(probabilities, power), given, noise)[each, given]
    return np.asarray(expit((1 - DIRECT) * log_odds(wrong) + DIRECT * log_odds(1 - probabilities[each, given])))


def likely_counts(probabilities: Reals, given: Ints) -> Doubles:
    """Return how many values (n,) were given as the row and are truly of the column (V, V), by `calibrated_wrong`.

    Without what the judge says itself: hard images are no wrong labels here.
    """
    if len(given) == 0:
        return np.zeros((probabilities.shape[1],) * 2)
    power, noise = _likeliest(probabilities, given)
    return np.asarray(noise * true_posterior(_raised(probabilities, power), given, noise).sum(axis=0))


def _likeliest(probabilities: Reals, given: Ints) -> tuple[float, Doubles]:
    """Return the power of probabilities (n, V) that makes the given values the likeliest, and its noise matrix."""
    rows = np.arange(0, len(given), max(1, len(given) // ENOUGH))
    noises = {power: _noise_at(probabilities[rows], given[rows], power) for power in POWERS}
    power = max(noises, key=lambda one: noises[one][0])
    return power, noises[power][1]


def _noise_at(probabilities: Reals, given: Ints, power: float) -> tuple[float, Doubles]:
    """Return the mean log likelihood of given values by a power of probabilities (n, V), and its noise matrix."""
    raised = _raised(probabilities, power)
    noise = estimated_noise(raised, given)
    for _ in range(STEPS):
        noise = noise_matrix(true_posterior(raised, given, noise), given)
    likelihood = np.log(np.maximum((raised * noise[given]).sum(axis=1), 1e-12))
    return float(likelihood.sum()) / max(1, len(given)), noise


def _raised(probabilities: Reals, power: float) -> Doubles:
    """Return a power of probabilities (n, V), each row with the sum 1."""
    raised = np.maximum(probabilities.astype(np.float64), 1e-6) ** power
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def wrong_labels(
    head: Head, codes: Codes, probabilities: Reals, *, learnt: tuple[Codes, Reals] | None = None
) -> Doubles:
    """Return the probability that each known label is wrong, in the shape of the codes, NaN where unknown.

    Probabilities (N, K) are out of fold; or of held-out images, where `learnt` has codes and probabilities of others.
    Tags are estimated by `mislabelled`: most are rare, and some are never recognised.
    """
    estimate = calibrated_wrong if head.multiclass else mislabelled
    wrong = np.full(codes.shape, np.nan)
    cells = head.columns(wrong)
    of_others = [None] * head.cells if learnt is None else list(_known_cells(head, *learnt))
    for cell, (values, given) in enumerate(_known_cells(head, codes, probabilities)):
        cells[head.columns(codes)[:, cell] >= 0, cell] = estimate(values, given, of_others[cell])
    return head.from_columns(cells)


def _known_cells(head: Head, codes: Codes, probabilities: Reals) -> Iterator[tuple[Reals, Ints]]:
    """Yield of each cell the probabilities (n, V) of its values, and the given values (n,), where these are known."""
    for cell, given in enumerate(head.columns(codes).T):
        known = given >= 0
        present = probabilities if head.multiclass else probabilities[:, [cell, cell]] * [-1, 1] + [1, 0]
        yield present[known], given[known]


def estimated_noise(probabilities: Reals, given: Ints) -> Doubles:
    """Return P(given | true) by the confident joint of the labels (Northcutt et al. 2021), before any posterior."""
    size = probabilities.shape[1]
    occurring = np.bincount(given, minlength=size)
    of_given = probabilities[np.arange(len(given)), given]
    thresholds = np.bincount(given, of_given, minlength=size) / np.maximum(occurring, 1)
    confident = np.where((probabilities >= thresholds) & (occurring > 0), probabilities, -1.0)
    rows = np.flatnonzero(confident.max(axis=1) >= 0)
    counts = np.zeros((size, size))
    np.add.at(counts, (given[rows], confident[rows].argmax(axis=1)), 1.0)
    counts *= occurring[:, None] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return _columns(counts)


def _columns(counts: Doubles) -> Doubles:
    """Return counts (V given, V true) as shares of the columns; each value counts as right as often as all are."""
    size = len(counts)
    right = (np.trace(counts) + 1) / (counts.sum() + 1.25)
    prior = np.full((size, size), (1 - right) / max(1, size - 1))
    np.fill_diagonal(prior, right)
    counts = counts + COUNTED * size * prior
    return np.asarray(counts / counts.sum(axis=0))


def prior_wrong(posterior: Reals, probabilities: Reals, given: Ints) -> Doubles:
    """Return the probability (n,) that the given value is wrong, before any decision.

    The posterior calls too few labels wrong, the probabilities alone too many: it is the mean of their log odds.
    """
    rows = np.arange(len(given))
    return np.asarray(expit((log_odds(1 - posterior[rows, given]) + log_odds(1 - probabilities[rows, given])) / 2))


def wrong_by_decisions(prior: Reals, views: Sequence[Reals], given: Ints, decided: Bools, wrong: Bools) -> Doubles:
    """Return the probability (n,) that the given value is wrong, as decisions correct `prior` (n,).

    views: the posterior, and probabilities (n, V) of the linear model, of the neighbours and of both. decided: (n,);
    wrong: what the decided ones turned out to be. A logistic regression around the prior weighs the views anew.
    """
    rows = np.arange(len(given))
    posterior, linear, local, mixed = (log_odds(1 - view[rows, given]) for view in views)
    others = views[3].copy()
    others[rows, given] = 0
    columns = [posterior - mixed, posterior + mixed, local - linear, log_odds(others.max(axis=1, initial=0))]
    design = (
        np.stack([np.ones(len(given)), *(column - column.mean() for column in columns)], axis=1)
        if len(given)
        else np.zeros((0, 5))
    )
    offset = log_odds(prior)
    coefficients, _ = logistic_map(design[decided], wrong, offset=offset[decided], deviations=np.array(FREEDOM))
    return np.asarray(expit(offset + design @ coefficients))
