"""Where the answers are right and wrong: by class, who is taken for whom, the wrongest and the least certain."""

from __future__ import annotations

from typing import Any

import numpy as np

from assay.arrays import Ints
from assay.labels.space import Head
from assay.messages import plain
from assay.metrics.intervals import wilson
from assay.report.sections.errors import OUTCOMES, JudgedImage, cells, least_certain, worst_errors
from assay.report.sections.gallery import Gallery
from assay.run.contents import LabelledPredictions, RunContents

ROWS = 200  # classes of a table
SIDE = 40  # classes of a matrix
IN_CELL = 36  # images of a cell
LOOKED_AT = 24  # wrongest and least certain images of a head
ALL_CELLS = 9000  # images of all cells of a page; no more are added then


def results(run: RunContents, gallery: Gallery) -> list[dict[str, Any]]:
    """Of every head with validated answers: its table, its matrix, its images."""
    if run.validation is None or run.scores is None:
        return []
    heads = []
    for number, head in enumerate(run.samples.space):
        score = run.scores["heads"].get(head.name)
        if not score or not score["n"]:
            continue
        heads.append(
            {
                "id": f"h{number}",
                "name": plain(head.name),
                "kind": head.kind,
                "size": head.size,
                "n": score["n"],
                "metrics": score["metrics"],
                **_by_class(score["per_class"]),
                "frequency": [row for row in score["by_frequency"] if row["rule"] == "thirds" and row["metrics"]],
                "wrongest": _looked_at(worst_errors(run.validation, head, LOOKED_AT), gallery),
                "least_certain": _looked_at(least_certain(run.validation, head, LOOKED_AT), gallery),
            }
        )
    for found in heads:
        head = run.samples.space.heads[int(found["id"][1:])]
        found["matrix"] = _matrix(run.validation, head, gallery)
    return heads


def _by_class(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of the table, of many classes the worst, and how many are left out."""
    kept = rows if len(rows) <= ROWS else sorted(rows, key=lambda row: (row["support"] == 0, row["f1"]))[:ROWS]
    classes = [
        {
            **row,
            "class": plain(row["class"]),
            "interval": wilson(round(row["recall"] * row["support"]), row["support"]) if row["support"] else None,
        }
        for row in kept
    ]
    return {"classes": classes, "not_shown": len(rows) - len(kept)}


def _matrix(judged: LabelledPredictions, head: Head, gallery: Gallery) -> dict[str, Any]:
    """Rows of cells: count, share of the row, and whether it is right; the images of each cell by "row,column"."""
    found = cells(judged, head)
    ids = judged.samples.ids
    columns = head.size if head.kind == "multiclass" else len(OUTCOMES)
    counts = np.zeros((head.size, columns), np.int64)
    for (row, column), images in found.items():
        counts[row, column] = len(images)
    shown = _most_mistaken(counts, head)
    across = shown if head.kind == "multiclass" else list(range(columns))
    shown_in: dict[str, list[int]] = {}
    for row in shown:
        for column in across:
            own = found.get((row, column))
            if own is not None:
                shown_in[f"{row},{column}"] = gallery.add(
                    id_ for id_ in (ids[place] for place in own[:IN_CELL].tolist()) if _room(gallery, id_)
                )
    totals = counts.sum(axis=1)
    return {
        "rows": [
            {
                "class": plain(head.classes[row]),
                "number": row,
                "total": int(totals[row]),
                "cells": [_cell(counts, head, row, column, int(totals[row])) for column in across],
            }
            for row in shown
        ],
        "columns": [
            plain(head.classes[column]) if head.kind == "multiclass" else OUTCOMES[column] for column in across
        ],
        "hidden": head.size - len(shown),
        "images": shown_in,
    }


def _cell(counts: Ints, head: Head, row: int, column: int, total: int) -> dict[str, Any]:
    right = row == column if head.kind == "multiclass" else column in (0, 3)
    count = int(counts[row, column])
    return {"column": column, "count": count, "share": count / total if total else 0.0, "right": right}


def _most_mistaken(counts: Ints, head: Head) -> list[int]:
    """All classes, or those in the most mistakes; in their own order."""
    if head.size <= SIDE:
        return list(range(head.size))
    wrong = (
        counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
        if head.kind == "multiclass"
        else counts[:, 1:3].sum(axis=1)
    )
    return sorted(np.argsort(-wrong, kind="stable")[:SIDE].tolist())


def _looked_at(answers: list[JudgedImage], gallery: Gallery) -> list[dict[str, Any]]:
    numbers = gallery.add((answer.id for answer in answers), close=True)
    return [
        {
            "image": number,
            "known": answer.known,
            "said": answer.said,
            "probability": answer.probability,
            "own": answer.own,
        }
        for number, answer in zip(numbers, answers, strict=True)
    ]


def _room(gallery: Gallery, id_: str) -> bool:
    return id_ in gallery.numbers or len(gallery) < ALL_CELLS
