"""Soft targets: probabilities in place of a label, in a file of the step that gave them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from assay.arrays import Floats, Ints
from assay.files import whole
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head


def write_soft_targets(path: Path, head: Head, samples: Samples, rows: Ints, *, targets: Floats, given: Codes) -> None:
    """Write the targets of these rows, of (N, K) of the samples, with the labels (N,) or (N, K) that they stand for."""
    labels = head.columns(given[rows])
    table = pl.DataFrame({"id": samples.ids_of(rows), "targets": targets[rows], "labels": labels})
    with whole(path) as beside:
        table.write_parquet(beside)


def soft_targets(paths: Mapping[str, Path], samples: Samples) -> list[Floats | None]:
    """Return soft targets (N, K) of each head, NaN where there is none; None for a head without any.

    `paths` are files of `write_soft_targets` by head. A target counts only where the label still is the one it was
    written for: a label undone or corrected since is another one.
    """
    row_of = {image: row for row, image in enumerate(samples.ids)}
    by_head: list[Floats | None] = []
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        if head.name not in paths:
            by_head.append(None)
            continue
        table = pl.read_parquet(paths[head.name], hive_partitioning=False, glob=False)
        table = table.filter(pl.col("id").is_in(samples.ids))
        rows = [row_of[image] for image in table["id"]]
        targets, labels = np.full((len(samples), head.size), np.nan, np.float32), head.unknown(len(samples))
        targets[rows] = np.asarray(table["targets"].to_numpy(), np.float32).reshape(-1, head.size)
        labels[rows] = head.from_columns(table["labels"].to_numpy().astype(np.int64).reshape(-1, head.cells))
        targets[~head.columns((labels == codes) & (codes >= 0)).repeat(head.size // head.cells, axis=1)] = np.nan
        by_head.append(targets)
    return by_head
