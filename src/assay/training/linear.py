"""Linear heads on features: logistic regression by L-BFGS, its strength by cross-validation."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from assay.arrays import Floats
from assay.labels.space import Codes, Head, LabelSpace

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Strengths = Mapping[str, Sequence[float]]
"""Head -> scikit-learn's C: one, or for a multi-label head one a tag; 0 where there is nothing to fit."""
T = TypeVar("T")

STRENGTHS = (0.0003, 0.001, 0.01, 0.1, 1.0)  # smaller is stronger; where many labels are wrong, the strongest fits best
SEARCH_ROWS = 8_000  # images to search on; of more, a random part
THREADS = min(8, os.cpu_count() or 1)  # each may hold a copy of the features


@dataclass(frozen=True, eq=False)
class Linear:
    """Linear heads side by side: coefficients (W, F) and intercepts (W,), and the strengths they were fitted at."""

    coefficients: Floats
    intercepts: Floats
    strengths: Strengths

    def logits(self, features: Floats) -> Floats:
        """Return logits (N, W) of features (N, F)."""
        return np.asarray(features @ self.coefficients.T + self.intercepts)


def fit_linear(
    space: LabelSpace,
    features: Floats,
    codes: Sequence[Codes],
    weights: Floats,
    *,
    seed: int,
    strengths: Strengths | None = None,
) -> Linear:
    """Fit a logistic regression of every head on features (N, F): multinomial, or one a tag.

    `codes` are one array a head and `weights` (N, H). Strengths are searched where none are given. A class
    without images gets the lowest logit.
    """
    if strengths is None:
        strengths = find_strengths(space, features, codes, weights, seed=seed)
    mean, scale = moments(features)
    standard = (features - mean) / scale
    searched = [strength for head in space for strength in strengths[head.name]]
    fits = [
        partial(
            fit_question,
            head.values,
            standard,
            weights[:, position],
            known,
            strength,
        )
        for (position, head, known), strength in zip(_questions(space, codes), searched, strict=True)
    ]
    coefficients, intercepts = [], []
    for (_, head, _), (slopes, level) in zip(_questions(space, codes), side_by_side(fits), strict=True):
        coefficients.append(slopes if head.multiclass else slopes[1:] - slopes[:1])  # of a tag, present less absent
        intercepts.append(level if head.multiclass else level[1:] - level[:1])
    scaled = (np.concatenate(coefficients) / scale).astype(np.float32)
    levels = (np.concatenate(intercepts) - scaled @ mean).astype(np.float32)
    return Linear(scaled, levels, strengths)


def find_strengths(
    space: LabelSpace, features: Floats, codes: Sequence[Codes], weights: Floats, *, seed: int
) -> dict[str, tuple[float, ...]]:
    """Return the strength with the lowest cross-validated log loss, for every multi-class head and every tag."""
    mean, scale = moments(features)
    standard = (features - mean) / scale
    questions = list(_questions(space, codes))
    searches = [partial(_search, standard, weights[:, position], seed, known) for position, _, known in questions]
    strengths: dict[str, tuple[float, ...]] = {head.name: () for head in space}
    for (_, head, _), strength in zip(questions, side_by_side(searches), strict=True):
        strengths[head.name] += (strength,)
    return strengths


def solver_seconds(space: LabelSpace, codes: Sequence[Codes], weights: Floats, *, width: int) -> float:
    """Return about the seconds of `fit_linear` on features (N, width), from drawn ones of some of the images."""
    chance = np.random.default_rng(0)
    rows = chance.permutation(len(weights))[:1_000]
    features = chance.standard_normal((len(rows), width), np.float32)
    for known in codes:  # separable classes: a search over strengths takes longest for them
        members = (known[rows] == 1) if known.ndim == 2 else known[rows, None] == np.arange(known.max() + 1)
        features += 0.3 * (members.astype(np.float32) @ chance.standard_normal((members.shape[1], width), np.float32))
    began = time.perf_counter()
    fit_linear(space, features, [known[rows] for known in codes], weights[rows], seed=0)
    return (time.perf_counter() - began) * len(weights) / len(rows)


def moments(features: Floats) -> tuple[Floats, Floats]:
    """Return means and standard deviations (F,), the latter never 0."""
    return features.mean(axis=0), features.std(axis=0) + 1e-6


def _questions(space: LabelSpace, codes: Sequence[Codes]) -> Iterator[tuple[int, Head, Codes]]:
    """Yield every multi-class head and every tag of a multi-label one: index of the head, head, codes (N,)."""
    for position, (head, known) in enumerate(zip(space, codes, strict=True)):
        for question in head.columns(known).T:
            yield position, head, question


def side_by_side(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Return the results of tasks; several run on one thread each, as their matrix products are too small to share.

    14 tags of 6,146 images x 1,280 features took 43 s with two threads for every product on two busy cores, and
    10 s on one core.
    """
    from sklearn.exceptions import ConvergenceWarning  # here and below: a second that only a fit need wait for

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # validation measures what an early stop costs
        if len(tasks) == 1:
            return [tasks[0]()]
        with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda task: task(), tasks))


def fit_question(size: int, features: Floats, weights: Floats, codes: Codes, strength: float) -> tuple[Floats, Floats]:
    """Return coefficients (size, F) and intercepts (size,) of one regression; `codes` are -1 where unknown."""
    features, weights, codes = _known(features, weights, codes)
    classes = np.unique(codes)
    coefficients = np.zeros((size, features.shape[1]), dtype=np.float32)
    intercepts = np.full(size, -20.0, dtype=np.float32)  # a class without images is never predicted
    if len(classes) < 2:
        intercepts[classes] = 0.0
        return coefficients, intercepts
    model = _regression(strength, features, weights, codes)
    if len(classes) == 2:  # one row of coefficients: those of the second class against the first
        coefficients[classes[1]] = model.coef_[0]
        intercepts[classes] = 0.0, model.intercept_[0]
    else:
        coefficients[classes], intercepts[classes] = model.coef_, model.intercept_
    return coefficients, intercepts


def _search(features: Floats, weights: Floats, seed: int, codes: Codes) -> float:
    from sklearn.model_selection import StratifiedKFold

    features, weights, codes = _known(features, weights, codes)
    if len(np.unique(codes)) < 2:
        return 0.0
    rows = np.random.default_rng(seed).permutation(len(codes))[:SEARCH_ROWS]
    features, weights, codes = features[rows], weights[rows], codes[rows]
    folds = min(3, int(np.bincount(codes)[np.unique(codes)].min()))
    if folds < 2 or len(np.unique(codes)) < 2:
        return 0.01  # too few images a class to compare: a strong pull to zero
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, codes))
    losses: dict[float, float] = {}
    for strength in STRENGTHS:
        losses[strength] = 0.0
        for fitting, held in splits:
            model = _regression(strength, features[fitting], weights[fitting], codes[fitting])
            log_probabilities = _log_probabilities(model, features[held])
            columns = np.searchsorted(model.classes_, codes[held])
            losses[strength] -= float(log_probabilities[np.arange(len(held)), columns].sum())
        if losses[strength] > min(losses.values()):
            break  # a still weaker pull makes it worse, and takes longest
    return min(losses, key=lambda strength: losses[strength])


def _known(features: Floats, weights: Floats, codes: Codes) -> tuple[Floats, Floats, Codes]:
    known = codes >= 0
    return (features, weights, codes) if known.all() else (features[known], weights[known], codes[known])


def _regression(strength: float, features: Floats, weights: Floats, codes: Codes) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(features, codes, sample_weight=weights)


def _log_probabilities(model: LogisticRegression, features: Floats) -> Floats:
    """Return (N, K), finite also where scikit-learn's would be the logarithm of 0."""
    scores = model.decision_function(features)
    if scores.ndim == 1:  # of two classes, the second against the first
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    return np.asarray(log_softmax(scores, axis=1))
