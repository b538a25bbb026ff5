"""Plots of the documents, for light pages and for dark ones."""

from pathlib import Path

from assay.report.charts import BLUE, GRID, INK, ORANGE, QUIET, Chart, save

DARK = {"white": "#0d1117", INK: "#e6edf3", QUIET: "#9198a1", GRID: "#30363d", BLUE: "#58a6ff", ORANGE: "#f0883e"}
"""The colours of a light page, and what a dark one has for them."""


def save_both(chart: Chart, path: Path) -> None:
    """Write a chart as `path`.svg, and for dark pages as `path`-dark.svg."""
    light = path.with_suffix(".svg")
    save(chart, light)
    drawn = light.read_text(encoding="utf-8")
    for colour, dark in DARK.items():
        drawn = drawn.replace(f'"{colour}"', f'"{dark}"')
    path.with_name(f"{path.name}-dark.svg").write_text(drawn, encoding="utf-8")
