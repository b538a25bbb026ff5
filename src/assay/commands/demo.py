"""demo."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from assay.commands.shared import GOES_ON, AsJson, print_json, require_one_process, watching
from assay.endings import reported

HEADER = ("trained on", "validation accuracy", "difference to the first", "seconds")


def demo(
    run: Annotated[Path, typer.Option(metavar="DIR", help="Where to; the pictures go to DIR-pictures.")] = Path(
        "runs/demo"
    ),
    as_json: AsJson = False,
) -> None:
    """The whole story on built-in pictures: labels that are missing and wrong, and what repairs give back."""
    with reported(run, stopped=GOES_ON), watching(as_json) as watch:
        require_one_process("assay demo")
        from rich.console import Console

        from assay.demo import write_digits, write_labels
        from assay.evidence.tables import text_table
        from assay.studies.story import story

        pictures = Path(f"{run}-pictures")
        write_digits(pictures)
        write_labels(pictures)
        chapters = story(pictures, run, recipe="demo", watch=watch)
        if as_json:
            print_json([chapter.to_json() for chapter in chapters])
            return
        n = chapters[0].figure.n
        title = f"Handwritten digits: 60 % of the training labels hidden, 15 % of the rest wrong; n = {n}, labels true"
        console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 110)
        rows = [chapter.cells for chapter in chapters]
        console.print(text_table(HEADER, rows, right=("seconds",), title=title))
        folder = shlex.quote(str(run))
        typer.echo(f"The repaired run is in {run}. What was changed, and how to label pictures with it:\n")
        typer.echo(f"    assay ledger {folder}\n    assay predict {folder} PICTURES --out labels.csv\n")
