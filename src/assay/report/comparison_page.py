"""The page of a comparison: one HTML file made of the parts that the report of a run is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
from rich.table import Table

from assay import __version__
from assay.arrays import Bools, Reals
from assay.errors import RunError
from assay.experiments.compare import ComparedRun, Comparison, MetricRow, Overlap
from assay.messages import SPLITS, plain, text_table
from assay.metrics.metrics import HEADLINE_METRICS, higher_is_better
from assay.report.charts import metric_title
from assay.report.drawing import PAPER, RUNS, Drawing, axis, base, drawing, inline
from assay.report.gallery import Gallery, Reader, captions, fetch, label_text, prediction_text, predictions_text
from assay.report.page import write_page
from assay.report.sections.history import panels, time_line
from assay.report.tables import interval_text, small_n_line
from assay.run.contents import RunContents, read_run

MAX_CLASSES = 200  # of a table
IN_LIST = 24  # images
MIN_REACH = 0.001  # of the axis of differences
IN_LISTS = 1600  # images of a page
LISTS = 3  # of images, for each head and run: only the one is right, only the other, neither
PERCENT = "accuracy"
COLUMNS = ("metric", "run", "value", "difference to the first", "so")
DASHES = ([1, 0], [7, 3], [2, 2])
"""Of the first runs, one a colour, then of as many more."""


def require_page(path: Path) -> None:
    """Refuse what cannot be the file of a page, before anything is computed. Raises RunError."""
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise RunError(f"{path}: is no name for a page. Give --out a file that ends in .html.")


def write_comparison(path: Path, comparison: Comparison) -> Path:
    """Write a comparison as one HTML file; images come from the first run's cache, else from where they lie.

    Raises SpaceError or RunError where it cannot be written.
    """
    gallery, entries = Gallery(), comparison.entries
    runs = [read_run(entry.run.folder) for entry in entries]
    names = [entry.name for entry in entries]
    samples = entries[0].predicted.samples
    parts: dict[str, Any] = {
        "names": names,
        "colours": [_colour(number) for number in range(len(names))],
        "version": __version__,
        "n": len(samples),
        "many": len(comparison.heads) > 1,
        "part": SPLITS[comparison.part],
        "basis": comparison.basis,
        "chief": _metric(comparison.chief) if comparison.chief else None,
        "metrics": _metrics(comparison),
        "answers": comparison.overlaps,
        "classes": _classes(comparison),
        "plans": comparison.plans,
        "panels": _curves(runs),
        "disagreements": _disagreements(comparison, gallery),
        "runs": list(zip(entries, runs, strict=True)),
    }
    thumbnails = fetch(gallery, Reader.of(runs[0]))
    predictions = {
        id_: "\n".join(_prediction(entry, row) for entry in entries)
        for row, id_ in enumerate(samples.ids)
        if id_ in gallery.numbers
    }
    script = {"images": captions(gallery, thumbnails, samples, predictions)}
    return write_page(path, "comparison.html.jinja", thumbnails=thumbnails, script=script, parts=parts)


def _metric(row: MetricRow) -> dict[str, Any]:
    """Return a metric of every run, and how far the axis of the differences reaches to both sides (`reach`)."""
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
        "reach": _reach(max(bounds, default=0.0)),
    }


def _reach(largest: float) -> float:
    """Return the first of 1, 2, 5 times a power of ten that holds a difference; at least 0.001, below one at most 1."""
    power = 10.0 ** math.floor(math.log10(max(largest, MIN_REACH)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= max(largest, MIN_REACH) * (1 - 1e-9))


def _metrics(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the table over all heads, and with several heads one of each."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in comparison.distinct_rows:
        groups.setdefault(row.head, []).append(_metric(row))
    return [{"head": head, "rows": rows} for head, rows in groups.items()]


def _classes(comparison: Comparison) -> list[dict[str, Any]]:
    """Return of every head F1 of each class, a column a run; of many classes those in which the runs differ most."""
    heads = []
    for head in comparison.measured:
        tables = [entry.scores[head.name].per_class for entry in comparison.entries]
        values = np.stack([table["f1"].to_numpy() for table in tables])  # (runs, K)
        support = tables[0]["support"].to_numpy()
        spread = np.where(support > 0, np.ptp(values, axis=0), -1.0)
        rows = [
            {
                "class": head.classes[number],
                "support": int(support[number]),
                "f1": values[:, number].tolist(),
                "limits": [(table["f1_low"][number], table["f1_high"][number]) for table in tables],
            }
            for number in sorted(np.argsort(-spread, kind="stable")[:MAX_CLASSES].tolist())
        ]
        heads.append({"head": head.name, "kind": head.kind, "size": head.size, "rows": rows})
    return heads


def _disagreements(comparison: Comparison, gallery: Gallery) -> list[dict[str, Any]]:
    """Return the images on which the first run and another disagree: only one is right, or neither is."""
    lists = max(1, len(comparison.overlaps) * LISTS)
    most = max(4, min(IN_LIST, IN_LISTS // lists))
    return [_lists(comparison, overlap, gallery, most) for overlap in comparison.overlaps]


def _lists(comparison: Comparison, overlap: Overlap, gallery: Gallery, most: int) -> dict[str, Any]:
    first, other = overlap.right
    chosen = [other & ~first, first & ~other]
    if overlap.head.multiclass:  # of two different answers for a tag one is right
        chosen.append(overlap.known & ~first & ~other & overlap.differ)
    one, another = (comparison.entries[number].predicted.of(overlap.head)[1] for number in (0, overlap.index))
    moved: Reals = np.abs(another - one)  # (N, K)
    if overlap.head.multiclass:
        moved = moved.max(axis=1)
    groups = []
    for cells in chosen:
        rows, count = _rows_of(cells, moved, most)
        images = _images(comparison, overlap, rows, gallery)
        weights = np.where(cells, moved, 0.0).reshape(len(cells), -1).max(axis=1)
        for row, image in zip(rows, images, strict=True):
            image["moved"] = float(weights[row])
        groups.append({"count": count, "images": images})
    return {
        "head": overlap.head,
        "first": comparison.entries[0].name,
        "other": comparison.entries[overlap.index].name,
        "run": overlap.index,
        "groups": groups,
    }


def _rows_of(cells: Bools, moved: Reals, most: int) -> tuple[list[int], int]:
    """Return the images of any chosen cell, those first whose probability moved most; and how many there are."""
    weighed = np.where(cells, moved, -1.0).reshape(len(cells), -1).max(axis=1)
    count = int((weighed >= 0).sum())
    return np.argsort(-weighed, kind="stable")[: min(most, count)].tolist(), count


def _images(comparison: Comparison, overlap: Overlap, rows: Sequence[int], gallery: Gallery) -> list[dict[str, Any]]:
    head, first = overlap.head, comparison.entries[0].predicted
    codes, probabilities, thresholds = first.of(head)
    _, other_probabilities, other_thresholds = comparison.entries[overlap.index].predicted.of(head)
    numbers = gallery.add(first.samples.ids_of(rows), large=True)
    return [
        {
            "image": number,
            "label": label_text(head, codes, row),
            "first": prediction_text(head, probabilities, thresholds, row),
            "other": prediction_text(head, other_probabilities, other_thresholds, row),
        }
        for number, row in zip(numbers, rows, strict=True)
    ]


def _prediction(entry: ComparedRun, row: int) -> str:
    values = entry.predicted.predictions
    text = predictions_text(entry.predicted.samples.space, values.probabilities, values.thresholds, row)
    return f"{plain(entry.name)}: {text}"


# Curves of several runs over one another: a colour a run, in the colours of the page.


def _colour(number: int) -> dict[str, Any]:
    """Return how a run is drawn: the number of its colour, and its dashes."""
    return {"colour": number % len(RUNS), "dashes": DASHES[number // len(RUNS) % len(DASHES)]}


def _curves(runs: Sequence[RunContents]) -> list[dict[str, Any]]:
    """Return a panel for each metric that any of the runs has a curve of, over the epochs of all its steps.

    `first` are those to be visible at once: the loss, the headline and the learning rate.
    """
    tables = [time_line(run)[1].with_columns(run=pl.lit(number)) for number, run in enumerate(runs)]
    table = pl.concat(tables)
    if table.is_empty():
        return []
    names = list(dict.fromkeys(name for one, run in zip(tables, runs, strict=True) for name in panels(one, run)))
    chiefs = [*(run.headline for run in runs if run.headline), *(name for name in HEADLINE_METRICS if name in names)]
    end = float(table["x"].max() or 1)  # type: ignore[arg-type]
    return [
        {
            "title": metric_title(name),
            "first": name in {"loss", *chiefs[:1], "lr"},
            "svg": inline(_drawing(end, len(runs), rate=name == "lr"), table.filter(name=name).to_dicts()),
        }
        for name in names
    ]


@lru_cache(maxsize=8)
def _drawing(end: float, count: int, *, rate: bool) -> Drawing:
    """Draw a line a run and part, training thin and pale; the kept epochs ringed; steps without epochs as diamonds."""
    x = alt.X(
        "x:Q", scale=alt.Scale(domain=[0.5, end + 0.5], nice=False), axis=axis(format="d", grid=False, tickMinStep=1)
    )
    ticks = axis(format=".1e" if rate else ".4~g", tickCount=4, minExtent=44)
    y = alt.Y("value:Q", scale=alt.Scale(zero=rate, nice=True, padding=12), axis=ticks)
    layers = []
    for number in range(count):
        run = base().transform_filter(f"datum.run == {number}").encode(x=x, y=y, detail="step:N")
        colour, dashes = RUNS[_colour(number)["colour"]], _colour(number)["dashes"]
        training = run.transform_filter("datum.part == 'training'")
        validation = run.transform_filter("datum.part == 'validation'")
        line = {"color": colour, "strokeDash": dashes}
        point = {"filled": True, "opacity": 1}
        layers += [
            training.mark_line(strokeWidth=2 if rate else 1, opacity=1 if rate else 0.45, **line),
            validation.transform_filter("datum.mark != 'alone'").mark_line(strokeWidth=2, **line),
            validation.transform_filter("datum.mark == 'alone'").mark_point(
                shape="diamond", size=64, color=colour, **point
            ),
            validation.transform_filter("datum.mark == 'best'").mark_point(
                size=60, stroke=colour, fill=PAPER, strokeWidth=2, **point
            ),
        ]
    return drawing(alt.layer(*layers))


# The table of a comparison, as text.


def blocks(comparison: Comparison, page: Path) -> Iterator[Table | str]:
    """Yield what the terminal shows."""
    yield text_table(COLUMNS, rows(comparison), title=SPLITS[comparison.part].capitalize())
    yield from filter(None, [small_n_line(len(comparison.entries[0].predicted.samples))])
    yield from test_lines(comparison)
    yield f"{comparison.basis}.\nThe page is {page}. Open it in a browser; it needs no network."


def rows(comparison: Comparison) -> list[list[str]]:
    """Return a row a metric and run, as `COLUMNS` says: metrics over all heads, and the headline of each head."""
    return [
        [
            "" if number else row.name,
            entry.name,
            interval_text(row.values[number]),
            interval_text(row.changes[number], "+"),
            row.verdicts[number],
        ]
        for row in comparison.distinct_rows
        if not row.head or row.metric == comparison.metric
        for number, entry in enumerate(comparison.entries)
    ]


def test_lines(comparison: Comparison) -> list[str]:
    """Return McNemar's test of each head and run, a line each."""
    names = [entry.name for entry in comparison.entries]
    return [
        f"{overlap.head.name}: only {names[0]} right {overlap.test.only_first:,}, only {names[overlap.index]} "
        f"{overlap.test.only_second:,}; McNemar p = {overlap.test.p:.2g}{' (exact)' if overlap.test.exact else ''}"
        for overlap in comparison.overlaps
        if overlap.test
    ]
