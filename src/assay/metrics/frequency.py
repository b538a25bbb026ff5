"""Many, medium, few: the classes of a head by how often they occur in training, so that metrics are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from assay.arrays import Bools, Ints

Rule = Literal["thirds", "100/20"]

NAMES = ("many", "medium", "few")
MANY, FEW = 100, 20
"""More images than the one, and fewer than the other (Liu et al. 2019; Kang et al. 2020, section 5.1)."""


@dataclass(frozen=True)
class Group:
    """Some classes of a head, by their places, and the least and most training images that one of them has."""

    rule: Rule
    name: str
    classes: tuple[int, ...]
    least: int
    most: int

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "name": self.name,
            "classes": [classes[place] for place in self.classes],
            "least": self.least,
            "most": self.most,
        }


def groups(counts: Ints) -> tuple[Group, ...]:
    """Groups of classes by their training images (K,), each rule where it applies.

    Thirds by rank where there are three classes and not all are equally frequent; classes of one count go by their
    order. By more than 100, 20 to 100 and fewer than 20 images where that parts them. An empty group is left out.
    """
    ranked = np.argsort(-counts, kind="stable")
    thirds = np.array_split(ranked, 3) if len(counts) >= 3 and counts.min() < counts.max() else []
    by_number = [ranked[counts[ranked] > MANY], ranked[_between(counts[ranked])], ranked[counts[ranked] < FEW]]
    parted = by_number if sum(len(classes) > 0 for classes in by_number) > 1 else []
    found: list[tuple[Rule, Sequence[Ints]]] = [("thirds", thirds), ("100/20", parted)]
    return tuple(
        Group(rule, name, tuple(classes.tolist()), int(counts[classes].min()), int(counts[classes].max()))
        for rule, parts in found
        for name, classes in zip(NAMES, parts, strict=False)
        if len(classes)
    )


def _between(counts: Ints) -> Bools:
    return (counts >= FEW) & (counts <= MANY)
