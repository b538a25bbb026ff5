"""A few images that stand for all: of every part, and of as many classes as they can show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from assay.arrays import Ints
from assay.labels.samples import Samples

TURNS = 10  # images of a class before chance draws


def image_subset(samples: Samples, *, train: int, unlabelled: int, val: int, seed: int) -> Samples:
    """At most so many labelled and unlabelled training images, and labelled ones for validation, in their order.

    Classes take turns until there are some of each, for steps that need them; the rest are as lopsided as the data.
    """
    split = samples.table["split"].to_numpy()
    known = samples.labelled()
    turn = _turns(samples, seed)
    chosen = [
        _first_rows(np.flatnonzero(which), turn, count)
        for which, count in (
            ((split == "train") & known, train),
            ((split == "train") & ~known, unlabelled),
            ((split == "val") & known, val),
        )
    ]
    return samples.take(np.sort(np.concatenate(chosen)))


def _first_rows(rows: Ints, turn: Ints, count: int) -> Ints:
    return rows[np.argsort(turn[rows])[:count]]


def _turns(samples: Samples, seed: int) -> Ints:
    """When each image (N,) has its turn: the first of every class, the second, and so on up to `TURNS`, then any.

    An image stands for the rarest class that it shows, within its part.
    """
    shuffled = np.random.default_rng(seed).permutation(len(samples))
    parts = samples.table["split"].fill_null("").to_list()
    groups = [f"{part} {name}" for part, name in zip(parts, _rarest(samples).tolist(), strict=True)]
    rank = np.empty(len(samples), np.int64)
    seen: dict[str, int] = {}
    for row in shuffled.tolist():
        rank[row] = seen[groups[row]] = seen.get(groups[row], -1) + 1
    turn = np.empty(len(samples), np.int64)
    turn[shuffled[np.argsort(np.minimum(rank[shuffled], TURNS), kind="stable")]] = np.arange(len(samples))
    return turn


def _rarest(samples: Samples) -> npt.NDArray[np.str_]:
    """By image (N,), a name for the rarest class that it shows under any head."""
    best = np.full(len(samples), np.inf)
    names = np.full(len(samples), "-1", dtype="U24")
    for place, (head, codes) in enumerate(zip(samples.space, samples.codes(), strict=True)):
        counts = samples.counts(head)
        shows = codes[:, None] == np.arange(head.size) if head.kind == "multiclass" else codes == 1
        for position in range(head.size):
            rarer = shows[:, position] & (counts[position] < best)
            best[rarer] = counts[position]
            names[rarer] = f"{place} {position}"
    return names
