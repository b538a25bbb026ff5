"""combine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from assay.commands.shared import GOES_ON, AsJson, Device, tell_run, watching
from assay.endings import reported


def combine(  # noqa: PLR0913  (every option is a parameter)
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Finished runs on the same data.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run to write.")],
    kind: Annotated[
        Literal["committee", "soup"], typer.Option(help="committee: a mean of answers; soup: of weights.")
    ] = "committee",
    mean: Annotated[
        Literal["probabilities", "logits"] | None, typer.Option(help="What a committee takes the mean of.")
    ] = None,
    weights: Annotated[
        Literal["equal", "validation"] | None, typer.Option(help="How a committee weighs its members.")
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
    """Combine finished runs into one: a committee of their models, or the mean of their weights."""
    with reported(out, stopped=GOES_ON), watching(as_json) as watch:
        from assay.studies.combine import combine as combined

        told = {"kind": kind, "mean": mean, "weights": weights, "pick": pick}
        settings: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
        further: list[dict[str, Any]] = [{name: {}} for name in then or ()]
        tell_run(combined(runs, out=out, settings=settings, then=further, device=device, watch=watch), as_json)
