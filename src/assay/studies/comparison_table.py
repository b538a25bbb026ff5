"""The table of a comparison, as text."""

from __future__ import annotations

from collections.abc import Iterator

from assay.studies.ablation_table import shown
from assay.studies.compare import Comparison, Row

COLUMNS = ("figure", "run", "value", "difference to the first", "so")


def rows(found: Comparison) -> list[list[str]]:
    """A row a figure and run, as `COLUMNS` says: all figures over the heads together, and the headline of each head."""
    told = (row for row in found.told if not row.head or row.figure == found.figure)
    return [line for row in told for line in _lines(found, row)]


def test_lines(found: Comparison) -> list[str]:
    """What McNemar's test says of each head and run, a line each."""
    names = [entry.name for entry in found.entries]
    return [
        f"{overlap.head.name}: only {names[0]} right {overlap.test.only_first:,}, only {names[overlap.place]} "
        f"{overlap.test.only_second:,}; McNemar p = {overlap.test.p:.2g}{' (exact)' if overlap.test.exact else ''}"
        for overlap in found.overlaps
        if overlap.test
    ]


def _lines(found: Comparison, row: Row) -> Iterator[list[str]]:
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
