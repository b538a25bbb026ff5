"""report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.commands.shared import NOTHING_WRITTEN, AsJson, Device, exit_codes, print_json, shown_progress


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or not.")],
    images: Annotated[
        int, typer.Option("--map", min=0, metavar="N", help="The most images on the map; 0 draws none.")
    ] = 5000,
    perplexity: Annotated[float, typer.Option(min=1, help="Of t-SNE: how many neighbours an image has.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the images drawn, and of t-SNE.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write RUN/report.html, the page of a run; also while it trains, or after it was stopped."""
    with exit_codes(None, stopped=NOTHING_WRITTEN), shown_progress(as_json) as progress:
        from assay.report.embedding import Setting
        from assay.report.report import write_charts, write_report
        from assay.training.devices import pick_device

        write_charts(run)
        path = write_report(
            run, setting=Setting(images, perplexity, seed), device=pick_device(device), progress=progress
        )
        if as_json:
            print_json({"report": str(path)})
        else:
            typer.echo(f"The report is {path}. Open it in a browser; it needs no network.")
