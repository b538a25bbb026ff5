"""serve."""

from __future__ import annotations

from typing import Annotated

import typer

from assay.commands.options import Device, FinishedRun, model_of
from assay.commands.output import command
from assay.labels.paths import require_run

PUBLIC = (
    "Anybody who reaches this address may ask, and sees training images that are like theirs. "
    "Give a --token, or --no-explain."
)


def serve(  # noqa: PLR0913  (every option is a parameter)
    run: FinishedRun,
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="0.0.0.0: for other machines too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0: any free one.")] = 8000,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes, each with the model in memory.")] = 1,
    token: Annotated[
        str | None, typer.Option(metavar="TEXT", envvar="ASSAY_TOKEN", help="What requests must know.")
    ] = None,
    max_mb: Annotated[float, typer.Option(metavar="MB", min=0.001, help="Of a request.")] = 20,
    max_pixels: Annotated[float, typer.Option(metavar="M", min=0.001, help="Millions, of an image.")] = 50,
    max_images: Annotated[int, typer.Option(metavar="N", min=1, help="Of a request.")] = 32,
    max_requests: Annotated[int, typer.Option(metavar="N", min=1, help="At a time, of each process.")] = 64,
    max_seconds: Annotated[float, typer.Option(metavar="S", min=0.1, help="Of a request.")] = 30,
    explain: Annotated[
        bool, typer.Option("--explain/--no-explain", help="Grad-CAM and the nearest training images.")
    ] = True,
    device: Device = None,
) -> None:
    """Answer requests for predictions over HTTP, with a page to drop images on."""
    with command(alone="serve", reading=run) as starting:
        require_run(run)
        from assay.apps.serve.requests import Limits
        from assay.apps.serve.start import ServeSettings
        from assay.apps.serve.start import serve as answer_requests
        from assay.apps.serving import LOCAL
        from assay.files import RunFolder
        from assay.messages import printable

        def started(address: str) -> None:
            starting.close()
            typer.echo(f"{printable(run)} answers at\n\n    {address}\n")
            typer.echo(f"The page is there, all requests at {address}docs. Ctrl-C ends it.")
            if host not in LOCAL and token is None and explain:
                typer.echo(f"note: {PUBLIC}")

        limits = Limits(
            bytes=round(max_mb * 1e6),
            pixels=round(max_pixels * 1e6),
            images=max_images,
            requests=max_requests,
            seconds=max_seconds,
        )
        settings = ServeSettings(
            model=model_of(run),
            run=run if RunFolder(run).is_read else None,
            host=host,
            port=port,
            workers=workers,
            device=device,
            token=token or None,
            limits=limits,
            explains=explain,
        )
        answer_requests(settings, progress=starting.progress, started=started)
