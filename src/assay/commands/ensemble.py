"""ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from assay.commands.endings import GOES_ON
from assay.commands.options import AsJson, Device, StopAt
from assay.commands.output import command, print_run
from assay.labels.paths import require_run


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
    stop_at: StopAt = None,
    as_json: AsJson = False,
) -> None:
    """Combine finished runs into one: an ensemble of their models, or the mean of their weights."""
    with command(as_json, run=out, stopped=GOES_ON, until=stop_at, reading=", ".join(map(str, runs))) as terminal:
        require_run(*runs)
        from assay.commands.api import draw
        from assay.experiments.ensemble_runs import ensemble_runs

        options = {"kind": kind, "mean": mean, "weights": weights, "pick": pick}
        run = ensemble_runs(
            runs,
            out=out,
            settings={name: value for name, value in options.items() if value is not None},
            then=[{name: {}} for name in then or ()],
            device=device,
            progress=terminal.progress,
            draw=draw,
        )
        print_run(terminal, run)
