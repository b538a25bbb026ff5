"""Means of several predictions for the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypedDict

import numpy as np
from scipy.special import log_expit, log_softmax, logsumexp

from assay.arrays import Floats, Reals
from assay.labels.space import LabelSpace

MeanOf = Literal["probabilities", "logits"]
"""The quantity that is averaged."""


def mean_prediction(space: LabelSpace, logits: Sequence[Reals], *, of: MeanOf, weights: Reals | None = None) -> Floats:
    """Return the logits (N, W) of the mean of M predictions, each given as logits (N, W).

    `weights` sum to one over the predictions: (M,), or (M, N) for weights by image; by default they are equal. The
    logits of a mean of probabilities p are log p under a multi-class head, so that their softmax is p, and
    log p - log (1 - p) under a multi-label one. All is computed in logarithms, so that no probability is rounded to
    0 or 1.
    """
    stack = np.stack([np.asarray(one, dtype=np.float64) for one in logits])  # (M, N, W)
    parts = np.full(len(stack), 1 / len(stack)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = parts.reshape(len(stack), -1, 1)  # (M, 1 or N, 1)
    if of == "logits":
        return np.asarray((shares * stack).sum(axis=0), dtype=np.float32)
    mean = np.empty(stack.shape[1:], dtype=np.float32)
    for head, columns in space.each():
        of_head = stack[..., columns]
        if head.multiclass:
            mean[:, columns] = logsumexp(log_softmax(of_head, axis=2), axis=0, b=shares)
        else:
            present, absent = (logsumexp(log_expit(sign * of_head), axis=0, b=shares) for sign in (1, -1))
            mean[:, columns] = present - absent
    return mean


class MeanJson(TypedDict):
    """A weighted mean as JSON."""

    of: MeanOf
    weights: list[float]


@dataclass(frozen=True)
class MeanCombiner:
    """The weighted mean of the predictions of an ensemble's members."""

    of: MeanOf
    weights: tuple[float, ...]
    kind: ClassVar[str] = "average"

    def joined(self, space: LabelSpace, logits: Sequence[Reals]) -> Floats:
        """Return the logits (N, W) of the ensemble from those of each member."""
        return mean_prediction(space, logits, of=self.of, weights=np.array(self.weights))

    def to_json(self) -> MeanJson:
        return {"of": self.of, "weights": list(self.weights)}

    @staticmethod
    def from_json(described: MeanJson) -> MeanCombiner:
        """Read the output of `to_json`."""
        return MeanCombiner(described["of"], tuple(described["weights"]))
