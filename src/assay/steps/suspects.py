"""The list of suspect labels that a step leaves, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from assay.files import whole
from assay.labels.edits import Edit
from assay.labels.samples import Samples
from assay.progress import Watch
from assay.repair.confident_learning import HeadSuspects
from assay.repair.suspect_edits import actions_done

TOLD = 3  # confusions named in a line
COLUMNS = ("image", "head", "class", "given", "suggested", "quality", "confidence", "done")


@dataclass(frozen=True)
class Found:
    """What was found under one head, and what is done about it.

    `table` are the suspects that `max_share` and a person's word leave, `agreement` is the share of the judged
    labels that the judge would have given as well.
    """

    suspects: HeadSuspects
    table: pl.DataFrame
    edits: Sequence[Edit]
    agreement: float | None


def write_suspects(path: Path, found: Sequence[Found], samples: Samples) -> None:
    """Write the suspects of all heads as CSV, the most suspicious first.

    `image`, `head` and `class` (of tags) name a label as a person's corrections do; `quality` is the probability of
    the given label, `confidence` that of the suggested one, `done` what was done.
    """
    ids = samples.ids
    tables = [
        pl.DataFrame(
            {
                "image": [ids[row] for row in one.table["row"].to_list()],
                "head": [one.suspects.head.name] * one.table.height,
                "class": one.table["tag"],
                **{name: one.table[name] for name in ("given", "suggested", "quality", "confidence")},
                "done": actions_done(one.table, one.suspects.head, ids, one.edits),
            },
            schema_overrides=dict.fromkeys(("image", "head", "class", "done"), pl.String),
        )
        for one in found
    ]
    empty = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))
    table = pl.concat(tables).sort("quality", maintain_order=True) if tables else empty
    with whole(path) as beside:
        table.write_csv(beside, float_precision=4)


def details_of(found: Sequence[Found], notes: Sequence[str]) -> dict[str, Any]:
    """What done.json keeps: by head the counts, the rates of noise, the confident joint and the noise matrix."""
    heads = {
        one.suspects.head.name: {
            "n": one.suspects.n,
            "suspects": one.table.height,
            "edits": len(one.edits),
            "agreement": one.agreement,
            "noise_rate": one.suspects.noise_rate,
            "noise_rates": one.suspects.noise_rates,
            "counts": one.suspects.counts.tolist(),
            "joint": np.round(one.suspects.joint, 6).tolist(),
            "noise_matrix": np.round(one.suspects.noise_matrix, 6).tolist(),
            "unjudged": list(one.suspects.unjudged),
        }
        for one in found
    }
    return {"heads": heads, "notes": list(notes)}


def tell(found: Found, watch: Watch) -> None:
    """Say in a few lines what was found under a head."""
    suspects, name = found.suspects, found.suspects.head.name
    rate = suspects.noise_rate
    if rate is None:
        watch.line(f"  {name}: no label could be judged")
        return
    changed = f", {len(found.edits):,} edits" if found.edits else ""
    agreement = "" if found.agreement is None else f"; the judge agrees with {found.agreement:.1%}"
    watch.line(
        f"  {name}: {found.table.height:,} of {suspects.n:,} labels are suspect{changed}; estimated to be wrong: "
        f"{rate:.1%}{agreement}"
    )
    worst = _worst(suspects)
    if worst:
        watch.line(f"    mostly {', '.join(worst)}")
    if suspects.unjudged:
        few = ", ".join(suspects.unjudged)
        watch.line(f"    not judged, for too few labels or answers that are all alike: {few}")


def _worst(suspects: HeadSuspects) -> list[str]:
    """The commonest confusions, with their share of the labels judged."""
    head, counts = suspects.head, suspects.counts
    if head.kind == "exclusive":
        wrong = counts - np.diag(np.diagonal(counts))
        told = [f"{given} for {true}" for given in head.classes for true in head.classes]
    else:
        wrong = np.stack([counts[:, 0, 1], counts[:, 1, 0]], axis=1)
        told = [f"{tag} {how}" for tag in head.classes for how in ("missing", "too much")]
    shares = wrong.ravel() / suspects.n
    order = np.argsort(-shares, kind="stable")[:TOLD]
    return [f"{told[place]} ({shares[place]:.1%})" for place in order.tolist() if shares[place] > 0]
