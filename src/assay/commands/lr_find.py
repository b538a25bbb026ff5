"""lr-find."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.commands.endings import NO_RUN
from assay.commands.options import AsJson, Changes, Device, Out, Recipe, Source, default_images, default_run
from assay.commands.output import command
from assay.labels.paths import require_source


def lr_find(  # noqa: PLR0913  (every option is a parameter)
    source: Source,
    *,
    step: Annotated[
        int | None, typer.Option(metavar="N", help="The fit to try, counted from 0 as in --set. The first one.")
    ] = None,
    lowest: Annotated[float, typer.Option(metavar="LR", help="The rate to begin at.")] = 1e-6,
    highest: Annotated[float, typer.Option(metavar="LR", help="The rate to end at.")] = 1.0,
    optimizer_steps: Annotated[int, typer.Option(metavar="N", help="Optimiser steps from the one to the other.")] = 100,
    recipe: Recipe = None,
    changes: Changes = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A run that has the steps before the fit. runs/ and the data's name."),
    ] = None,
    out: Out = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Try learning rates for a fit on a copy of its model, and suggest one."""
    with command(as_json, stopped=NO_RUN, alone="lr-find", reading=source) as terminal:
        require_source(source)
        from assay.experiments.lr_finder import Bounds, run_range_test, top_of
        from assay.plan.plan import from_source
        from assay.report.rate_charts import write_range_test

        test = run_range_test(
            from_source(source, recipe=recipe, overrides=tuple(changes or ())),
            run=run or default_run(source),
            bounds=Bounds(lowest, highest, optimizer_steps),
            step=step,
            device=device,
            progress=terminal.progress,
        )
        chart = write_range_test(test, out or default_images(source))
        lines = (
            f"{test.name}: {test.suggestion.reason}.",
            f"The plan has {top_of(test.settings):g}. To take what is suggested: --set '{test.change}'"
            if test.change
            else "No learning rate is suggested.",
            f"It rests on {test.basis.removesuffix('.')}.",
            f"written: {chart}",
        )
        terminal.print({**test.to_json(), "image": str(chart)}, lines)
