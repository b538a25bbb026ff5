"""The files of an audit that training takes: groups that stay on one side of a split, and proposed edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from assay.files import whole
from assay.labels.edits import Edit
from assay.labels.ledger import csv_bytes

SAMPLES, GROUPS, EDITS = "samples.parquet", "groups.csv", "edits.csv"
AUDIT_STEP = "audit"
"""The `step` of edits that an audit proposes; those of a kind lie within it: `audit/dark`."""


def audit_step(kind: str) -> str:
    """Return the `step` of the edits that findings of a kind propose."""
    return f"{AUDIT_STEP}/{kind}"


def write_groups(path: Path, groups: Mapping[str, str]) -> None:
    """Write the group of each image that has one: columns `image` and `group`."""
    table = pl.DataFrame(
        {"image": list(groups), "group": list(groups.values())}, schema=dict.fromkeys(COLUMNS, pl.String)
    )
    with whole(path) as beside:
        table.write_csv(beside)


COLUMNS = ("image", "group")


def write_edits(path: Path, edits: Sequence[Edit]) -> None:
    """Write proposed edits in the columns of a ledger, undated."""
    with whole(path) as beside:
        beside.write_bytes(csv_bytes(edits))
