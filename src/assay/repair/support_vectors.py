"""Support vector machines by scikit-learn, one class or tag against the rest, with out-of-fold decision values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from assay.arrays import Bools, Doubles
from assay.labels.space import Codes, Head
from assay.repair.head_kinds import THREADS
from assay.training.linear import one_thread

if TYPE_CHECKING:
    from sklearn.svm import SVC, LinearSVC

FOLDS = 3
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Machines:
    """One machine a class or tag; decision values are `inputs @ vectors.T + intercepts`, (K, M) and (K,).

    `out_of_fold` holds decision values (N, K), each of a machine that did not see the image. NaN where there are
    none: for an unknown tag, and for every image if only one image is positive, or only one negative.
    """

    vectors: Doubles
    intercepts: Doubles
    out_of_fold: Doubles


def against_rest(
    head: Head, codes: Codes, weights: npt.NDArray[Any], class_weights: npt.NDArray[Any]
) -> tuple[Bools, Doubles]:
    """Return which images are positive for each class or tag, and their weights, both (N, K); 0 where unknown.

    `weights` of labels are shaped like the codes and hold those of the classes (K,). The weight of a class
    counts where the class is the positive one, as in `LinearSVC(class_weight=...)`, and negatives keep that of the
    image; of two classes both count, since they share one boundary.
    """
    positive = head.present(codes)
    if not head.multiclass:
        return positive, weights.astype(np.float64)
    rest = weights if head.size == 2 else weights / class_weights[codes]
    return positive, np.where(positive, weights[:, None], rest[:, None]).astype(np.float64)


def fit_machines(
    machine: LinearSVC | SVC, inputs: Doubles, positive: Bools, weights: Doubles, *, seed: int
) -> Machines:
    """Fit a copy of the machine for each column of `positive` (N, K), which must hold both values where it counts.

    `inputs` are features (N, F), or kernel values (N, N) for an `SVC(kernel="precomputed")`. scikit-learn multiplies
    the C of an image by its weight (N, K); images of weight 0 are left out.
    """
    tasks = [
        partial(_fit_one, machine, inputs, *question, seed=seed) for question in zip(positive.T, weights.T, strict=True)
    ]
    vectors, intercepts, out_of_fold = zip(*_side_by_side(tasks), strict=True)
    return Machines(np.stack(vectors), np.array(intercepts), np.stack(out_of_fold, axis=1))


def _side_by_side(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Return the results of tasks; several run on one thread each."""
    from sklearn.exceptions import ConvergenceWarning  # here and below: a second that only a fit need wait for

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # validation measures what an early stop costs
        if len(tasks) == 1:
            return [tasks[0]()]
        with one_thread(), ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda task: task(), tasks))


def _fit_one(
    machine: LinearSVC | SVC, inputs: Doubles, positive: Bools, weights: Doubles, *, seed: int
) -> tuple[Doubles, float, Doubles]:
    from sklearn.base import clone  # here: a second that a run without support vectors need not wait for
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.svm import SVC

    rows = np.flatnonzero(weights > 0)
    kernel = isinstance(machine, SVC)
    if len(rows) < len(inputs):
        inputs = inputs[np.ix_(rows, rows)] if kernel else inputs[rows]
    labels, counted = positive[rows], weights[rows]
    fitted = clone(machine).fit(inputs, labels, sample_weight=counted)
    out_of_fold = np.full(len(positive), np.nan)
    folds = min(FOLDS, int(labels.sum()), int((~labels).sum()))
    if folds > 1:
        split = StratifiedKFold(folds, shuffle=True, random_state=seed)
        fit_params = {"sample_weight": counted}
        out_of_fold[rows] = cross_val_predict(
            machine, inputs, labels, cv=split, method="decision_function", params=fit_params
        )
    if not kernel:
        return fitted.coef_[0], float(fitted.intercept_[0]), out_of_fold
    dual = np.zeros(len(positive))  # of every image, 0 of those that are no support vector
    dual[rows[fitted.support_]] = fitted.dual_coef_[0]
    return dual, float(fitted.intercept_[0]), out_of_fold
