"""Lines and tables that a run prints about its data and its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from rich.table import Table
from rich.text import Text

from assay.labels.split import SIDES
from assay.messages import MAX_CLASSES_LISTED, bare_table, metric_text, plain


def frequency_lines(heads: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the mean recall of frequent and of rare classes, by thirds, a line for each head."""
    lines = []
    for name, head in heads.items():
        thirds = [row for row in head["by_frequency"] if row["rule"] == "thirds" and row["metrics"]]
        recalls = [f"{row['name']} {metric_text(row['metrics']['recall'])}" for row in thirds]
        if recalls:
            of_head = f" of {plain(name)}" if len(heads) > 1 else ""
            lines.append(f"recall{of_head} by how frequent classes are: {', '.join(recalls)}")
    return lines


def split_tables(frequencies: pl.DataFrame) -> list[Table]:
    """Return the counts of `labels.split.split_table`, a table for each head; splits without images are left out."""
    return [counts_table(rows) for rows in frequencies.partition_by("head", maintain_order=True)]


def counts_table(frequencies: pl.DataFrame, *, most: int = MAX_CLASSES_LISTED) -> Table:
    """Return a table of one head's labelled images by class (rows) and split (columns), with their shares.

    Of more than `most` classes, the rarest are shown. The last row holds the sums over all, or the images
    without a tag.
    """
    held = [side for side in SIDES if frequencies[side].sum()] or ["train"]
    classes = frequencies.drop_nulls("class")
    table = bare_table(None)
    table.add_column(Text(plain(frequencies["head"][0])), overflow="fold")
    for name in (name for side in held for name in (side, "%")):
        table.add_column(name, justify="right")
    total = pl.sum_horizontal(SIDES)
    rarest = classes.with_row_index("order").sort(total, maintain_order=True).head(most).sort("order")
    for row in rarest.rows(named=True):
        table.add_row(Text(plain(row["class"])), *_counted(row, held))
    table.add_section()
    if len(classes) < len(frequencies):
        (none,) = frequencies.filter(pl.col("class").is_null()).rows(named=True)
        table.add_row("no tag", *_counted(none, held), style="bold")
    else:
        sums = (cell for side in held for cell in (f"{frequencies[side].sum():,}", ""))
        table.add_row("all", *sums, style="bold")
    if len(classes) > most:
        table.caption = f"The {most} rarest classes, of {len(classes)}."
    return table


def _counted(row: Mapping[str, Any], sides: Sequence[str]) -> list[str]:
    """Return a count and its share for each split."""
    shares = {side: row[f"{side} share"] for side in sides}
    return [
        cell
        for side, share in shares.items()
        for cell in (f"{row[side]:,}", "–" if share is None else f"{100 * share:.1f}")
    ]
