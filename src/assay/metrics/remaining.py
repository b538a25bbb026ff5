"""How many labels are still wrong: from probabilities and decisions, and from a random audit."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from assay.arrays import Bools, Doubles, Reals
from assay.metrics.intervals import Metric, Z, wilson

CLIP = 1e-4  # probabilities nearer to 0 or 1 are none to rely on
LEVEL, STEP = 1.0, 0.4  # standard deviations of the correction of the highest log odds, and of its change by a bin
BINS = 10  # of equally many labels


def wrong_left(undecided: Reals, decided: Reals, wrong: Bools) -> Metric:
    """Return how many labels that nobody decided are wrong, with its 95 % interval; `n` is how many there are.

    undecided: (n,) their probabilities of being wrong; decided: (m,) those of the decided labels, by models that did
    not learn from them; wrong: (m,) what they turned out to be.

    Decided labels are suspicious ones, so that a sample's share cannot be scaled up. The probabilities are corrected
    instead: what is added to their log odds is a random walk over bins of falling probability, whose steps have a
    normal prior, fitted to the decisions by Laplace's method. Where nothing was decided, the correction stays that of
    the nearest bin, and grows uncertain with the distance. The interval adds that (delta method) to the uncertainty of
    the labels themselves, on the log scale.
    """
    n = len(undecided)
    if n == 0:
        return Metric(0.0, 0, 0.0, 0.0)
    everything = np.concatenate([log_odds(undecided), log_odds(decided)])
    knots = np.quantile(everything, np.linspace(1, 0, BINS + 1)[1:-1])
    design = _steps(everything, knots)
    prior = np.full(BINS, STEP)
    prior[0] = LEVEL
    coefficients, covariance = logistic_map(design[n:], wrong, offset=everything[n:], deviations=prior)
    probabilities = expit(everything[:n] + design[:n] @ coefficients)
    spread = probabilities * (1 - probabilities)
    slope = design[:n].T @ spread
    value = float(probabilities.sum())
    deviation = float(np.sqrt(spread.sum() + slope @ covariance @ slope))
    factor = float(np.exp(Z * deviation / max(value, 1e-9)))
    return Metric(value, n, value / factor, min(float(n), value * factor))


def _steps(odds: Doubles, knots: Doubles) -> Doubles:
    """Return columns (n, BINS): 1, and of each knot whether the log odds are below it."""
    return np.concatenate([np.ones((len(odds), 1)), odds[:, None] < knots], axis=1)


def logistic_map(design: Doubles, outcome: Bools, *, offset: Doubles, deviations: Doubles) -> tuple[Doubles, Doubles]:
    """Return coefficients (D,) of a logistic regression around an offset (n,), and their covariance (D, D).

    Their prior is normal around 0 with these standard deviations (D,); the posterior is that of Laplace's method.
    """
    precision, now = np.diag(1 / np.square(deviations)), np.zeros(len(deviations))
    curvature = precision
    for _ in range(50):
        fitted = expit(offset + design @ now)
        curvature = (design * (fitted * (1 - fitted))[:, None]).T @ design + precision
        step = np.linalg.solve(curvature, design.T @ (outcome - fitted) - precision @ now)
        now = now + step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < 1e-6:
            break
    return now, np.asarray(np.linalg.inv(curvature))


def random_audit(wrong: int, looked: int, labels: int) -> Metric | None:
    """Return the share of wrong labels by `looked` of `labels`, drawn at random, with its Wilson interval.

    The sample is a part of a finite number of labels: of the unseen ones alone the share is uncertain, so that the
    interval counts as one of looked x (labels - 1) / (labels - looked) draws, and is a point where all were seen.
    None where none was.
    """
    if looked == 0:
        return None
    share = wrong / looked
    if looked >= labels:
        return Metric(share, looked, share, share)
    effective = looked * (labels - 1) / (labels - looked)
    low, high = wilson(share * effective, effective)
    # what was seen bounds the share on both sides
    return Metric(share, looked, max(low, wrong / labels), min(high, 1 - (looked - wrong) / labels))


def log_odds(probabilities: Reals) -> Doubles:
    """Return the log odds (n,) of probabilities, held off 0 and 1."""
    return np.asarray(logit(np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP)))
