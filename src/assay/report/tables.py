"""Metrics as tables for the terminal, and as rows for notebooks.

Scores come as `metrics.to_json` gives them: {"metrics": ..., "heads": {name: {"n", "metrics", "per_class"}}}.
A function returns what rich can print; printing is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Table
from rich.text import Text

from assay.files import whole
from assay.messages import MAX_CLASSES_LISTED, bare_table, limits_text, number_text, plain
from assay.metrics.intervals import SMALL_N, Metric
from assay.metrics.metrics import headline, higher_is_better
from assay.predictions.baselines import PURPOSES, ZEROS

Scores = Mapping[str, Any]
Row = dict[str, Any]

TABLE_METRICS = ("accuracy", "micro_f1", "mean_average_precision", "macro_f1", "nll")
"""The columns of a table of metrics, those to show first first."""


def metrics_rows(
    scores: Mapping[str, Scores], *, columns: Sequence[str] | None = None, chief: str | None = None
) -> list[Row]:
    """Return a row for each baseline and step: step, n, each metric as {value, n, low, high} or None (undefined).

    Without `columns`: two metrics that any row has, which fit 80 letters; `chief`, that of the plan, first.
    """
    names = _columns([score["metrics"] for score in scores.values()], columns, chief)
    return [_row({"step": name}, score["metrics"], names) for name, score in scores.items()]


def heads_rows(scores: Scores, *, majority: Scores | None = None) -> list[Row]:
    """Return a row for each head of one score: head, n and metrics, as `metrics_rows`.

    The metrics are accuracy and balanced accuracy, of tags micro F1 and average precision. With the scores of the
    `majority` its metric that sums the head up, as "majority".
    """
    heads = scores["heads"]
    names = _head_columns(heads)
    rows = [_row({"head": name}, head["metrics"], names) | {"n": head["n"]} for name, head in heads.items()]
    if majority is not None:
        for row in rows:
            row["majority"] = _chief_of(majority["heads"].get(row["head"], {}))
    return rows


def metrics_table(scores: Mapping[str, Scores], *, chief: str | None = None, title: str | None = None) -> Table:
    """Return baselines and steps under one another, metrics with 95 % intervals; the best of each is bold."""
    return _metrics_table(metrics_rows(scores, chief=chief), "step", title)


def heads_table(scores: Scores, *, majority: Scores | None = None, title: str | None = None) -> Table:
    """Return the heads of one score under one another, as `heads_rows`. Values of different heads are not compared."""
    return _metrics_table(heads_rows(scores, majority=majority), "head", title, compared=False)


def per_class_table(
    rows: Sequence[Mapping[str, Any]], *, head: str = "class", title: str | None = None, most: int = MAX_CLASSES_LISTED
) -> Table:
    """Return `per_class` of a head with intervals; of more than `most` classes, those of lowest F1.

    A class that no image is of has no metrics here, though scikit-learn's convention gives it zeros.
    """
    names = ["precision", "recall", "f1"] + (["average_precision"] if rows and "average_precision" in rows[0] else [])
    table = bare_table(title)
    table.add_column(Text(plain(head)), overflow="fold")
    for name in [*names, "support"]:
        table.add_column(_heading(name), justify="right")
    lowest = sorted(range(len(rows)), key=lambda row: rows[row]["f1"] if rows[row]["support"] else 2.0)[:most]
    for row in sorted(lowest):
        cells = [_cell(_of_class(rows[row], name), None) for name in names]
        table.add_row(Text(plain(rows[row]["class"])), *cells, f"{rows[row]['support']:,}")
    small = sum(row["support"] < SMALL_N for row in rows)
    lines = [f"The {most} classes of lowest F1, of {len(rows)}."] if len(rows) > most else []
    lines += [f"{small} of {len(rows)} have fewer than {SMALL_N} images: too few to judge them by."] if small else []
    table.caption = " ".join(lines) or None
    return table


def _of_class(row: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Return a metric of a row of `per_class`; None where the class has no image."""
    if not row["support"] or row[name] is None:
        return None
    return {"value": row[name], **{side: row.get(f"{name}_{side}") for side in ("low", "high")}}  # older runs: none


def frequency_table(rows: Sequence[Mapping[str, Any]], *, head: str = "class") -> Table:
    """Return `by_frequency` of a head: frequent, medium and rare classes, by thirds and by 100 and 20 images."""
    table = bare_table(None)
    table.add_column(Text(plain(head)), overflow="fold")
    for name in ("classes", "images each", "recall", "F1", "n"):
        table.add_column(name, justify="right")
    before = rows[0]["rule"] if rows else ""
    for row in rows:
        if row["rule"] != before:
            table.add_section()
        before = row["rule"]
        metrics = row["metrics"]
        cells = [_cell(metrics.get(name), None) for name in ("recall", "f1")]
        name = f"{row['name']} ({row['rule']})"
        n = f"{metrics['recall']['n']:,}" if metrics else "–"
        table.add_row(name, f"{len(row['classes']):,}", _range(row["least"], row["most"]), *cells, n)
    return table


def untagged_line(untagged: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the shares that `baselines.without_a_tag` gives, on one line."""
    texts = []
    for head, parts in untagged.items():
        shares = [f"{100 * part['share']:.1f} % of {part['n']:,} in {side}" for side, part in parts.items()]
        texts.append(f"{plain(head)}: {', '.join(shares) or 'not known of any'}")
    return f"Images without a tag: {'; '.join(texts)}"


def baseline_lines(scores: Mapping[str, Scores]) -> list[str]:
    """Return what each of the baselines among `scores` is for, and whether the leak check passes, a line each."""
    lines = [f"  {name}: {PURPOSES[name]}." for name in scores if name in PURPOSES]
    if check := scores.get(ZEROS, {}).get("leak check"):
        lines.append(leak_line(check))
    return lines


def leak_line(check: Mapping[str, Any]) -> str:
    """Return the outcome of `baselines.leak_check`."""
    difference = f"the largest difference of a probability is {check['largest difference']:.2g}"
    if check["passed"]:
        return f"Leak check passed: on all-zero images the linear model answers as the majority does ({difference})."
    return (
        f"Leak check FAILED: on all-zero images the linear model answers otherwise than the majority ({difference}). "
        "Something of the labels reaches the evaluation: trust none of these metrics, and report the run."
    )


def small_n_line(n: int) -> str:
    """Return that so many images are too few to judge a model by; nothing where they are enough."""
    if not 0 < n < SMALL_N:
        return ""
    return (
        f"n = {n} is too small to judge by: one image is {100 / n:.1f} points, and the intervals say little. "
        f"Hold back at least {SMALL_N} labelled images."
    )


def interval_text(metric: Metric | None, sign: str = "") -> str:
    """Return a metric and its interval, nothing of None; with `+`, as a difference."""
    if metric is None:
        return ""
    return f"{metric.value:{sign}.4f}{metric.limits(f'{sign}.4f')}"


def interval_cells(prefix: str, metric: Metric | None) -> dict[str, float | None]:
    """Return the cells of a metric in a table of values."""
    return {f"{prefix}{name}": None if metric is None else getattr(metric, name) for name in ("value", "low", "high")}


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV, whole or not at all."""
    with whole(path) as beside:
        pl.DataFrame(rows, infer_schema_length=None).write_csv(beside)


def _metrics_table(rows: Sequence[Row], first: str, title: str | None, *, compared: bool = True) -> Table:
    names = [name for name in rows[0] if name not in {first, "n"}] if rows else []
    table = bare_table(title)
    table.add_column(first, overflow="fold")
    for name in names:
        table.add_column(_heading(name))
    table.add_column("n", justify="right")
    best = {name: _best(name, rows) for name in names} if compared and len(rows) > 1 else {}
    for row in rows:
        cells = [_cell(row[name], best.get(name)) for name in names]
        table.add_row(Text(plain(row[first])), *cells, f"{row['n']:,}" if row["n"] else "–")
    return table


def _cell(metric: Mapping[str, Any] | None, best: float | None) -> Text:
    if metric is None:
        return Text("–", style="dim")
    text = Text(number_text(metric["value"]), style="bold" if metric["value"] == best else "")
    return text.append(limits_text(metric["low"], metric["high"]), style="not bold dim")


def _row(start: Row, metrics: Mapping[str, Any], columns: Sequence[str]) -> Row:
    n = max((metric["n"] for metric in metrics.values()), default=0)
    return {**start, "n": n, **{name: metrics.get(name) for name in columns}}


def _columns(
    metrics: Sequence[Mapping[str, Any]], columns: Sequence[str] | None, chief: str | None = None
) -> list[str]:
    if columns is not None:
        return list(columns)
    wanted = dict.fromkeys((*([chief] if chief else []), *TABLE_METRICS))
    names = [name for name in wanted if any(name in row for row in metrics)]
    if "accuracy" in names:
        # Of a multi-class head micro F1 is the accuracy.
        names = [name for name in names if name != "micro_f1" or name == chief]
    return names[:2]


def _head_columns(heads: Mapping[str, Scores]) -> list[str]:
    """Return the metrics that sum up heads of these kinds: a plain head has an accuracy, one of tags has not."""
    plain_head = [head["metrics"] for head in heads.values() if "accuracy" in head["metrics"]]
    tags = [head["metrics"] for head in heads.values() if head["metrics"] and "accuracy" not in head["metrics"]]
    names = ["accuracy", "balanced_accuracy"] if plain_head else []
    return names + (["micro_f1", "mean_average_precision"] if tags else [])


def _chief_of(head: Scores) -> Mapping[str, Any] | None:
    metrics: Mapping[str, Any] = head.get("metrics", {})
    return metrics.get(headline(metrics) or "")


def _best(name: str, rows: Sequence[Row]) -> float | None:
    values = [row[name]["value"] for row in rows if row[name] is not None]
    return (max if higher_is_better(name) else min)(values, default=None)


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,}–{most:,}"


def _heading(name: str) -> str:
    words = {"nll": "NLL", "f1": "F1", "macro_f1": "macro F1", "micro_f1": "micro F1"}
    words |= {"mean_average_precision": "mAP", "average_precision": "AP"}
    return words.get(name, name.replace("_", " "))
