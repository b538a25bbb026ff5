"""What was found wrong with labels and what was done about it: noise, edits, pseudo-labels round by round."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from assay.labels.edits import Edit
from assay.labels.space import Head
from assay.messages import plain
from assay.report.sections.gallery import Gallery
from assay.run.contents import RunContents

SUSPECTS = 36  # shown of each step
EDITS = 48
SIDE = 30  # classes of a matrix
COMMONEST = 6  # confusions named
CLASSES = 40  # of a round


def noise(run: RunContents, gallery: Gallery) -> list[dict[str, Any]]:
    """Of every search for wrong labels: what it estimates, and the most suspicious labels."""
    found = []
    for step in run.steps:
        table = _suspects(run, step.name)
        if table is None:
            continue
        heads = step.details.get("heads", {})
        found.append(
            {
                "name": plain(step.name),
                "count": table.height,
                "notes": [plain(note) for note in step.details.get("notes", [])],
                "heads": [_noise(run.samples.space[name], told) for name, told in heads.items()],
                "suspects": [
                    _suspect(row, number) for row, number in zip(*_imaged(table.head(SUSPECTS), gallery), strict=True)
                ],
            }
        )
    return found


def suspicion(run: RunContents) -> dict[str, float]:
    """How suspicious the labels of images are, 0 to 1, by the newest search; only of those suspected."""
    for step in reversed(run.steps):
        table = _suspects(run, step.name)
        if table is not None:
            lowest = table.group_by("image").agg(pl.col("quality").min())
            return {id_: 1 - quality for id_, quality in lowest.iter_rows()}
    return {}


def edits(run: RunContents, gallery: Gallery) -> dict[str, Any]:
    """The ledger: counts by step and action, and some of each with its image."""
    lines = [entry.edit for entry in run.ledger.entries]
    undone = {edit.identity for edit in run.ledger.undone()}
    all_edits = [edit for edit in lines if edit.action != "undo"]
    groups: dict[tuple[str, str], list[Edit]] = {}
    for edit in all_edits:
        groups.setdefault((edit.step, edit.action), []).append(edit)
    there = set(run.as_read.ids)
    return {
        "count": len(all_edits),
        "undone": len(undone),
        "groups": [
            {
                "step": plain(step),
                "action": action,
                "count": len(own),
                "undone": sum(edit.identity in undone for edit in own),
                "shown": [
                    _edit(edit, gallery, there, edit.identity in undone)
                    for edit in _first(own, EDITS // min(len(groups), 4))
                ],
            }
            for (step, action), own in groups.items()
        ],
    }


def pseudo_labels(run: RunContents) -> list[dict[str, Any]]:
    """Of every round and head: how many of the unknown labels were given, by class, and what changed."""
    return [
        {"name": plain(step.name), "heads": [_given(name, told) for name, told in step.details.items()]}
        for step in run.steps
        if step.kind == "pseudo_label" and step.done
    ]


def _given(head: str, told: dict[str, Any]) -> dict[str, Any]:
    counted = sorted(told["kept by class"].items(), key=lambda row: -row[1])
    return {
        "name": plain(head),
        "kept": told["kept"],
        "unknown": told["unknown"],
        "confidence": told["mean confidence"],
        "changed": told["changed"],
        "notes": [plain(note) for note in told["notes"]],
        "most": max([1, *told["kept by class"].values()]),
        "classes": [(plain(name), count) for name, count in counted if count][:CLASSES],
    }


def _suspects(run: RunContents, step: str) -> pl.DataFrame | None:
    path = run.paths.step(step).suspects
    if not path.exists():
        return None
    texts = dict.fromkeys(("image", "head", "class", "given", "suggested", "done"), pl.String)
    return pl.read_csv(path, schema_overrides=texts | {"quality": pl.Float64, "confidence": pl.Float64})


def _noise(head: Head, told: dict[str, Any]) -> dict[str, Any]:
    """The estimate for one head: rates, and matrices where classes exclude one another and are not too many."""
    counts = np.array(told["counts"])
    matrices = head.kind == "multiclass" and head.size <= SIDE
    return {
        "name": plain(head.name),
        "kind": head.kind,
        "n": told["n"],
        "suspects": told["suspects"],
        "rate": told["noise_rate"],
        "agreement": told.get("agreement"),
        "unjudged": [plain(name) for name in told["unjudged"]],
        "rates": [(plain(name), rate) for name, rate in sorted(told["noise_rates"].items(), key=lambda rate: -rate[1])],
        "classes": [plain(name) for name in head.classes] if matrices else [],
        "joint": counts.tolist() if matrices else [],
        "noise_matrix": told["noise_matrix"] if matrices else [],
        "commonest": _commonest(head, counts, told["n"]) if head.kind == "multiclass" else [],
    }


def _commonest(head: Head, counts: Any, n: int) -> list[dict[str, Any]]:
    wrong = counts - np.diag(np.diagonal(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:COMMONEST]
    return [
        {
            "given": plain(head.classes[row]),
            "true": plain(head.classes[column]),
            "count": int(wrong[row, column]),
            "share": wrong[row, column] / n,
        }
        for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[row, column]
    ]


def _imaged(table: pl.DataFrame, gallery: Gallery) -> tuple[list[dict[str, Any]], list[int]]:
    return table.to_dicts(), gallery.add(table["image"].to_list(), close=True)


def _suspect(row: dict[str, Any], number: int) -> dict[str, Any]:
    tag = plain(row["class"] or "")
    given, suggested = (_labelled(tag, row[side]) for side in ("given", "suggested"))
    return {
        "image": number,
        "given": given,
        "suggested": suggested,
        "quality": row["quality"],
        "done": plain(row["done"] or ""),
    }


def _edit(edit: Edit, gallery: Gallery, there: set[str], undone: bool) -> dict[str, Any]:
    tag = plain(edit.tag or "") if edit.action != "add" else ""
    return {
        "image": gallery.add([edit.id])[0] if edit.id in there else None,
        "name": plain(edit.id),
        "head": plain(edit.head),
        "old": _labelled(tag, edit.old),
        "new": _labelled(tag, edit.new) if edit.action != "drop" else "no label",
        "score": edit.score,
        "reason": plain(edit.reason),
        "undone": undone,
    }


def _labelled(tag: str, value: str | None) -> str:
    """A label in words; of a tag whether it is there."""
    if value is None:
        return "unknown"
    return plain(value) if not tag else tag if value == "1" else f"no {tag}" if value == "0" else plain(value)


def _first(own: list[Edit], most: int) -> list[Edit]:
    """Those to show: the surest first, where they have a score."""
    return sorted(own, key=lambda edit: -(edit.score or 0.0))[:most]
