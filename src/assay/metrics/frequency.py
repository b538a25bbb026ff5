"""Groups of the classes of a head by their training images (many, medium, few), to measure each group by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from assay.arrays import Ints

Rule = Literal["thirds", "100/20"]

NAMES = ("many", "medium", "few")
IMBALANCED = 1.5  # times as many images in a frequent class as in a rare one, in the mean of a third
FREQUENT, RARE = 100, 20  # more images than, fewer than (Liu et al. 2019; Kang et al. 2020, section 5.1)


@dataclass(frozen=True)
class Group:
    """Some classes of a head, by index, and the least and most training images that one of them has."""

    rule: Rule
    name: str
    classes: tuple[int, ...]
    least: int
    most: int

    def to_json(self, classes: Sequence[str]) -> dict[str, object]:
        return {
            "rule": self.rule,
            "name": self.name,
            "classes": [classes[index] for index in self.classes],
            "least": self.least,
            "most": self.most,
        }


def groups(counts: Ints) -> tuple[Group, ...]:
    """Return groups of classes by their training images (K,), for each rule that applies.

    Thirds by rank apply where there are three classes and those of the first third have at least 1.5 times as many
    images as those of the last: of balanced classes the ranks are chance. Ties go by the order of the classes. Groups
    of more than 100, 20 to 100 and fewer than 20 images apply where at least two are not empty.
    """
    ranked = np.argsort(-counts, kind="stable")
    thirds = np.array_split(ranked, 3) if len(counts) >= 3 and counts.any() else []
    if thirds and counts[thirds[0]].mean() < IMBALANCED * counts[thirds[-1]].mean():
        thirds = []
    frequent, rare = counts[ranked] > FREQUENT, counts[ranked] < RARE
    by_number = [ranked[frequent], ranked[~frequent & ~rare], ranked[rare]]
    rules: list[tuple[Rule, Sequence[Ints]]] = [("thirds", thirds)]
    if sum(len(classes) > 0 for classes in by_number) > 1:
        rules.append(("100/20", by_number))
    return tuple(
        Group(rule, name, tuple(classes.tolist()), int(counts[classes].min()), int(counts[classes].max()))
        for rule, parts in rules
        for name, classes in zip(NAMES, parts, strict=False)
        if len(classes)
    )
