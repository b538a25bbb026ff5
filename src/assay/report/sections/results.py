"""Where the predictions are right and wrong: by class, confusion, the worst errors and the least certain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from assay.arrays import Ints
from assay.labels.space import Head
from assay.metrics.intervals import SMALL_N, wilson
from assay.report.errors import OUTCOMES, PredictedImage, cells, least_certain, worst_errors
from assay.report.gallery import Gallery
from assay.run.contents import LabelledPredictions, RunContents

ROWS = 200  # classes of a table
SIDE = 40  # classes of a matrix
IN_CELL = 36  # images of a cell
IN_GALLERY = 24  # worst errors and least certain images of a head
ALL_CELLS = 9000  # images of all cells of a page; no more are added then
RIGHT_OUTCOMES = (0, 3)
PAIRS, IN_PAIR = 12, 8  # commonest errors of a head, and images of each
LIMITED = ("precision", "recall", "f1", "average_precision")


def results(run: RunContents, gallery: Gallery) -> list[dict[str, Any]]:
    """Return of every head with validated answers its table, its matrix, its images."""
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
                "name": head.name,
                "kind": head.kind,
                "size": head.size,
                "n": score["n"],
                "metrics": score["metrics"],
                **_by_class(score["per_class"]),
                **_pairs(run.validation, head, gallery),
                "caption": _captions(head),
                "frequency": [row for row in score["by_frequency"] if row["rule"] == "thirds" and row["metrics"]],
                "worst_errors": _images(worst_errors(run.validation, head, IN_GALLERY), gallery),
                "least_certain": _images(least_certain(run.validation, head, IN_GALLERY), gallery),
            }
        )
    for section in heads:  # after the galleries, whose images come first where a page is full
        head = run.samples.space.heads[int(section["id"][1:])]
        section["matrix"] = _matrix(run.validation, head, gallery)
    return heads


def _by_class(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of the table, of many classes the worst, and how many are left out."""
    kept = rows if len(rows) <= ROWS else sorted(rows, key=lambda row: (row["support"] == 0, row["f1"] or 0.0))[:ROWS]
    classes = [{**_recall_limits(row), **row} for row in kept]
    small = sum(row["support"] < SMALL_N for row in rows)
    return {"classes": classes, "left_out": len(rows) - len(kept), "small": small}


def _recall_limits(row: dict[str, Any]) -> dict[str, float | None]:
    """Return the intervals of a class for a run of an earlier version, which has those of no class."""
    unknown: dict[str, float | None] = {f"{name}_{side}": None for name in LIMITED for side in ("low", "high")}
    if row["support"]:
        unknown["recall_low"], unknown["recall_high"] = wilson(round(row["recall"] * row["support"]), row["support"])
    return unknown


def _pairs(labelled: LabelledPredictions, head: Head, gallery: Gallery) -> dict[str, Any]:
    """Return the commonest errors: a class taken for another, or a tag missed or wrongly given; and how many kinds."""
    rows_of, ids = cells(labelled, head), labelled.samples.ids
    names = head.classes if head.multiclass else OUTCOMES
    totals: Counter[tuple[int, bool]] = Counter()
    for (row, column), rows in rows_of.items():  # of what the error is a share: images that have it, or have it not
        totals[row, head.multiclass or column < 2] += len(rows)
    wrong = [(cell, rows) for cell, rows in rows_of.items() if not _is_right(head, *cell)]
    wrong.sort(key=lambda one: -len(one[1]))
    pairs = []
    for (row, column), rows in wrong[:PAIRS]:
        n = totals[row, head.multiclass or column < 2]
        low, high = wilson(len(rows), n)
        pairs.append(
            {
                "label": head.classes[row],
                "taken": names[column],
                "count": len(rows),
                "n": n,
                "share": len(rows) / n,
                "low": low,
                "high": high,
                "images": gallery.add((ids[index] for index in rows[:IN_PAIR].tolist()), large=True),
            }
        )
    return {"pairs": pairs, "pair_count": len(wrong), "errors": sum(len(rows) for _, rows in wrong)}


def _captions(head: Head) -> dict[str, Callable[[PredictedImage], str]]:
    """Return what stands beside an image of each gallery: the number by which it is sorted."""
    away = "ahead by" if head.multiclass else "off by"
    return {
        "worst": lambda image: f"label {100 * image.score:.1f} %",
        "least": lambda image: f"{away} {100 * image.score:.1f} points",
    }


def _matrix(labelled: LabelledPredictions, head: Head, gallery: Gallery) -> dict[str, Any]:
    """Return rows of cells: count, share of the row, and whether it is right; and images of each by "row,column"."""
    rows_of = cells(labelled, head)
    ids = labelled.samples.ids
    names = head.classes if head.multiclass else OUTCOMES
    counts = np.zeros((head.size, len(names)), np.int64)
    for cell, rows in rows_of.items():
        counts[cell] = len(rows)
    down = _most_mistaken(counts, head)
    across = down if head.multiclass else list(range(len(names)))
    images: dict[str, list[int]] = {}
    for row in down:
        for column in across:
            if (row, column) in rows_of:
                chosen = (ids[index] for index in rows_of[row, column][:IN_CELL].tolist())
                images[f"{row},{column}"] = gallery.add(id_ for id_ in chosen if _room(gallery, id_))
    return {
        "rows": [
            {
                "class": head.classes[row],
                "number": row,
                "cells": [_cell(counts[row], column, right=_is_right(head, row, column)) for column in across],
            }
            for row in down
        ],
        "columns": [names[column] for column in across],
        "hidden": head.size - len(down),
        "images": images,
    }


def _is_right(head: Head, row: int, column: int) -> bool:
    return row == column if head.multiclass else column in RIGHT_OUTCOMES


def _cell(row: Ints, column: int, *, right: bool) -> dict[str, Any]:
    count, total = int(row[column]), int(row.sum())
    return {"column": column, "count": count, "share": count / total if total else 0.0, "right": right}


def _most_mistaken(counts: Ints, head: Head) -> list[int]:
    """Return all classes, or those in the most mistakes; in their order in the head."""
    if head.size <= SIDE:
        return list(range(head.size))
    if head.multiclass:
        wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    else:
        wrong = counts[:, 1:3].sum(axis=1)
    return sorted(np.argsort(-wrong, kind="stable")[:SIDE].tolist())


def _images(images: list[PredictedImage], gallery: Gallery) -> list[tuple[int, PredictedImage]]:
    numbers = gallery.add((image.id for image in images), large=True)
    return list(zip(numbers, images, strict=True))


def _room(gallery: Gallery, id_: str) -> bool:
    return id_ in gallery.numbers or len(gallery) < ALL_CELLS
