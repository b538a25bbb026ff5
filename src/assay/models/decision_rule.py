"""From a network's raw logits to answers: what is subtracted, divided by, and where a tag begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.arrays import Floats, Reals
from assay.labels.space import LabelSpace


@dataclass(frozen=True, eq=False)
class DecisionRule:
    """How a model's raw logits are read; every array is (W,), all heads side by side.

    shift: subtracted from the logits, where class weights have moved the prior in training.
    temperature: what they are then divided by, one number a head (Guo et al. 2017).
    thresholds: the probability from which a tag of a multi-label head is given; not read for multi-class heads.
    """

    shift: Floats
    temperature: Floats
    thresholds: Floats

    @staticmethod
    def plain(space: LabelSpace) -> DecisionRule:
        """Return logits as they are, tags from one half up."""
        shift, temperature, thresholds = (np.full(space.width, value, np.float32) for value in (0.0, 1.0, 0.5))
        return DecisionRule(shift, temperature, thresholds)

    def logits(self, raw: Reals) -> Floats:
        """Return the logits (N, W) to take probabilities of."""
        return ((raw - self.shift) / self.temperature).astype(np.float32)

    def to_json(self, space: LabelSpace) -> dict[str, Any]:
        """Return by head, in the order of its classes; what only multi-label heads have is null elsewhere."""
        return {
            head.name: {
                "shift": self.shift[columns].tolist(),
                "temperature": float(self.temperature[columns.start]),
                "thresholds": self.thresholds[columns].tolist() if head.kind == "multilabel" else None,
            }
            for head, columns in zip(space, space.slices, strict=True)
        }

    @staticmethod
    def from_json(space: LabelSpace, described: dict[str, Any]) -> DecisionRule:
        """Read what `to_json` gave."""
        found = DecisionRule.plain(space)
        for head, columns in zip(space, space.slices, strict=True):
            own = described[head.name]
            found.shift[columns], found.temperature[columns] = own["shift"], own["temperature"]
            if own["thresholds"] is not None:
                found.thresholds[columns] = own["thresholds"]
        return found
