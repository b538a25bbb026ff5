"""sweep."""

from __future__ import annotations

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


def sweep(  # noqa: PLR0913  (every option is a parameter)
    source: Source,
    *,
    recipe: Recipe = None,
    run: PlanRun = None,
    changes: Changes = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Trials in all; else what the plan says.")
    ] = None,
    device: Device = None,
    executor: RunExecutor = None,
    workers: RunsAtOnce = None,
    stop_at: StopAt = None,
    as_json: AsJson = False,
) -> None:
    """Search for the best values of a plan: what its `sweep:` says. Start it several times to share the work."""
    folder = run or default_run(source)
    with command(as_json, stopped=GOES_ON, until=stop_at, alone="sweep", reading=source) as out:
        require_source(source)
        spread = elsewhere(executor, workers, device, out.progress, otherwise="start the command several times")
        from assay.experiments.sweep import sweep as search
        from assay.plan.plan import from_source
        from assay.report.sweep_page import blocks, write, write_sweep_page

        loaded = from_source(source, recipe=recipe, overrides=tuple(changes or ()))
        result = search(loaded, folder, trials=trials, device=device, progress=out.progress, spread=spread)
        write(result, folder)
        page = write_sweep_page(result, folder)
        out.print({"run": str(folder), **result.to_json()}, blocks(result, folder, page))
