"""demo."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from assay.commands.shared import GOES_ON, AsJson, exit_codes, print_json, require_one_process, shown_progress

HEADER = ("trained on", "validation accuracy", "difference to the first", "seconds")


def demo(
    run: Annotated[Path, typer.Option(metavar="DIR", help="Where to; the images go to DIR-images.")] = Path(
        "runs/demo"
    ),
    as_json: AsJson = False,
) -> None:
    """The whole story on built-in images: labels that are missing and wrong, and what repairs give back."""
    with exit_codes(run, stopped=GOES_ON), shown_progress(as_json) as progress:
        require_one_process("assay demo")
        from rich.console import Console

        from assay.experiments.demo import run_demo, write_digits, write_labels
        from assay.messages import text_table
        from assay.report.report import draw_run

        images = Path(f"{run}-images")
        write_digits(images)
        write_labels(images)
        chapters = run_demo(images, run, recipe="demo", progress=progress, draw=draw_run)
        if as_json:
            print_json([chapter.to_json() for chapter in chapters])
            return
        n = chapters[0].metric.n
        title = f"Handwritten digits: 60 % of the training labels hidden, 15 % of the rest wrong; n = {n}, labels true"
        console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 110)
        rows = [chapter.cells for chapter in chapters]
        console.print(text_table(HEADER, rows, right=("seconds",), title=title))
        folder = shlex.quote(str(run))
        typer.echo(f"The repaired run is in {run}. What was changed, and how to label images with it:\n")
        typer.echo(f"    assay ledger {folder}\n    assay predict {folder} IMAGES --out labels.csv\n")
