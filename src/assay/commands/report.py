"""report."""

from __future__ import annotations

from typing import Annotated

import typer

from assay.commands.options import AnyRun, AsJson, Device
from assay.commands.output import command
from assay.labels.paths import require_run


def report(
    run: AnyRun,
    images: Annotated[
        int, typer.Option("--map", min=0, metavar="N", help="The most images on the map; 0 draws none.")
    ] = 5000,
    perplexity: Annotated[float, typer.Option(min=1, help="Of t-SNE: how many neighbours an image has.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the images drawn, and of t-SNE.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write RUN/report.html, the page of a run; also while it trains, or after it was stopped."""
    with command(as_json, reading=run) as out:
        require_run(run)
        from assay.report.report import write_charts, write_report
        from assay.report.sections.feature_map import MapSettings
        from assay.training.devices import pick_device

        write_charts(run)
        settings = MapSettings(images, perplexity, seed)
        page = write_report(run, settings=settings, device=pick_device(device), progress=out.progress)
        out.print({"report": str(page)}, [f"The report is {page}. Open it in a browser; it needs no network."])
