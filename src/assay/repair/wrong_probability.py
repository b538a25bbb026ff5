"""The order in which to look at labels that are probably wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from assay.arrays import Bools, Ints, Reals

PAGE = 48  # images that are looked at together


@dataclass(frozen=True, eq=False)
class SuspectGroup:
    """Labels of one given and one suggested value: rows, the most suspicious first, and how many are expected wrong."""

    given: int
    suggested: int
    rows: Ints
    expected: float


def suspect_groups(
    given: Ints, suggested: Ints, wrong: Reals, undecided: Bools, *, page: int = PAGE
) -> list[SuspectGroup]:
    """Return the undecided labels by given and suggested value, the group first whose first page finds most.

    given, suggested: (n,) values of cells; wrong: (n,) the probability that the given one is wrong, NaN where it is not
    known. A page of one group is accepted with few keys; a page of mixed suggestions is not.
    """
    rows = np.flatnonzero(undecided & np.isfinite(wrong) & (given >= 0))
    rows = rows[np.argsort(-wrong[rows], kind="stable")]
    pairs = np.stack([given[rows], suggested[rows]], axis=1)
    names, index = np.unique(pairs, axis=0, return_inverse=True)
    members = [rows[index.ravel() == number] for number in range(len(names))]
    groups = [
        SuspectGroup(int(pair[0]), int(pair[1]), of_pair, float(wrong[of_pair].sum()))
        for pair, of_pair in zip(names, members, strict=True)
    ]
    return sorted(groups, key=lambda group: -float(wrong[group.rows[:page]].sum()))
