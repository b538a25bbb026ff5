"""The figures of a run as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = {  # what fits beside each other on 100 columns; metrics.json has all of them
    "accuracy": "accuracy",
    "subset_accuracy": "subset accuracy",
    "mean_average_precision": "average precision",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
    "nll": "NLL",
    "calibration_error": "calibration error",
}


def of_run(metrics: Mapping[str, Any]) -> str:
    """Validation figures of the baselines and after each step, then those of the test split if there is one.

    `metrics` is what metrics.json holds.
    """
    rows = [(name, scores, "") for name, scores in metrics["baselines"].items()]
    rows += [
        (step["name"], step["scores"], f"{step['seconds']:,.0f} s")
        for step in metrics["steps"]
        if step.get("scores")
    ]
    if metrics["test"]:
        rows.append(("test split", metrics["test"], ""))
    return _tables(rows) if rows else "No labelled pictures to score on: no figures."


def of_evaluation(found: Mapping[str, Any]) -> str:
    """Figures on the pictures given, below those of the validation pictures.

    `found` is what `assay.evaluate` gives.
    """
    rows = [("validation", found["validation"], ""), ("these pictures", found["scores"], "")]
    return _tables([row for row in rows if row[1]])


def _tables(rows: Sequence[tuple[str, Mapping[str, Any], str]]) -> str:
    """A table a head; rows are (name, scores, note)."""
    heads = list(dict.fromkeys(head for _, scores, _ in rows for head in scores["heads"]))
    tables = []
    for head in heads:
        measured = [
            (name, scores["heads"][head]["figures"], note)
            for name, scores, note in rows
            if scores["heads"].get(head, {}).get("figures")
        ]
        title = f"{head}\n" if len(heads) > 1 else ""
        tables.append(title + _table(measured) if measured else f"{head}: no known labels to score on")
    return "\n\n".join(tables)


def _table(rows: Sequence[tuple[str, Mapping[str, Any], str]]) -> str:
    shown = [name for name in COLUMNS if any(name in figures for _, figures, _ in rows)]
    cells = [["", *(COLUMNS[name] for name in shown), "n", ""]]
    for name, figures, note in rows:
        n = max((figure["n"] for figure in figures.values()), default=0)
        values = [_value(figures.get(column), with_interval=column == shown[0]) for column in shown]
        cells.append([name, *values, str(n), note])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(_line(row, widths) for row in cells)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *rest = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join([name, *rest]).rstrip()


def _value(figure: Mapping[str, Any] | None, *, with_interval: bool) -> str:
    """A figure, and its 95 % interval where that is wanted and known."""
    if figure is None:
        return ""
    if not with_interval or figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
