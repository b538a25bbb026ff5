"""The notebook examples/tour.ipynb executed from the top, and how long that takes.

    python -m benchmarks.tour [--keep EXECUTED.ipynb]

A cell that fails ends it with that cell's traceback. --keep writes the executed notebook elsewhere.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from benchmarks.harness import Options, Record, by_seed, one_off, seconds_of

LIMIT = 600  # seconds of one cell
TEXT = (
    "`python -m benchmarks.tour`: `{path}`, executed from the top: {seconds:.0f} s (goal: under 120 s) on {cores} "
    "cores, {cells} cells, {mb:.1f} MB with all that it shows; it ends with {last}."
)


def measure(options: Options, path: str, seed: int) -> Record:
    """Execute the notebook. Raises CellExecutionError."""
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    seconds = seconds_of(NotebookClient(notebook, timeout=LIMIT).execute)
    if options.keep != Path():
        options.keep.write_text(json.dumps(notebook), encoding="utf-8")
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output["data"]["text/plain"] for output in outputs if "text/plain" in output.get("data", {})]
    return {
        "path": path,
        "seconds": seconds,
        "cores": len(os.sched_getaffinity(0)),
        "cells": len(notebook.cells),
        "mb": len(json.dumps(notebook)) / 1e6,
        "last": str(texts[-1]),
    }


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a sentence."""
    return [TEXT.format(**record) for record in records]


if __name__ == "__main__":
    cases, settings = {"tour": "examples/tour.ipynb"}, {"keep": Path()}
    one_off("tour", __doc__, by_seed(measure, cases), lines=lines, settings=settings, data=False).main()
