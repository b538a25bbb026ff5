"""Figures as tables for the terminal, and as plain rows for `--json`.

Scores come as `metrics.to_json` gives them: {"figures": ..., "heads": {name: {"n", "figures", "per_class"}}}.
A function returns what rich can print; printing is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from assay.figures.metrics import higher_is_better

Scores = Mapping[str, Any]
Row = dict[str, Any]

CHIEF = ("accuracy", "mean_average_precision", "macro_f1", "nll")
MOST = 30  # classes of a table; a run's metrics.json holds them all


def figures_rows(scores: Mapping[str, Scores], *, columns: Sequence[str] | None = None) -> list[Row]:
    """A row for each baseline and step: step, n, each figure as {value, n, low, high} or None (undefined).

    Without `columns`: the two chief figures that any row has; they fit 80 letters.
    """
    shown = _columns([score["figures"] for score in scores.values()], columns)
    return [_row({"step": name}, score["figures"], shown) for name, score in scores.items()]


def heads_rows(scores: Scores, *, columns: Sequence[str] | None = None) -> list[Row]:
    """A row for each head of one score: head, n and figures, as `figures_rows`."""
    heads = scores["heads"]
    shown = _columns([head["figures"] for head in heads.values()], columns)
    return [_row({"head": name}, head["figures"], shown) | {"n": head["n"]} for name, head in heads.items()]


def figures_table(
    scores: Mapping[str, Scores], *, columns: Sequence[str] | None = None, title: str | None = None
) -> Table:
    """Baselines and steps under one another, figures with 95 % intervals; the best of each is bold."""
    return _figures_table(figures_rows(scores, columns=columns), "step", title)


def heads_table(scores: Scores, *, columns: Sequence[str] | None = None, title: str | None = None) -> Table:
    """The heads of one score under one another. Values of different heads are not compared."""
    return _figures_table(heads_rows(scores, columns=columns), "head", title, compared=False)


def per_class_table(rows: Sequence[Mapping[str, Any]], *, title: str | None = None, most: int = MOST) -> Table:
    """`per_class` of a head; of more than `most` classes, those of lowest F1."""
    names = ["precision", "recall", "f1"] + (["average_precision"] if rows and "average_precision" in rows[0] else [])
    table = _table(title)
    table.add_column("class", overflow="fold")
    for name in [*names, "support"]:
        table.add_column(_heading(name), justify="right")
    lowest = sorted(range(len(rows)), key=lambda row: rows[row]["f1"])[:most]
    for row in sorted(lowest):
        values = [_number(rows[row][name]) for name in names]
        table.add_row(Text(_plain(rows[row]["class"])), *values, f"{rows[row]['support']:,}")
    if len(rows) > most:
        table.caption = f"The {most} classes of lowest F1, of {len(rows)}."
    return table


def split_table(
    classes: Sequence[str], counts: Mapping[str, Sequence[int]], *, title: str | None = None, most: int = MOST
) -> Table:
    """Labelled pictures by class (rows) and split (columns); `counts` holds (K,) for each split.

    Of more than `most` classes, the rarest are shown. The sums are of all.
    """
    splits = {name: [int(count) for count in values] for name, values in counts.items()}
    table = _table(title)
    table.add_column("class", overflow="fold")
    for name in splits:
        table.add_column(name, justify="right")
    totals = [sum(values[row] for values in splits.values()) for row in range(len(classes))]
    rarest = sorted(range(len(classes)), key=lambda row: totals[row])[:most]
    for row in sorted(rarest):
        table.add_row(Text(_plain(classes[row])), *(f"{values[row]:,}" for values in splits.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(values):,}" for values in splits.values()), style="bold")
    if len(classes) > most:
        table.caption = f"The {most} rarest classes, of {len(classes)}."
    return table


def _figures_table(rows: Sequence[Row], first: str, title: str | None, *, compared: bool = True) -> Table:
    names = [name for name in rows[0] if name not in {first, "n"}] if rows else []
    table = _table(title)
    table.add_column(first, overflow="fold")
    for name in names:
        table.add_column(_heading(name))
    table.add_column("n", justify="right")
    best = {name: _best(name, rows) for name in names} if compared and len(rows) > 1 else {}
    for row in rows:
        cells = [_cell(row[name], best.get(name)) for name in names]
        table.add_row(Text(_plain(row[first])), *cells, f"{row['n']:,}" if row["n"] else "–")
    return table


def _table(title: str | None) -> Table:
    heading = Text(_plain(title)) if title else None
    return Table(
        title=heading,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        pad_edge=False,
    )


def _cell(figure: Mapping[str, Any] | None, best: float | None) -> Text:
    if figure is None:
        return Text("–", style="dim")
    text = Text(_number(figure["value"]), style="bold" if figure["value"] == best else "")
    if figure["low"] is not None:
        text.append(f" [{_number(figure['low'])}–{_number(figure['high'])}]", style="not bold dim")
    return text


def _row(start: Row, figures: Mapping[str, Any], columns: Sequence[str]) -> Row:
    found = {name: figures.get(name) for name in columns}
    return {**start, "n": max((figure["n"] for figure in figures.values()), default=0), **found}


def _columns(figures: Sequence[Mapping[str, Any]], columns: Sequence[str] | None) -> list[str]:
    if columns is not None:
        return list(columns)
    return [name for name in CHIEF if any(name in row for row in figures)][:2]


def _best(name: str, rows: Sequence[Row]) -> float | None:
    values = [row[name]["value"] for row in rows if row[name] is not None]
    return (max if higher_is_better(name) else min)(values, default=None)


def _heading(name: str) -> str:
    words = {
        "nll": "NLL",
        "f1": "F1",
        "macro_f1": "macro F1",
        "micro_f1": "micro F1",
        "mean_average_precision": "mAP",
    }
    words["average_precision"] = "AP"
    return words.get(name, name.replace("_", " "))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _plain(name: str) -> str:
    """Line breaks and control codes written out: a class name may not steer the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)
