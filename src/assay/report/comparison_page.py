"""The page of a comparison: one HTML file made of the parts that the report of a run is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay import __version__
from assay.arrays import Bools, Reals
from assay.errors import RunError
from assay.experiments.compare import ComparedRun, Comparison, MetricRow, Overlap
from assay.labels.space import Head
from assay.messages import plain
from assay.metrics.metrics import higher_is_better
from assay.report.ablation_table import shown
from assay.report.charts import metric_title
from assay.report.sections.curves import look, over_one_another
from assay.report.sections.errors import label_text, prediction_text
from assay.report.sections.gallery import Gallery, Shown, fetch
from assay.report.sections.page import write_page
from assay.run.contents import RunContents, read_run

CLASSES = 200  # of a table
EACH = 24  # images of a list
ALL = 1600  # images of a page
PERCENT = "accuracy"
LISTS = 3  # of images, for each head and run: only the one is right, only the other, neither


def require_page(path: Path) -> None:
    """Refuse what cannot be the file of a page, before anything is computed. Raises RunError."""
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise RunError(f"{path}: is no name for a page. Give --out a file that ends in .html.")


def write_comparison(path: Path, found: Comparison) -> Path:
    """Write a comparison as one HTML file; images come from the first run's cache, else from where they lie.

    Raises SpaceError or RunError where it cannot be written.
    """
    gallery, runs = Gallery(), [read_run(entry.run.folder) for entry in found.entries]
    names = [plain(entry.name) for entry in found.entries]
    parts: dict[str, Any] = {
        "names": names,
        "looks": [look(place) for place in range(len(names))],
        "version": __version__,
        "n": len(found.entries[0].validation.samples),
        "many": len(found.heads) > 1,
        "basis": found.basis,
        "chief": _shown(found.chief) if found.chief else None,
        "metrics": _metrics(found),
        "answers": [_answers(overlap, names) for overlap in found.overlaps],
        "classes": _classes(found),
        "plans": [{"path": plain(apart.path), "values": _spelt(apart.values)} for apart in found.plans],
        "panels": over_one_another(runs),
        "apart": _apart(found, gallery),
        "facts": [_facts(entry, run) for entry, run in zip(found.entries, runs, strict=True)],
    }
    shown = fetch(gallery, runs[0])
    script: dict[str, Any] = {"images": _captions(found, gallery, shown), "heads": [], "cells": {}, "map": None}
    return write_page(path, "comparison.html.jinja", shown=shown, script=script, parts=parts)


def _shown(row: MetricRow) -> dict[str, Any]:
    """A metric of every run, with what a template needs to draw the differences: `reach` is their largest bound."""
    bounds = [
        abs(bound) for change in row.changes if change for bound in (change.low, change.high, change.value) if bound
    ]
    return {
        "title": metric_title(row.metric),
        "percent": row.metric == PERCENT,
        "unit": 100 if row.metric == PERCENT else 1,
        "values": row.values,
        "changes": row.changes,
        "verdicts": row.verdicts,
        "lower": not higher_is_better(row.metric),
        "reach": 1.08 * max(bounds, default=1.0),
    }


def _metrics(found: Comparison) -> list[dict[str, Any]]:
    """The table over all heads, and with several heads one of each."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in found.distinct_rows:
        groups.setdefault(row.head, []).append(_shown(row))
    return [{"head": plain(head), "rows": rows} for head, rows in groups.items()]


def _answers(overlap: Overlap, names: Sequence[str]) -> dict[str, Any]:
    counts = overlap.counts
    return {
        "head": plain(overlap.head.name),
        "kind": overlap.head.kind,
        "other": names[overlap.index],
        "place": overlap.index,
        "counts": counts,
        "n": sum(counts.values()),
        "apart": int(overlap.differ.sum()),
        "test": overlap.test,
    }


def _classes(found: Comparison) -> list[dict[str, Any]]:
    """Of every head: F1 of each class, a column a run; of many classes those in which the runs part most."""
    heads = []
    for head in found.measured:
        tables = [entry.scores[head.name].per_class for entry in found.entries]
        values = np.stack([table["f1"].to_numpy() for table in tables])  # (runs, K)
        support = tables[0]["support"].to_numpy()
        order = np.argsort(-np.where(support > 0, np.ptp(values, axis=0), -1.0), kind="stable")[:CLASSES]
        rows = [
            {"class": plain(head.classes[place]), "support": int(support[place]), "f1": values[:, place].tolist()}
            for place in sorted(order.tolist())
        ]
        heads.append({"head": plain(head.name), "kind": head.kind, "size": head.size, "rows": rows})
    return heads


def _apart(found: Comparison, gallery: Gallery) -> list[dict[str, Any]]:
    """The images on which the first run and another part: only one is right, or both are wrong, each its own way."""
    lists = max(1, len(found.overlaps) * LISTS)
    each = max(4, min(EACH, ALL // lists))
    return [_lists(found, overlap, gallery, each) for overlap in found.overlaps]


def _lists(found: Comparison, overlap: Overlap, gallery: Gallery, each: int) -> dict[str, Any]:
    first, other = overlap.right
    chosen = [other & ~first, first & ~other]
    if overlap.head.kind == "multiclass":  # of two different answers for a tag one is right
        chosen.append(overlap.known & ~first & ~other & overlap.differ)
    moved = _moved(found, overlap)
    groups = []
    for cells in chosen:
        rows, count = _rows_of(cells, moved, each)
        groups.append({"count": count, "shown": _images(found, overlap, rows, gallery)})
    return {
        "head": plain(overlap.head.name),
        "kind": overlap.head.kind,
        "first": plain(found.entries[0].name),
        "other": plain(found.entries[overlap.index].name),
        "place": overlap.index,
        "groups": groups,
    }


def _moved(found: Comparison, overlap: Overlap) -> Reals:
    """How far probabilities of two runs are apart: of a multi-class head the most of an image (N,), of tags (N, K)."""
    one, other = (found.entries[place].validation.of(overlap.head)[1] for place in (0, overlap.index))
    far: Reals = np.abs(other - one)
    return far.max(axis=1) if overlap.head.kind == "multiclass" else far


def _rows_of(cells: Bools, moved: Reals, most: int) -> tuple[list[int], int]:
    """The images of any chosen cell, those first whose probability moved most; and how many there are of them."""
    weighed = np.where(cells, moved, -1.0).reshape(len(cells), -1).max(axis=1)
    count = int((weighed >= 0).sum())
    return np.argsort(-weighed, kind="stable")[: min(most, count)].tolist(), count


def _images(found: Comparison, overlap: Overlap, rows: Sequence[int], gallery: Gallery) -> list[dict[str, Any]]:
    first, other = found.entries[0].validation, found.entries[overlap.index].validation
    ids = first.samples.ids
    numbers = gallery.add((ids[row] for row in rows), close=True)
    codes, own, own_cuts = first.of(overlap.head)
    _, theirs, their_cuts = other.of(overlap.head)
    return [
        {
            "image": number,
            "known": label_text(overlap.head, codes, row),
            "first": prediction_text(overlap.head, own, own_cuts, row),
            "other": prediction_text(overlap.head, theirs, their_cuts, row),
        }
        for number, row in zip(numbers, rows, strict=True)
    ]


def _captions(found: Comparison, gallery: Gallery, shown: Shown) -> dict[str, list[Any]]:
    """What is said of each image: its label under every head, and what each run answers, a line a run."""
    samples = found.entries[0].validation.samples
    rows = {id_: row for row, id_ in enumerate(samples.ids)}
    order = [rows[id_] for id_ in gallery.numbers]
    codes = found.entries[0].validation.codes
    labels = [
        _joined([(head, label_text(head, own, row)) for head, own in zip(found.heads, codes, strict=True)])
        for row in order
    ]
    return {
        "place": [list(place) if place else None for place in shown.places],
        "name": [plain(id_) for id_ in gallery.numbers],
        "part": ["validation"] * len(order),
        "label": labels,
        "answer": ["\n".join(_answer(entry, row) for entry in found.entries) for row in order],
    }


def _answer(entry: ComparedRun, row: int) -> str:
    own = []
    for head in entry.validation.samples.space:
        _, probabilities, cuts = entry.validation.of(head)
        own.append((head, prediction_text(head, probabilities, cuts, row)))
    return f"{plain(entry.name)}: {_joined(own)}"


def _joined(own: Sequence[tuple[Head, str]]) -> str:
    if len(own) == 1:
        return own[0][1]
    return " · ".join(f"{plain(head.name)}: {text}" for head, text in own if text)


def _facts(entry: ComparedRun, run: RunContents) -> dict[str, Any]:
    """What a run is made of, in a row."""
    return {
        "folder": plain(str(entry.run.folder)),
        "backbone": plain(entry.plan.model.backbone),
        "steps": [plain(step.kind) for step in entry.plan.steps],
        "train": len(run.samples.part("train")),
        "edits": len(run.ledger.entries),
        "seed": entry.plan.seed,
        "seconds": entry.run.record.step_seconds,
        "data": run.as_read.fingerprint(),
    }


def _spelt(values: Sequence[str | None]) -> list[str | None]:
    return [None if value is None else plain(value) for value in values]


# The table of a comparison, as text.

COLUMNS = ("metric", "run", "value", "difference to the first", "so")


def rows(found: Comparison) -> list[list[str]]:
    """A row a metric and run, as `COLUMNS` says: all metrics over the heads together, and the headline of each head."""
    told = (row for row in found.distinct_rows if not row.head or row.metric == found.metric)
    return [line for row in told for line in _lines(found, row)]


def test_lines(found: Comparison) -> list[str]:
    """What McNemar's test says of each head and run, a line each."""
    names = [entry.name for entry in found.entries]
    return [
        f"{overlap.head.name}: only {names[0]} right {overlap.test.only_first:,}, only {names[overlap.index]} "
        f"{overlap.test.only_second:,}; McNemar p = {overlap.test.p:.2g}{' (exact)' if overlap.test.exact else ''}"
        for overlap in found.overlaps
        if overlap.test
    ]


def _lines(found: Comparison, row: MetricRow) -> Iterator[list[str]]:
    for place, entry in enumerate(found.entries):
        change = row.changes[place]
        named = row.name if place == 0 else ""
        yield [
            named,
            entry.name,
            shown(row.values[place]),
            "" if change is None else shown(change, "+"),
            row.verdicts[place],
        ]
