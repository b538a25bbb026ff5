"""Calibration of probabilities by a temperature (Guo et al. 2017) or by slopes and intercepts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy  # its modules are imported when they are first used
from scipy.special import expit, log_softmax, logit

from assay.arrays import Doubles, Floats, Reals
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.metrics.tallies import row_blocks

COLDEST, HOTTEST = 0.05, 20.0
FEWEST = 10  # labels: of fewer, a temperature is that of single images


def temperature(head: Head, codes: Codes, logits: Reals, weights: Reals | None = None) -> float:
    """Return the number to divide the logits (N, K) of a head by for the lowest loss on the known labels.

    `weights` of the labels are shaped like the codes; 1 where none are given. Between 0.05 and 20; 1 where all
    temperatures are equal. The loss is convex in 1 / temperature, so its slope has one root at most.
    """
    known = head.known(codes)
    counts = np.ones(codes.shape) if weights is None else weights.astype(np.float64)
    args = (head, codes[known], counts[known], logits if known.all() else logits[known])
    coldest, hottest = _slope(1 / COLDEST, *args), _slope(1 / HOTTEST, *args)
    if coldest == hottest:  # so is every slope between: no label is known, or all logits are equal
        return 1.0
    if coldest <= 0:
        return COLDEST
    if hottest >= 0:
        return HOTTEST
    # What is given as `args` is freed at the end; what the function encloses, SciPy keeps until the next collection.
    return float(1 / scipy.optimize.brentq(_slope, 1 / HOTTEST, 1 / COLDEST, args=args, xtol=1e-9))


def _slope(scale: float, head: Head, codes: Codes, counts: Reals, logits: Reals) -> float:
    """Return the slope of the summed loss of `scale * logits` (N, K) of images with known labels."""
    if not head.multiclass:
        exact = logits.astype(np.float64)
        return float((counts * (expit(scale * exact) - codes) * exact)[codes >= 0].sum())
    slopes = np.empty(len(codes))
    for rows in row_blocks(logits):
        exact = logits[rows].astype(np.float64)
        exact -= exact.max(axis=1, keepdims=True)  # makes equal logits exactly 0, whose slope is 0 too
        powers = np.exp(scale * exact)
        expected = np.einsum("nk,nk->n", powers, exact) / powers.sum(axis=1)
        slopes[rows] = expected - np.take_along_axis(exact, codes[rows, None], axis=1)[:, 0]
    return float((counts * slopes).sum())


def probabilities_at(space: LabelSpace, logits: Floats, temperatures: Reals) -> Floats:
    """Return probabilities of logits (N, W) divided by temperatures, (W,) or (N, W), without an array of these."""
    temperatures, probabilities = np.broadcast_to(temperatures, logits.shape), np.empty_like(logits)
    for rows in row_blocks(logits):
        probabilities[rows] = probabilities_of(space, logits[rows] / temperatures[rows])
    return probabilities


def settled_temperature(head: Head, codes: Codes, logits: Reals) -> float:
    """Return `temperature` where the known labels determine it, else 1.

    They do not where there are fewer than ten, nor at an end of the range: where all labels are predicted, any colder
    temperature would be better still.
    """
    best = temperature(head, codes, logits)
    return best if int(head.known(codes).sum()) >= FEWEST and COLDEST < best < HOTTEST else 1.0


def rescaled(
    head: Head,
    codes: Codes,
    scores: Reals,
    weights: Reals,
    *,
    slopes: Literal["one", "each"],
    levels: bool,
    pull: float = 0.0,
) -> tuple[Doubles, Doubles]:
    """Return slopes and intercepts (K,) that map scores (N, K) to logits, for the lowest loss on the known labels.

    For tags it is Platt scaling (Platt 1999), for classes the same under a softmax (vector scaling, Guo et al.
    2017). As in the former, targets are smoothed: (n + 1) / (n + 2) instead of 1 for n images of a label. Slopes
    are 0 or more; one slope for all classes keeps the order of scores that differ by class alone. `weights` are
    shaped like the codes; a score that is not finite counts as unknown. `pull` times the weight of an image of a class,
    times half the square of its intercept, is added to the loss.
    """
    size = head.size
    cells, targets = _smoothed(head, codes, scores, weights)
    pulls = pull * np.where(head.present(codes), cells, 0.0).max(axis=0, initial=0.0)
    pulls = np.where(pulls > 0, pulls, pulls.max())
    finite = np.where(np.isfinite(scores), scores, 0.0).astype(np.float64)
    count = size if slopes == "each" else 1

    def loss(parameters: Doubles) -> tuple[float, Doubles]:
        logits = parameters[:count] * finite + (parameters[count:] if levels else 0.0)
        if head.multiclass:
            log_probabilities = log_softmax(logits, axis=1)
            value = -(cells * targets * log_probabilities).sum()
            gradient = cells * (np.exp(log_probabilities) - targets)
        else:
            value = (cells * (np.logaddexp(0, logits) - targets * logits)).sum()
            gradient = cells * (expit(logits) - targets)
        by_slope = (gradient * finite).sum(axis=0)
        parts = [by_slope if slopes == "each" else by_slope.sum(keepdims=True)]
        if not levels:
            return float(value), np.concatenate(parts)
        pulled = pulls * parameters[count:]
        value += 0.5 * (pulled * parameters[count:]).sum()
        return float(value), np.concatenate([*parts, gradient.sum(axis=0) + pulled])

    begin = np.concatenate([np.ones(count), np.zeros(size if levels else 0)])
    bounds = [(0.0, None)] * count + [(None, None)] * (len(begin) - count)
    options = {"maxiter": 1000, "gtol": 1e-8, "ftol": 1e-13}
    best = scipy.optimize.minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return np.broadcast_to(best[:count], (size,)).copy(), best[count:] if levels else np.zeros(size)


def _smoothed(head: Head, codes: Codes, scores: Reals, weights: Reals) -> tuple[Doubles, Doubles]:
    """Return the weight of each cell, (N, 1) or (N, K), of mean 1, and its target (N, K)."""
    finite = np.isfinite(scores)
    if head.multiclass:
        known = (codes >= 0) & finite.all(axis=1)
        counts = np.bincount(codes[known], minlength=head.size)
        of_label = ((counts + 1) / (counts + 2))[np.maximum(codes, 0)]
        targets = np.repeat((1 - of_label)[:, None] / max(head.size - 1, 1), head.size, axis=1)
        targets[np.arange(len(codes)), codes] = of_label
        cells = np.where(known, weights, 0.0)[:, None]
    else:
        known = (codes >= 0) & finite
        positive, negative = ((known & (codes == value)).sum(axis=0) for value in (1, 0))
        targets = np.where(codes == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
        cells = np.where(known, weights, 0.0)
    return cells / max(cells.mean(), np.finfo(np.float64).tiny), targets


def at_temperature(thresholds: Reals, temperatures: float | Reals) -> Floats:
    """Return thresholds that make the same decisions after logits are divided by `temperatures`.

    A threshold of 1 and more predicts no tag at any temperature.
    """
    cuts: npt.NDArray[Any] = np.minimum(thresholds.astype(np.float64), 1)
    moved = expit(logit(cuts) / temperatures)
    return np.where(cuts < 1, moved, thresholds).astype(np.float32)
