"""From raw logits to predictions: prior shift, temperature and thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from assay.arrays import Floats, Reals
from assay.labels.space import LabelSpace


class HeadRule(TypedDict):
    """The decision rule of a head as JSON; thresholds are null for a multi-class head."""

    shift: list[float]
    temperature: float
    thresholds: list[float] | None


@dataclass(frozen=True, eq=False)
class DecisionRule:
    """How predictions follow from the raw logits of a model; every array is (W,), all heads side by side.

    shift: subtracted from the logits, where the class prior that training teaches is not the one to be assumed.
    temperature: divides the logits after that, one number a head (Guo et al. 2017).
    thresholds: the probability from which a tag of a multi-label head is given; not used for multi-class heads.
    """

    shift: Floats
    temperature: Floats
    thresholds: Floats

    @staticmethod
    def plain(space: LabelSpace) -> DecisionRule:
        """Return the rule that leaves logits as they are and gives tags from one half up."""
        shift, temperature, thresholds = (np.full(space.width, value, np.float32) for value in (0.0, 1.0, 0.5))
        return DecisionRule(shift, temperature, thresholds)

    def logits(self, raw: Reals) -> Floats:
        """Return the logits (N, W) that probabilities are taken of."""
        logits = raw - self.shift
        logits /= self.temperature
        return logits.astype(np.float32, copy=False)

    def to_json(self, space: LabelSpace) -> dict[str, HeadRule]:
        """Return the rule of each head, its arrays in the order of its classes."""
        return {
            head.name: {
                "shift": self.shift[columns].tolist(),
                "temperature": float(self.temperature[columns.start]),
                "thresholds": None if head.multiclass else self.thresholds[columns].tolist(),
            }
            for head, columns in space.each()
        }

    @staticmethod
    def from_json(space: LabelSpace, described: Mapping[str, HeadRule]) -> DecisionRule:
        """Read the output of `to_json`."""
        rule = DecisionRule.plain(space)
        for head, columns in space.each():
            of_head = described[head.name]
            rule.shift[columns], rule.temperature[columns] = of_head["shift"], of_head["temperature"]
            if of_head["thresholds"] is not None:
                rule.thresholds[columns] = of_head["thresholds"]
        return rule
