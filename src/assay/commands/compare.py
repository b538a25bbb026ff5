"""compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.commands.options import AsJson
from assay.commands.output import command
from assay.labels.paths import require_run


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Finished runs; the first is the measure.")],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page to write.")] = Path("comparison.html"),
    test: Annotated[
        bool,
        typer.Option("--test", help="On test images, where every run has opened its test split; each log notes it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare finished runs with the first: metrics, plans, curves, and the images on which they disagree."""
    with command(as_json, reading=", ".join(map(str, runs))) as terminal:
        require_run(*runs)
        from assay.experiments.compare import compare as compare_runs
        from assay.report.comparison_page import blocks, require_page, write_comparison

        require_page(out)
        comparison = compare_runs(runs, part="test" if test else "val")
        page = write_comparison(out, comparison)
        terminal.print({"page": str(page), **comparison.to_json()}, blocks(comparison, page))
