"""Which pictures are augmented by the settings of a class, and how much oftener they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from assay.balance.names import class_named
from assay.labels.space import Codes, LabelSpace
from assay.pixels.augment import Augment, Chosen


def chosen_by(names: Iterable[str], space: LabelSpace, codes: Sequence[Codes]) -> Chosen:
    """The place (N,) of the first of these classes that each picture is known to show; -1 where it shows none.

    `names` as in `per_class` of a plan. Raises PlanError, see `class_named`.
    """
    chosen = np.full(len(codes[0]), -1, np.int64)
    for number, name in enumerate(names):
        place, own = class_named(name, space, "augment, per_class")
        shows = codes[place] == own if space.heads[place].kind == "exclusive" else codes[place][:, own] == 1
        chosen[shows & (chosen < 0)] = number
    return chosen


def more_of(augment: Augment, chosen: Chosen) -> npt.NDArray[np.float64]:
    """How many times as often as else each picture (N,) is to be shown."""
    factors = np.array([*(own.more for own in augment.per_class.values()), 1.0])  # the last one for -1
    return factors[chosen]
