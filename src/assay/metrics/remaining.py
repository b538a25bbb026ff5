"""How many labels are still wrong: from probabilities and decisions, and from a random audit."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from assay.arrays import Bools, Doubles, Reals
from assay.metrics.intervals import Metric, Z, wilson

CLIP = 1e-4  # probabilities nearer to 0 or 1 are none to rely on
SPREAD = (1.0, 0.5)  # standard deviations of the intercept and the slope before any decision
NEXT = 100  # decisions that lie ahead


def wrong_left(undecided: Reals, decided: Reals, wrong: Bools) -> Metric:
    """Return how many labels that nobody decided are wrong, with its 95 % interval; `n` is how many there are.

    undecided: (n,) their probabilities of being wrong; decided: (m,) those of the decided labels, as of models that
    did not learn from them; wrong: (m,) what they turned out to be. The probabilities are corrected by a logistic
    regression on their log odds (Platt 1999), with a normal prior around no correction: it holds for labels that
    were looked at because they were suspicious, since it models what happens at each probability. The interval adds the
    uncertainty of the correction (delta method) to that of the labels themselves, on the log scale.
    """
    n = len(undecided)
    if n == 0:
        return Metric(0.0, 0, 0.0, 0.0)
    coefficients, covariance = recalibration(decided, wrong)
    odds = _odds(undecided)
    probabilities = expit(coefficients[0] + coefficients[1] * odds)
    spread = probabilities * (1 - probabilities)
    slope = np.array([spread.sum(), (spread * odds).sum()])
    value = float(probabilities.sum())
    deviation = float(np.sqrt(spread.sum() + slope @ covariance @ slope))
    factor = float(np.exp(Z * deviation / max(value, 1e-9)))
    return Metric(value, n, value / factor, min(float(n), value * factor))


def next_hundred(undecided: Reals, decided: Reals, wrong: Bools) -> float:
    """Return how many wrong labels the next 100 decisions are expected to find, by probabilities as in `wrong_left`."""
    coefficients, _ = recalibration(decided, wrong)
    corrected = expit(coefficients[0] + coefficients[1] * _odds(undecided))
    return float(np.sort(corrected)[::-1][:NEXT].sum())


def recalibrated(probabilities: Reals, decided: Reals, wrong: Bools) -> Doubles:
    """Return probabilities of being wrong, of any shape and NaN where unknown, corrected as in `wrong_left`."""
    coefficients, _ = recalibration(decided, wrong)
    return np.asarray(expit(coefficients[0] + coefficients[1] * _odds(probabilities)))


def recalibration(probabilities: Reals, wrong: Bools) -> tuple[Doubles, Doubles]:
    """Return intercept and slope (2,) of the log odds of being wrong on their log odds, and their covariance (2, 2)."""
    design = np.stack([np.ones(len(probabilities)), _odds(probabilities)], axis=1)
    precision = np.diag(1 / np.square(SPREAD))
    centre = np.array([0.0, 1.0])
    now = centre.copy()
    for _ in range(30):
        fitted = expit(design @ now)
        slope = design.T @ (wrong - fitted) - precision @ (now - centre)
        curvature = (design * (fitted * (1 - fitted))[:, None]).T @ design + precision
        step = np.linalg.solve(curvature, slope)
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


def _odds(probabilities: Reals) -> Doubles:
    return np.asarray(logit(np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP)))
