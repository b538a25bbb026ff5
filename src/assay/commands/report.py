"""report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.commands.shared import NOTHING_WRITTEN, AsJson, Device, print_json, watching
from assay.endings import reported


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or not.")],
    pictures: Annotated[
        int, typer.Option("--map", min=0, metavar="N", help="The most pictures on the map; 0 draws none.")
    ] = 5000,
    perplexity: Annotated[float, typer.Option(min=1, help="Of t-SNE: how many neighbours a picture has.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures drawn, and of t-SNE.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write RUN/report.html, the page of a run; also while it trains, or after it was stopped."""
    with reported(None, stopped=NOTHING_WRITTEN), watching(as_json) as watch:
        from assay.evidence.embedding import Setting
        from assay.evidence.report import write_report
        from assay.training.hardware import pick_device

        path = write_report(run, setting=Setting(pictures, perplexity, seed), device=pick_device(device), watch=watch)
        if as_json:
            print_json({"report": str(path)})
        else:
            typer.echo(f"The report is {path}. Open it in a browser; it needs no network.")
