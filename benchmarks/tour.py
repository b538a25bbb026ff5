"""Executes the notebook examples/tour.ipynb from the top, and writes down how long it takes.

    python -m benchmarks.tour [--keep EXECUTED.ipynb]

A cell that fails ends it with that cell's traceback. The committed notebook has no outputs and is not changed; --keep
writes the executed one elsewhere. Writes the section "tour" of docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from benchmarks.page import replace_section

TOUR = Path("examples/tour.ipynb")
SECONDS = 600  # of one cell, at most


def main() -> None:
    """Execute it and write the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="where to write the executed notebook")
    options = parser.parse_args()
    notebook, seconds = executed(TOUR)
    if options.keep is not None:
        options.keep.write_text(nbformat.writes(notebook), encoding="utf-8")
    shown = f"{len(notebook.cells)} cells, {len(json.dumps(notebook)) / 1e6:.1f} MB with all that it shows"
    said = f"{seconds:.0f} s (goal: under 120 s) on {len(os.sched_getaffinity(0))} cores, {shown}; it ends with "
    lines = ["## The notebook", "", f"`{TOUR}`, executed from the top: {said}{last_answer(notebook)}."]
    replace_section("tour", lines)


def executed(path: Path) -> tuple[Any, float]:
    """The notebook with its outputs, and the seconds it took. Raises CellExecutionError."""
    notebook: Any = nbformat.read(path, as_version=4)
    began = time.perf_counter()
    NotebookClient(notebook, timeout=SECONDS).execute()
    return notebook, time.perf_counter() - began


def last_answer(notebook: Any) -> str:
    """What the last cell that shows text says."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return str([output["data"]["text/plain"] for output in outputs if "text/plain" in output.get("data", {})][-1])


if __name__ == "__main__":
    main()
