"""Soft pseudo-labels: probabilities that training follows in place of a label, in a file of the step that gave it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from assay.files import whole
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.repair.pseudo_labels import Chosen

Array = npt.NDArray[np.float32]


def write_soft(path: Path, chosen: Chosen, samples: Samples) -> None:
    """Write the soft targets of the pseudo-labels kept, a row a picture of the samples that were asked about."""
    assert chosen.soft is not None
    ids = samples.ids
    table = pl.DataFrame({"id": [ids[row] for row in chosen.rows], "targets": chosen.soft[chosen.rows]})
    with whole(path) as beside:
        table.write_parquet(beside)


def soft_targets(places: Mapping[str, Path], samples: Samples) -> list[Array | None]:
    """Soft targets (N, K) of each head, NaN where there is none; None for a head without any.

    `places` are files of `write_soft` by head. A target counts only where the label is still the answer that it was
    written for: what was undone or corrected since is no longer a pseudo-label.
    """
    row_of = {name: row for row, name in enumerate(samples.ids)}
    found: list[Array | None] = []
    for head, codes in zip(samples.space, samples.codes(), strict=True):
        if head.name not in places:
            found.append(None)
            continue
        table = pl.read_parquet(places[head.name])
        table = table.filter(pl.col("id").is_in(samples.ids))
        targets = np.full((len(samples), head.size), np.nan, np.float32)
        given = np.asarray(table["targets"].to_numpy(), np.float32).reshape(-1, head.size)
        targets[[row_of[name] for name in table["id"]]] = given
        targets[~_stands(head, codes, targets)] = np.nan
        found.append(targets)
    return found


def _stands(head: Head, codes: Codes, targets: Array) -> npt.NDArray[np.bool_]:
    """Where the label is what the targets answer: (N,) exclusive, (N, K) independent."""
    if head.kind == "exclusive":
        stands: npt.NDArray[np.bool_] = np.isfinite(targets).all(axis=1) & (targets.argmax(axis=1) == codes)
        return stands
    stands = np.isfinite(targets) & ((targets >= 0.5) == (codes == 1)) & (codes >= 0)
    return stands
