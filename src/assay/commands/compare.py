"""compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from assay.commands.shared import NOTHING_WRITTEN, AsJson, exit_codes, print_json


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Finished runs; the first is the measure.")],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page to write.")] = Path("comparison.html"),
    as_json: AsJson = False,
) -> None:
    """Hold finished runs against the first: metrics, plans, curves, and the images on which they disagree."""
    with exit_codes(None, stopped=NOTHING_WRITTEN):
        from rich.console import Console

        from assay.experiments.compare import compare as held
        from assay.messages import text_table
        from assay.report import comparison_page
        from assay.report.comparison_page import require_page, write_comparison

        require_page(out)
        found = held(runs)
        path = write_comparison(out, found)
        if as_json:
            print_json({"page": str(path), **found.to_json()})
            return
        console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 130)
        console.print(text_table(comparison_page.COLUMNS, comparison_page.rows(found), title="Validation"))
        for line in comparison_page.test_lines(found):
            typer.echo(line)
        typer.echo(f"{found.basis}.\nThe page is {path}. Open it in a browser; it needs no network.")
