"""Labels for unlabelled images from all images at once: Gaussians of the classes, fitted to both kinds by EM.

A classifier of few labels knows the classes by these alone. Where classes form clusters in feature space, the
unlabelled images show where the clusters lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from assay.arrays import Bools, Doubles, Floats, Ints, Reals
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.intervals import Metric
from assay.repair.judges import by_folds, more_predicted
from assay.training.linear import Linear, find_strengths, fit_linear
from assay.training.semi_supervised import learnable_values

DIRECTIONS = (50, 100, 200, 400)  # principal ones, of which cross-validation takes the best number
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)  # Gaussians of many directions are too sure
STEPS = 20  # of EM: more changed no accuracy by 0.001
SHRINKAGE = 0.05  # of the covariance, towards equal variances
FIRST_SHRINKAGE = 0.5  # of that of the labelled images alone, which are fewer than directions
FOLDS = 3


class Mixture(NamedTuple):
    """Probabilities (N, K), NaN where there are none, and what cross-validation chose.

    `held_out` (N, K) are those of images with a known label by mixtures to which it was unknown, in `folds` (N,); NaN
    and -1 where no label was held out.
    """

    probabilities: Floats
    directions: int
    temperature: float
    held_out: Floats
    folds: Ints


def class_mixture(
    head: Head, codes: Codes, features: Reals, *, use: Bools, seed: int, widths: Sequence[int] = ()
) -> Mixture:
    """Return probabilities of the classes of all images to `use` (N,), by features (N, F) and the known codes (N,).

    Features are replaced by their signed square roots, standardised, and projected on principal directions; blocks of
    them, of these `widths`, count the same, as those of the stages of a network do, whose last one has most. Each class
    is a Gaussian there, all of one covariance, and EM fits them to labelled and unlabelled images together: semi-
    supervised EM (Nigam et al. 2000, section 4) for the model of linear discriminant analysis, its covariance shrunk
    towards a multiple of the identity (Friedman 1989). A known label is never doubted. The number of directions, and a
    temperature (Guo et al. 2017) for the probabilities, are those with the least log loss of labels held out in folds.
    Classes without a known label have probability 0.

    Raises ValueError for a multi-label head: its tags are no clusters.
    """
    if not head.multiclass:
        raise ValueError("class_mixture takes a multi-class head")
    able = learnable_values(head, codes)
    rows = np.flatnonzero(use & np.isfinite(features).all(axis=1))
    known = np.where((codes[rows] >= 0) & able[codes[rows]], np.cumsum(able)[codes[rows]] - 1, -1)
    probabilities, held_out = (np.full((len(codes), head.size), np.nan, np.float32) for _ in range(2))
    folds = np.full(len(codes), -1)
    if not (known >= 0).any():
        return Mixture(probabilities, 0, 1.0, held_out, folds)
    projected, variances = _principal(features[rows], widths or (features.shape[1],))
    fold = _folds(known, seed)
    held = fold >= 0
    choices, answers = {}, {}
    for count in sorted({min(count, projected.shape[1]) for count in DIRECTIONS}):
        logits = np.empty((len(known), int(able.sum())))
        for number in range(FOLDS):
            taught = np.where(fold == number, -1, known)
            if (fold == number).any():
                logits[fold == number] = _em(projected[:, :count], variances[:count], taught)[fold == number]
        answers[count] = logits
        for temperature in TEMPERATURES:
            choices[count, temperature] = _log_loss(logits[held], known[held], temperature)
    count, temperature = min(choices, key=lambda choice: choices[choice])
    folds[rows] = fold
    logits = _em(projected[:, :count], variances[:count], known)
    for filled, images, values in ((probabilities, rows, logits), (held_out, rows[held], answers[count][held])):
        filled[images] = 0
        filled[np.ix_(images, np.flatnonzero(able))] = np.exp(log_softmax(values / temperature, axis=1))
    return Mixture(probabilities, count, temperature, held_out, folds)


def gain_of_mixture(head: Head, codes: Codes, features: Floats, mixture: Mixture, *, seed: int) -> Metric | None:
    """Return the share of labels that the mean of a linear model and of a mixture predicts, less the linear model's.

    Both are of labels held out in the folds of the mixture, and are fitted to the other known codes (N,); the mixture
    to all images beside. The interval is over images.
    """
    space, known = LabelSpace((head,)), np.flatnonzero(codes >= 0)
    vectors, labels, folds = features[known], codes[known], mixture.folds[known]
    held = folds >= 0
    if np.count_nonzero(held) < 2:
        return None
    ones = np.ones((len(known), 1), np.float32)
    strengths = find_strengths(space, vectors, [labels], ones, seed=seed)

    def fit(_: Ints, taught: Ints) -> Linear:
        return fit_linear(space, vectors[taught], [labels[taught]], ones[taught], seed=seed, strengths=strengths)

    before = by_folds(fit, vectors, folds, held=vectors[:0], space=space).train[held]
    return more_predicted(head, labels[held], before, (before + mixture.held_out[known][held]) / 2)


def _em(vectors: Doubles, variances: Doubles, codes: Codes) -> Doubles:
    """Return the logits (N, K) of the classes of centred vectors (N, d), in uncorrelated directions of these variances.

    The scatter within classes is that of all vectors, which is diagonal, less that of the means: a step of EM costs
    N d K operations, and not N d squared.
    """
    known, classes = codes >= 0, int(codes.max()) + 1
    given = np.zeros((len(codes), classes))
    given[known, codes[known]] = 1
    shares, shrinkage = given, FIRST_SHRINKAGE
    for _ in range(STEPS):
        sizes = shares.sum(axis=0)
        means = shares.T @ vectors / np.maximum(sizes, 1e-12)[:, None]
        if shares is given:
            residuals = vectors[known] - means[codes[known]]
            within = residuals.T @ residuals / known.sum()
        else:
            within = np.diag(variances) - (means.T * (sizes / len(vectors))) @ means
        spread = float(np.trace(within)) / len(within) or variances.mean()  # none within classes of one image each
        within = (1 - shrinkage) * within + shrinkage * spread * np.eye(len(within))
        towards = np.linalg.solve(within, means.T)  # (d, K)
        logits: Doubles = vectors @ towards - 0.5 * np.einsum("kd,dk->k", means, towards)
        shares = np.where(known[:, None], given, np.exp(log_softmax(logits, axis=1)))
        shrinkage = SHRINKAGE
    return logits


def _principal(features: Reals, widths: Sequence[int]) -> tuple[Doubles, Doubles]:
    """Return vectors (N, d) in the principal directions of all features, the most varied first, and variances (d,)."""
    roots = np.sign(features) * np.sqrt(np.abs(features.astype(np.float32)))
    roots -= roots.mean(axis=0)
    roots /= np.where((deviation := roots.std(axis=0)) > 0, deviation, 1)
    roots /= np.sqrt(np.repeat(widths, widths)).astype(np.float32)
    variances, directions = np.linalg.eigh((roots.T @ roots / len(roots)).astype(np.float64))
    varied = np.count_nonzero(variances > 1e-6 * variances[-1])
    last = max(1, min(DIRECTIONS[-1], len(roots) - 1, varied))
    kept = directions[:, ::-1][:, :last]
    return roots @ kept, np.maximum(variances[::-1][:last], 1e-12)


def _folds(codes: Codes, seed: int) -> Ints:
    """Return stratified folds (N,) of the known labels; -1 where unknown, and for the only label of a class."""
    fold = np.full(len(codes), -1)
    rows = np.random.default_rng(seed).permutation(len(codes))
    rows = rows[codes[rows] >= 0]
    rows = rows[np.bincount(codes[rows])[codes[rows]] > 1]
    fold[rows[np.argsort(codes[rows], kind="stable")]] = np.arange(len(rows)) % FOLDS
    return fold


def _log_loss(logits: Doubles, codes: Codes, temperature: float) -> float:
    if not len(codes):
        return temperature
    return -float(log_softmax(logits / temperature, axis=1)[np.arange(len(codes)), codes].mean())
