"""Linear heads of several folds, fitted side by side on soft targets and from where they stood: for labels that change.

`fit_linear` fits hard labels to the end and searches strengths. Here a fit is to take a fraction of a second, again
and again: features are reduced to their principal components once, all folds share each product of matrices, and a fit
begins at the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy  # its modules are imported when they are first used

from assay.arrays import Doubles, Floats, Ints
from assay.labels.space import LabelSpace
from assay.training.feature_blocks import moments
from assay.training.linear import loss_and_slope

BLOCK = 20_000  # rows whose features are standardised at a time


@dataclass(frozen=True, eq=False)
class Components:
    """Whitened principal components of standardised features.

    vectors: (N, D + 1), the last column 1; variances: (D,), those of the components before whitening.
    A penalty on coefficients of the features is one of 1 / variance on those of the whitened components, for which few
    iterations of L-BFGS suffice.
    """

    vectors: Floats
    variances: Floats

    @classmethod
    def of(cls, features: Floats, count: int) -> Self:
        """Return the first `count` components of features (N, F), of fewer where there are no more."""
        mean, scale = moments(features)
        blocks = [slice(start, start + BLOCK) for start in range(0, len(features), BLOCK)]
        square = np.zeros((features.shape[1],) * 2)
        for block in blocks:
            standard = (features[block] - mean) / scale
            square += standard.T @ standard
        variances, directions = np.linalg.eigh(square / max(1, len(features)))
        kept = np.flatnonzero(variances > 1e-6 * variances[-1])[::-1][:count]
        projection = (directions[:, kept] / np.sqrt(variances[kept]) / scale[:, None]).astype(np.float32)
        vectors = np.ones((len(features), len(kept) + 1), np.float32)
        for block in blocks:
            vectors[block, :-1] = (features[block] - mean) @ projection
        return cls(vectors, variances[kept].astype(np.float32))


def fit_folds(
    space: LabelSpace,
    components: Components,
    targets: Floats,
    weights: Floats,
    fold: Ints,
    *,
    penalty: float,
    start: Floats | None = None,
    iterations: int = 10,
) -> Floats:
    """Return coefficients (D + 1, folds, W): those of a fold by the images of all others.

    targets: (N, W), soft: those of a multi-class head sum to 1; weights: (N, W), 0 where unknown. Images of fold -1
    teach none. The penalty is that of the summed loss on half the squared coefficients of the features: 1 / C of
    scikit-learn.
    """
    rows = np.flatnonzero((weights > 0).any(axis=1) & (fold >= 0))
    count, depth = int(fold.max(initial=0)) + 1, components.vectors.shape[1]
    if not len(rows):  # before the first label
        return np.zeros((depth, count, space.width), np.float32) if start is None else start
    vectors, wanted = components.vectors[rows], targets[rows, None, :]
    parts = weights[rows, None, :] * (fold[rows, None] != np.arange(count))[:, :, None].astype(np.float32)
    pull = np.append(penalty / components.variances, 1e-3).astype(np.float32)[:, None, None]
    shape, scale = (depth, count, space.width), 1 / max(1, len(rows))

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        now = flat.reshape(shape).astype(np.float32)
        logits = (vectors @ now.reshape(depth, -1)).reshape(len(rows), count, space.width)
        value, residual = loss_and_slope(space, logits, wanted, parts)
        slope = (vectors.T @ residual.reshape(len(rows), -1)).reshape(shape) + pull * now
        value += 0.5 * float((pull * now * now).sum(dtype=np.float64))
        return value * scale, slope.ravel().astype(np.float64) * scale

    begin = np.zeros(shape) if start is None else start.astype(np.float64)
    options = {"maxiter": iterations, "maxcor": 6, "ftol": 1e-7}
    best = scipy.optimize.minimize(loss, begin.ravel(), jac=True, method="L-BFGS-B", options=options).x
    return np.asarray(best.reshape(shape), np.float32)


def fold_logits(components: Components, coefficients: Floats, fold: Ints) -> Floats:
    """Return logits (N, W), of each image by the coefficients of its fold; of fold -1 the mean over folds."""
    logits = components.vectors @ coefficients.mean(axis=1)
    for number in range(coefficients.shape[1]):
        rows = np.flatnonzero(fold == number)
        logits[rows] = components.vectors[rows] @ coefficients[:, number]
    return np.asarray(logits)
