"""ablate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.commands.endings import GOES_ON
from assay.commands.options import (
    AsJson,
    Changes,
    Device,
    PlanRun,
    Recipe,
    RunExecutor,
    RunsAtOnce,
    Source,
    StopAt,
    default_run,
    elsewhere,
)
from assay.commands.output import command
from assay.labels.paths import require_source


def ablate(  # noqa: PLR0913  (every option is a parameter)
    source: Source,
    *,
    recipe: Recipe = None,
    run: PlanRun = None,
    changes: Changes = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP", help="Leave out this step: --without steps.2. Else each repair in turn."),
    ] = None,
    alternative: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Compare with the plan so changed; `;` between several changes."),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Repeat everything under N seeds.")] = 1,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of validation: macro_f1, HEAD/accuracy. The headline.")
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Right labels of training images (columns image, label): how much of the gap to them repairs close.",
        ),
    ] = None,
    device: Device = None,
    executor: RunExecutor = None,
    workers: RunsAtOnce = None,
    stop_at: StopAt = None,
    as_json: AsJson = False,
) -> None:
    """Measure what each repair is worth: the plan, and the plan without it, side by side."""
    folder = run or default_run(source)
    with command(as_json, run=folder, stopped=GOES_ON, until=stop_at, alone="ablate", reading=source) as out:
        require_source(source)
        spread = elsewhere(executor, workers, device, out.progress, otherwise="runs follow one another")
        from assay.experiments.ablate import ablate as measure
        from assay.plan.plan import from_source
        from assay.report.ablation_table import blocks, write

        ablation = measure(
            from_source(source, recipe=recipe, overrides=tuple(changes or ())),
            folder,
            without=tuple(without or ()),
            alternatives=tuple(alternative or ()),
            seeds=seeds,
            metric=metric,
            truth=truth,
            device=device,
            progress=out.progress,
            spread=spread,
        )
        write(ablation, folder)
        out.print({"run": str(folder), **ablation.to_json()}, blocks(ablation, folder))
