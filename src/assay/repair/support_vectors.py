"""Support vector machines on features, one class or tag against the rest, and their scores out of fold.

They answer as scikit-learn's do: `LinearSVC` where the kernel is linear, else `SVC` on the similarities of every
two images, which are computed once for all classes, folds and costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.svm import SVC

from assay.labels.space import Codes, Head
from assay.training.linear import side_by_side

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
FOLDS = 3  # of the scores that probabilities are fitted to


@dataclass(frozen=True, eq=False)
class Questions:
    """Which images are positive for each class or tag, and what they count: both (N, K), 0 where unknown."""

    positive: npt.NDArray[np.bool_]
    weights: Doubles

    @staticmethod
    def of(head: Head, codes: Codes, weights: Floats) -> Questions:
        """From the codes of a head and the weights of its labels, which are shaped like them."""
        known = np.where(codes >= 0, weights, 0.0).astype(np.float64)
        if head.kind == "multiclass":
            positive = codes[:, None] == np.arange(head.size)
            return Questions(positive, np.repeat(known[:, None], head.size, axis=1))
        return Questions(codes == 1, known)

    def take(self, rows: Ints) -> Questions:
        """Those of the images at these positions."""
        return Questions(self.positive[rows], self.weights[rows])


@dataclass(frozen=True, eq=False)
class Machines:
    """A machine a class or tag: its decisions are `shown @ vectors.T + intercepts`, (K, M) and (K,).

    NaN where there was nothing to learn from: all images answer the question alike. `out_of_fold` are decisions
    (N, K), each by machines that did not see the image.
    """

    vectors: Doubles
    intercepts: Doubles
    out_of_fold: Doubles


def folds_by_label(head: Head, codes: Codes, *, seed: int) -> Ints:
    """A fold for each image (N,), every label spread over all of them as far as its images go.

    A label is a class, or the rarest tag of an image. The only image of a class has fold -1: it is always
    learnt from, and never scored.
    """
    if head.kind == "multiclass":
        labels = codes
    else:
        rarity = np.where(codes == 1, (codes == 1).sum(axis=0), len(codes) + 1)
        labels = np.where((codes == 1).any(axis=1), rarity.argmin(axis=1), head.size)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(labels)), labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS  # neighbours in this order lie in different folds
    if head.kind == "multiclass":
        fold[np.bincount(labels, minlength=head.size)[labels] == 1] = -1
    return fold


def fit_linear_machines(shown: Doubles, questions: Questions, fold: Ints, costs: Sequence[float]) -> list[Machines]:
    """Machines with a linear kernel for each cost, on features (N, F) of mean 0 and deviation 1.

    Each is the optimum that scikit-learn's `LinearSVC(C=cost, dual=False)` looks for: squared hinge loss, the
    intercept pulled to 0 like a weight. All questions are one problem for L-BFGS, along the principal axes of the
    features and scaled by what the loss may curve there. On 5,000 x 1,280 features that take 2 s for 10 classes,
    LinearSVC took more than a minute for one.
    """
    count, size = questions.positive.shape
    spreads, axes = np.linalg.eigh(shown.T @ shown / count)
    spreads, axes = (
        spreads[spreads > 1e-12 * spreads[-1]],
        axes[:, spreads > 1e-12 * spreads[-1]],
    )  # no weight elsewhere
    turned = np.concatenate([shown @ axes, np.ones((count, 1))], axis=1)
    curves = count * np.append(spreads, 1.0)
    parts = [np.arange(count), *(np.flatnonzero(fold != number) for number in range(FOLDS))]
    tasks = [partial(_squared_hinge, turned, questions, rows, cost, curves) for cost in costs for rows in parts]
    answers = side_by_side(tasks)
    found = []
    for place in range(len(costs)):
        whole, *others = answers[place * len(parts) : (place + 1) * len(parts)]
        scores = np.full((count, size), np.nan)
        for number, own in enumerate(others):
            held = fold == number
            scores[held] = turned[held] @ own.T
        found.append(Machines(whole[:, :-1] @ axes.T, whole[:, -1], scores))
    return found


def fit_kernel_machines(similar: Doubles, questions: Questions, fold: Ints, costs: Sequence[float]) -> list[Machines]:
    """scikit-learn's `SVC(C=cost)` for each cost, from similarities (N, N)."""
    count, size = questions.positive.shape
    scores = [np.full((count, size), np.nan) for _ in costs]
    for number in range(FOLDS):
        inside, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        fitted = _by_kernel(similar[np.ix_(inside, inside)], questions.take(inside), costs)
        between = similar[np.ix_(held, inside)]
        for own, (vectors, intercepts) in zip(scores, fitted, strict=True):
            own[held] = between @ vectors.T + intercepts
    whole = _by_kernel(similar, questions, costs)
    return [Machines(*one, own) for one, own in zip(whole, scores, strict=True)]


def similarities(features: Doubles, gamma: float) -> Doubles:
    """exp(-gamma |a - b|^2) of every two rows of (N, F): (N, N)."""
    lengths = (features**2).sum(axis=1)
    apart = features @ features.T
    apart *= -2
    apart += lengths[:, None]
    apart += lengths
    np.maximum(apart, 0, out=apart)
    apart *= -gamma
    found: Doubles = np.exp(apart, out=apart)
    return found


def _squared_hinge(turned: Doubles, questions: Questions, rows: Ints, cost: float, curves: Doubles) -> Doubles:
    """Weights (K, F + 1), the last the intercept; NaN for a question that these rows answer alike."""
    questions = questions.take(rows)
    places = [place for place in range(questions.positive.shape[1]) if len(_rows(questions, place))]
    weights = np.full((questions.positive.shape[1], turned.shape[1]), np.nan)
    if not places:
        return weights
    among = turned[rows]
    counts = np.stack([_counts(questions.weights[:, place]) for place in places], axis=1)
    signs = np.where(questions.positive[:, places], 1.0, -1.0)
    scales = 1 / np.sqrt(1 + 2 * cost * curves)

    def loss(given: Doubles) -> tuple[float, Doubles]:
        own = given.reshape(len(places), -1) * scales
        missed = np.maximum(1 - signs * (among @ own.T), 0.0)
        pulled = counts * missed
        value = 0.5 * (own**2).sum() + cost * (pulled * missed).sum()
        rises = own - 2 * cost * ((pulled * signs).T @ among)
        return float(value), (rises * scales).ravel()

    begin = np.zeros(len(places) * turned.shape[1])
    options = {"maxiter": 2000, "maxfun": 3000, "gtol": 1e-7, "ftol": 1e-15}
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", options=options).x
    weights[places] = found.reshape(len(places), -1) * scales
    return weights


def _by_kernel(similar: Doubles, questions: Questions, costs: Sequence[float]) -> list[tuple[Doubles, Doubles]]:
    """Vectors (K, M) and intercepts (K,) for each cost."""
    size = questions.positive.shape[1]
    answers = side_by_side(
        [partial(_one_by_kernel, similar, questions, place, cost) for cost in costs for place in range(size)]
    )
    found = []
    for first in range(0, len(answers), size):
        vectors, intercepts = zip(*answers[first : first + size], strict=True)
        found.append((np.stack(vectors), np.array(intercepts)))
    return found


def _one_by_kernel(similar: Doubles, questions: Questions, place: int, cost: float) -> tuple[Doubles, float]:
    rows = _rows(questions, place)
    vector = np.zeros(len(similar))
    if not len(rows):
        return np.full(len(similar), np.nan), np.nan
    among = similar if len(rows) == len(similar) else similar[np.ix_(rows, rows)]
    machine = SVC(C=cost, kernel="precomputed")
    machine.fit(among, questions.positive[rows, place], sample_weight=_counts(questions.weights[rows, place]))
    vector[rows[machine.support_]] = machine.dual_coef_[0]
    return vector, float(machine.intercept_[0])


def _rows(questions: Questions, place: int) -> Ints:
    """The images to learn a question from; none where all of them answer it alike."""
    rows = np.flatnonzero(questions.weights[:, place] > 0)
    return rows if len(np.unique(questions.positive[rows, place])) == 2 else rows[:0]


def _counts(weights: Doubles) -> Doubles:
    """Of mean 1 where they count, so that a cost means the same whatever the images weigh."""
    found: Doubles = weights / weights[weights > 0].mean()
    return found
