"""review."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from assay.commands.options import Device
from assay.commands.output import command
from assay.labels.paths import require_source

STORED = "Every decision is in the ledger; give the same command to go on."


def review(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_DATA", help="A run, a folder, a table or a plan.")],
    *,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B", help="All classes, of a folder without a folder for each.")
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Of the server. A free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Where decisions on data go. NAME.review.csv beside it.")
    ] = None,
    device: Device = None,
) -> None:
    """Look at images in the browser and settle their labels, by keyboard and in bulk."""
    with command(stopped=STORED, alone="review", reading=source) as opening:
        require_source(source)
        from assay.apps.review.opening import open_review
        from assay.apps.review.server import serve
        from assay.messages import printable

        def started(address: str) -> None:
            typer.echo(f"The review of {printable(source)} is at\n\n    {address}\n")
            typer.echo("Ctrl-C ends it; every decision is stored when it is made.")
            if browser:
                webbrowser.open(address)

        names = [name.strip() for name in (classes or "").split(",") if name.strip()]
        to_review = open_review(source, out=out, classes=names, device=device, progress=opening.progress)
        with to_review as reviewed:
            opening.close()
            serve(reviewed.session, port=port, started=started)
            progress = reviewed.session.progress()
            typer.echo(
                f"{progress['decided']:,} images are decided, {progress['wrong_found']:,} of them had a wrong label. "
                f"The decisions are in {printable(reviewed.decisions)}."
            )
            if progress["decided"]:
                typer.echo(f"To train with them:\n\n    {reviewed.command}\n")
