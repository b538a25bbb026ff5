"""Several answers for the same images, joined into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.special import log_expit, log_softmax, logsumexp

from assay.arrays import Floats, Reals
from assay.labels.space import LabelSpace

MeanOf = Literal["probabilities", "logits"]
"""What a mean is taken of."""


def mean_prediction(space: LabelSpace, logits: Sequence[Reals], *, of: MeanOf, weights: Reals | None = None) -> Floats:
    """Return the logits (N, W) of a mean of several answers (N, W).

    `weights` sum to one over the answers: (M,), or (M, N) where those of each image are its own; equal ones
    where none are given. The logits of a mean of probabilities p are log p under a multi-class head, so that their
    softmax is p, and log p - log (1 - p) under a multi-label one. All is done in logarithms: no probability is
    rounded to 0 or 1.
    """
    answers = np.stack([np.asarray(own, dtype=np.float64) for own in logits])
    parts = np.full(len(answers), 1 / len(answers)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = parts.reshape(len(answers), -1, 1)  # (M, 1 or N, 1)
    if of == "logits":
        return np.asarray((shares * answers).sum(axis=0), dtype=np.float32)
    joined = np.empty(answers.shape[1:], dtype=np.float32)
    for head, columns in zip(space, space.slices, strict=True):
        own = answers[..., columns]
        if head.kind == "multiclass":
            joined[:, columns] = logsumexp(log_softmax(own, axis=2), axis=0, b=shares)
        else:
            present, absent = (logsumexp(log_expit(sign * own), axis=0, b=shares) for sign in (1, -1))
            joined[:, columns] = present - absent
    return joined


@dataclass(frozen=True)
class MeanCombiner:
    """An ensemble: the weighted mean of its members' answers."""

    of: MeanOf
    weights: tuple[float, ...]
    kind: ClassVar[str] = "average"

    def joined(self, space: LabelSpace, logits: Sequence[Reals]) -> Floats:
        """Return from the logits (N, W) of each member to those of the ensemble."""
        return mean_prediction(space, logits, of=self.of, weights=np.array(self.weights))

    def to_json(self) -> dict[str, Any]:
        return {"of": self.of, "weights": list(self.weights)}

    @staticmethod
    def from_json(described: dict[str, Any]) -> MeanCombiner:
        """Read what `to_json` gave."""
        return MeanCombiner(described["of"], tuple(described["weights"]))
