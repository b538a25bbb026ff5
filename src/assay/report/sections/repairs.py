"""Label noise and repairs: suspect labels, edits, pseudo-labels round by round."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import polars as pl

from assay.files import StepName
from assay.labels.edits import Cell, Edit, persons_cells
from assay.labels.space import Head
from assay.metrics.intervals import wilson
from assay.report.gallery import Gallery
from assay.run.conclusions import agreed_cells, read_suspects
from assay.run.contents import RunContents

SUSPECTS = 240  # of each step; the table on disk has them all
FIRST_SUSPECTS = 36  # the rest is folded
EDITS = 48
SIDE = 30  # classes of a matrix
COMMONEST = 6  # confusions named
CLASSES = 40  # of a round


def noise(run: RunContents, gallery: Gallery) -> list[dict[str, object]]:
    """Return of every search for wrong labels its estimates, and the most suspicious labels."""
    searches, settled, agreed = [], persons_cells(run.ledger.effective()), agreed_cells(run.validation)
    for step in run.steps:
        table = _suspects(run, step.name)
        if table is None or step.done is None:  # a table that is being written again belongs to no estimate
            continue
        first = table.head(SUSPECTS)
        numbers = gallery.add(first["image"].to_list(), large=True)
        searches.append(
            {
                "name": step.name,
                "count": table.height,
                "agreed": sum(cell in agreed for cell in table.select("image", "head", "class").iter_rows()),
                "judged": sum(
                    estimate["n"]
                    for part in ("heads", "validation")
                    for estimate in step.details.get(part, {}).values()
                ),
                "notes": step.details.get("notes", []),
                "heads": [
                    _noise(run.samples.space[name], estimate)
                    for name, estimate in step.details.get("heads", {}).items()
                ],
                "suspects": [
                    _suspect(row, number, settled, agreed)
                    for row, number in zip(first.to_dicts(), numbers, strict=True)
                ],
            }
        )
    return searches


def newest_suspects(run: RunContents) -> tuple[StepName, pl.DataFrame] | None:
    """Return the newest search for wrong labels, and its suspects that no person has settled since."""
    settled = persons_cells(run.ledger.effective())
    for step in reversed(run.steps):
        table = _suspects(run, step.name)
        if table is not None and step.done is not None:
            waiting = [cell not in settled for cell in table.select("image", "head", "class").iter_rows()]
            return step.name, table.filter(pl.Series(waiting, dtype=pl.Boolean))
    return None


def suspicion(run: RunContents) -> dict[str, float]:
    """Return how probably the labels of images are wrong, by the newest search; only of those suspected."""
    newest = newest_suspects(run)
    if newest is None:
        return {}
    table = newest[1]
    wrong = pl.col("wrong") if "wrong" in table.columns else 1 - pl.col("quality")  # of an earlier version
    return dict(table.group_by("image").agg(wrong.max()).iter_rows())


def edits(run: RunContents, gallery: Gallery) -> dict[str, object]:
    """Return the ledger: counts by step and action, and some of each with its image."""
    lines = [entry.edit for entry in run.ledger.entries]
    undone = {edit.identity for edit in run.ledger.undone()}
    all_edits = [edit for edit in lines if edit.action != "undo"]
    groups: dict[tuple[str, str], list[Edit]] = {}
    for edit in all_edits:
        groups.setdefault((edit.step, edit.action), []).append(edit)
    ids = set(run.as_read.with_ids({edit.id for edit in all_edits}).ids)
    most = EDITS // min(len(groups) or 1, 4)
    return {
        "count": len(all_edits),
        "undone": len(undone),
        "groups": [
            {
                "step": step,
                "action": action,
                "count": len(group),
                "undone": sum(edit.identity in undone for edit in group),
                "edits": [  # the surest first, where they have a score
                    _edit(edit, gallery, ids, undone=edit.identity in undone)
                    for edit in sorted(group, key=lambda edit: -(edit.score or 0.0))[:most]
                ],
            }
            for (step, action), group in groups.items()
        ],
    }


def pseudo_labels(run: RunContents) -> list[dict[str, object]]:
    """Return of every round and head how many of the unknown labels were given, by class, and what changed."""
    return [
        {"name": step.name, "heads": [_pseudo_labels(name, details) for name, details in step.details.items()]}
        for step in run.steps
        if step.kind == "pseudo_label" and step.done
    ]


def _pseudo_labels(head: str, details: dict[str, Any]) -> dict[str, Any]:
    ranked = sorted(details["kept by class"].items(), key=lambda row: -row[1])
    most = max([1, *details["kept by class"].values()])
    return {**details, "name": head, "most": most, "classes": [one for one in ranked if one[1]][:CLASSES]}


def _suspects(run: RunContents, step: str) -> pl.DataFrame | None:
    path = run.paths.step(step).suspects
    return read_suspects(path) if path.exists() else None


def _noise(head: Head, estimate: dict[str, Any]) -> dict[str, Any]:
    """Return the estimate for one head: rates, and matrices of a multi-class head of not too many classes."""
    counts = np.array(estimate["counts"])
    matrices = head.multiclass and head.size <= SIDE
    n, rate = estimate["n"], estimate["noise_rate"]
    return {
        **estimate,
        "name": head.name,
        "limits": None if rate is None else wilson(rate * n, n),
        "rates": sorted(estimate["noise_rates"].items(), key=lambda rate: -rate[1]),
        "classes": head.classes if matrices else (),
        "commonest": _commonest(head, counts) if head.multiclass else [],
    }


def _commonest(head: Head, counts: Any) -> list[tuple[str, str, int]]:
    """Return the given class, the true one and the number of the commonest confusions."""
    wrong = counts - np.diag(np.diagonal(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:COMMONEST]
    return [
        (head.classes[row], head.classes[column], int(wrong[row, column]))
        for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[row, column]
    ]


def _suspect(row: dict[str, Any], number: int, settled: Collection[Cell], agreed: Collection[Cell]) -> dict[str, Any]:
    cell = (row["image"], row["head"], row["class"])
    return {
        "wrong": None,  # of an earlier version
        **row,
        "image": number,
        "held": row.get("split") == "val",
        "given": _label(row["class"], row["given"]),
        "suggested": _label(row["class"], row["suggested"]),
        "done": "settled" if cell in settled else "the model agrees" if cell in agreed else row["done"],
    }


def _edit(edit: Edit, gallery: Gallery, ids: set[str], *, undone: bool) -> dict[str, Any]:
    tag = edit.tag if edit.action != "add" else None
    return {
        "edit": edit,
        "image": gallery.add([edit.id])[0] if edit.id in ids else None,
        "old": _label(tag, edit.old),
        "new": _label(tag, edit.new) if edit.action != "drop" else "no label",
        "undone": undone,
    }


def _label(tag: str | None, value: str | None) -> str:
    """Return a label as text; of a tag whether an image has it."""
    if value is None:
        return "unknown"
    return value if not tag else {"1": tag, "0": f"no {tag}"}.get(value, value)
