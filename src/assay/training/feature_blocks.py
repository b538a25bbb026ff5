"""Standardised features, targets and weights of images, a block of rows at a time where they are many.

Features are arrays or tables on disk, of one view or of several, which follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from assay.arrays import Floats, Ints, RowTable

IN_MEMORY = 1 << 25  # numbers that are held at once, 134 MB
BLOCK = 1 << 22  # numbers of a block of more, 17 MB
WIDTHS = 6  # arrays as large as the logits, about, that are held beside the features of a block

Cells = Callable[[slice], tuple[Floats, Floats]]
"""Return targets and weights, both (n, W), of some rows."""


def row_slices(count: int, numbers: int) -> list[slice]:
    """Return slices of `count` rows of so many numbers: one of all of them, or of very many, blocks."""
    step = max(1, count) if count * numbers <= IN_MEMORY else max(1, BLOCK // numbers)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def in_blocks(table: RowTable) -> Iterator[tuple[slice, Floats]]:
    """Yield the rows (N, F) of a table in blocks, with the slice that they are."""
    for rows in row_slices(*table.shape):
        yield rows, table[np.arange(rows.start, rows.stop)]


def views_of(features: RowTable | Sequence[RowTable]) -> list[RowTable]:
    """Return the views (N, F) of features (V, N, F), or of a list of them; of features (N, F) these alone."""
    if isinstance(features, Sequence):
        return list(features)
    return list(features) if isinstance(features, np.ndarray) and features.ndim > 2 else [features]


def moments(features: Floats) -> tuple[Floats, Floats]:
    """Return means and standard deviations (F,), the latter never 0."""
    return features.mean(axis=0), features.std(axis=0) + 1e-6


@dataclass(frozen=True, eq=False)
class Stacked:
    """Views (N, F) of images, one after the other; as an array of their own where a slice of the rows is taken."""

    views: Sequence[RowTable]

    @property
    def shape(self) -> tuple[int, int]:
        count, width = self.views[0].shape
        return len(self.views) * count, width

    def __getitem__(self, rows: slice) -> Floats:
        count = self.views[0].shape[0]
        view, images = np.divmod(np.arange(*rows.indices(self.shape[0])), count)
        parts = [self.views[number][images[view == number]] for number in np.unique(view)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def moments(self) -> tuple[Floats, Floats]:
        """Return `moments` of all rows; of several blocks in double precision, around the means of the first."""
        blocks = row_slices(*self.shape)
        if len(blocks) == 1:
            return moments(self[blocks[0]])
        begin = self[blocks[0]].mean(axis=0)
        total, squares = (np.zeros(self.shape[1]) for _ in range(2))
        for rows in blocks:
            centred = self[rows]
            centred -= begin
            total += centred.sum(axis=0, dtype=np.float64)
            squares += np.square(centred, out=centred).sum(axis=0, dtype=np.float64)
        shift = total / self.shape[0]
        spread = np.sqrt(np.maximum(squares / self.shape[0] - shift**2, 0))
        return (begin + shift).astype(np.float32), spread.astype(np.float32) + np.float32(1e-6)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Standardised features (n, F), targets (n, W) and weights (n, fits, W) in blocks, each made whenever it is read.

    A single one is made once.
    """

    rows: Sequence[slice]
    features: Callable[[slice], Floats]
    cells: Cells

    @staticmethod
    def of(features: Stacked, moments: tuple[Floats, Floats], cells: Cells, *, width: int) -> Blocks:
        """Return blocks of features of these means and deviations; targets and weights are (n, width) each."""
        mean, scale = moments

        def standard(rows: slice) -> Floats:
            some = features[rows]
            some -= mean
            some /= scale
            return some

        rows = row_slices(features.shape[0], features.shape[1] + WIDTHS * width)
        if len(rows) > 1:
            return Blocks(rows, standard, cells)
        return Blocks.whole(standard(rows[0]), *cells(rows[0]))

    @staticmethod
    def whole(standard: Floats, targets: Floats, weights: Floats) -> Blocks:
        """Return what is held already as one block."""
        return Blocks(
            [slice(0, len(standard))], lambda rows: standard[rows], lambda rows: (targets[rows], weights[rows])
        )

    def __iter__(self) -> Iterator[tuple[Floats, Floats, Floats]]:
        return ((self.features(rows), *self.cells(rows)) for rows in self.rows)

    def one_fit(self, columns: Ints) -> Blocks:
        """Return the same with some columns of the targets and weights (n, W), the latter as those of one fit."""

        def cells(rows: slice) -> tuple[Floats, Floats]:
            targets, weights = self.cells(rows)
            return targets[:, columns], weights[:, columns][:, None]

        if len(self.rows) > 1:
            return Blocks(self.rows, self.features, cells)
        return Blocks.whole(self.features(self.rows[0]), *cells(self.rows[0]))
