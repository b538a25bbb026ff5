"""ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from assay.commands.shared import GOES_ON, AsJson, Device, exit_codes, print_run, shown_progress


def ensemble(  # noqa: PLR0913  (every option is a parameter)
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Finished runs on the same data.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run to write.")],
    kind: Annotated[
        Literal["average", "soup"], typer.Option(help="average: a mean of answers; soup: of weights.")
    ] = "average",
    mean: Annotated[
        Literal["probabilities", "logits"] | None, typer.Option(help="What an average takes the mean of.")
    ] = None,
    weights: Annotated[
        Literal["equal", "validation"] | None, typer.Option(help="How an average weighs its members.")
    ] = None,
    pick: Annotated[
        Literal["all", "greedy"] | None, typer.Option(help="What goes into a soup: all, or what validation gains by.")
    ] = None,
    then: Annotated[
        list[str] | None, typer.Option(metavar="STEP", help="A step to follow: calibrate, tune_thresholds.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Combine finished runs into one: an ensemble of their models, or the mean of their weights."""
    with exit_codes(out, stopped=GOES_ON), shown_progress(as_json) as progress:
        from assay.experiments.ensemble_runs import ensemble_runs
        from assay.report.report import draw_run

        told = {"kind": kind, "mean": mean, "weights": weights, "pick": pick}
        settings: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
        further: list[dict[str, Any]] = [{name: {}} for name in then or ()]
        run = ensemble_runs(
            runs, out=out, settings=settings, then=further, device=device, progress=progress, draw=draw_run
        )
        print_run(run, as_json)
