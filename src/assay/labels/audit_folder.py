"""An audit as training takes it: groups that stay on one side of a split, and images and labels to leave out.

`assay audit` writes the folder; a plan names it under `data.audit`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import BeforeValidator, Field

from assay.arrays import Bools
from assay.errors import DataError
from assay.files import whole
from assay.labels.edits import AUDIT_STEP, Edit, cell_values
from assay.labels.ledger import Ledger, covers, csv_bytes
from assay.labels.readers.table_files import read_rows, texts
from assay.labels.samples import Samples
from assay.labels.split import join_groups
from assay.messages import printable, quoted
from assay.settings import Settings

AUDIT, SAMPLES, GROUPS, EDITS = "audit.json", "samples.parquet", "groups.csv", "edits.csv"
COLUMNS = ("image", "group")

DropKind = Literal[
    "exact_duplicates",
    "near_duplicates",
    "conflicting_labels",
    "leaks",
    "dark",
    "blurred",
    "low_information",
    "suspects",
]
"""The kinds of findings that may be left out. Bright, grey, odd or outlying images may be sound: a person decides."""


class AuditSettings(Settings):
    """An audit of the images: copies go to one side of the split, and kinds of findings are left out where named."""

    folder: Path = Field(description="The folder that `assay audit` wrote.")
    groups: bool = Field(True, description="Whether copies of an image stay on one side of the split.")
    drop: tuple[DropKind, ...] = Field(
        (), description="Kinds of findings whose training images are left out, as edits of the ledger."
    )


AuditOption = Annotated[
    AuditSettings,
    BeforeValidator(
        lambda value: {"folder": value} if isinstance(value, str) else value,
        json_schema_input_type=str | AuditSettings,
    ),
]
"""The folder of an audit, or a mapping with `folder` in it."""


def audit_step(kind: str) -> str:
    """Return the `step` of the edits that findings of a kind propose."""
    return f"{AUDIT_STEP}/{kind}"


# What an audit writes.


def write_groups(path: Path, groups: Mapping[str, str]) -> None:
    """Write the group of each image that has one: columns `image` and `group`."""
    columns = {"image": list(groups), "group": list(groups.values())}
    with whole(path) as beside:
        pl.DataFrame(columns, schema=dict.fromkeys(COLUMNS, pl.String)).write_csv(beside)


def write_edits(path: Path, edits: Sequence[Edit]) -> None:
    """Write proposed edits in the columns of a ledger, undated."""
    with whole(path) as beside:
        beside.write_bytes(csv_bytes(edits))


# What training reads.


def with_audit(samples: Samples, settings: AuditSettings, folder: Path) -> Samples:
    """Return the samples with the groups of an audit, before they are split, and a note on what has changed since.

    Groups that share an image are one. Raises DataError where the folder holds no audit, or one of other images.
    """
    audited = _audited(folder)
    now = samples.table.select("id", "hash").join(audited, on="id", how="left", maintain_order="left")
    new, changed = now["audited"].is_null(), (now["hash"] != now["audited"]).fill_null(False)
    if new.all():
        raise DataError(
            f"{printable(folder)}: is the audit of other data: it has none of these {len(samples):,} images, such as "
            f"{samples.ids[0]!r}. Name the audit of this data, or repeat `assay audit`."
        )
    notes = [
        f"{int(rows.sum()):,} images {what} ({quoted(now.filter(rows)['id'], 3)}). Repeat `assay audit`."
        for what, rows in (("are not in the audit", new), ("have changed since the audit", changed))
        if rows.any()
    ]
    samples = replace(samples, notes=(*samples.notes, *notes))
    if not settings.groups:
        return samples
    groups = _groups(folder / GROUPS)
    missing = groups.filter(~pl.col("image").is_in(audited["id"].implode()))
    if len(missing):
        raise DataError(
            f"{printable(folder / GROUPS)}: {quoted(missing['image'], 3)} is no image of the audit. Mend the name, or "
            "remove the line."
        )
    return join_groups(samples, groups["image"].to_list(), groups["group"].to_list())


def audit_drops(samples: Samples, kinds: Collection[DropKind], folder: Path) -> tuple[list[Edit], list[str]]:
    """Return the edits that leave the findings of these kinds out of training, and a line on those that do not count.

    Images of validation and test stay, as do those that have changed since the audit and labels that are others now.
    `samples` are split and as read. Raises DataError where the folder holds no audit.
    """
    ledger = Ledger.read(_file(folder / EDITS))
    wanted = {audit_step(kind) for kind in kinds}
    proposed = {edit.cell: edit for edit in reversed(ledger.effective()) if edit.step in wanted}  # the first of a cell
    same = samples.table.select("id", "hash", "split")
    same = same.join(_audited(folder), on="id", how="inner").filter(pl.col("hash") == pl.col("audited"))
    part_of = dict(same.select("id", "split").iter_rows())
    tags = {head.name: head.cell_names for head in samples.space}
    known = {
        cell: edit for cell, edit in proposed.items() if edit.id in part_of and edit.tag in tags.get(edit.head, ())
    }
    edits, held, stale = [], set(), set()
    for cell, old in cell_values(samples, known).items():
        edit = known[cell]
        if part_of[edit.id] != "train":
            held.add(edit.id)
        elif old == edit.old and old is not None:
            edits.append(replace(edit, action="drop", new=None, origin=None))
        else:
            stale.add(edit.id)
    stale |= {edit.id for edit in proposed.values() if edit.id not in part_of}
    lines = [
        f"{len(names):,} images that the audit proposes to drop stay: {why} ({quoted(sorted(names), 3)})"
        for names, why in (
            (held, "they are in validation or test"),
            (stale, "they or their labels have changed since the audit"),
        )
        if names
    ]
    return sorted(edits, key=lambda edit: (edit.step, edit.cell[0])), lines


def sync_audit(ledger: Ledger, edits: Sequence[Edit]) -> Ledger:
    """Bring a run's ledger up to date with the drops of its plan: remove what is gone, append what is new.

    Edits that were undone stay undone.
    """
    wanted = {(edit.identity, edit.old) for edit in edits}

    def stays(edit: Edit) -> bool:
        of_audit = covers(AUDIT_STEP, edit.step) and edit.action != "undo"
        return not of_audit or (edit.identity, edit.old) in wanted

    kept = [entry for entry in ledger.entries if stays(entry.edit)]
    if len(kept) < len(ledger.entries):
        ledger = ledger.rewritten(kept)
    known = {entry.edit.identity for entry in kept}
    return ledger.append([edit for edit in edits if edit.identity not in known])


def _audited(folder: Path) -> pl.DataFrame:
    """Return the images of an audit: id, and `audited`, the hash of the content. Raises DataError."""
    _file(folder / AUDIT)
    table = Samples.read(_file(folder / SAMPLES)).table
    return table.select("id", audited="hash")


def _file(path: Path) -> Path:
    if not path.is_file():
        raise DataError(
            f"{printable(path.parent)}: is no audit (it has no {path.name}). Name the folder that `assay audit` wrote."
        )
    return path


def _groups(path: Path) -> pl.DataFrame:
    """Return the lines of groups.csv. Raises DataError that names the line for a blank cell."""
    rows = read_rows(_file(path))
    rows = texts(rows, [rows.column(name) for name in COLUMNS])
    blank: Bools = rows.frame.select(pl.any_horizontal(pl.col(COLUMNS).is_null())).to_series().to_numpy()
    if blank.any():
        raise DataError(
            f"{rows.at(int(np.flatnonzero(blank)[0]))}: `image` or `group` is blank. Fill it in, or remove the line."
        )
    return rows.frame.select(COLUMNS)
