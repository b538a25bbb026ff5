"""train."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from assay.commands.endings import GOES_ON
from assay.commands.options import (
    AsJson,
    Changes,
    Device,
    Metric,
    NoRepairs,
    Recipe,
    RunExecutor,
    Source,
    StopAt,
    audit_change,
    command_line,
    default_run,
    metric_change,
    minutes_change,
    repairs_change,
    require_ray,
)
from assay.commands.output import command, hash_ahead, print_run
from assay.errors import RunError
from assay.labels.paths import require_source
from assay.progress import TORCHRUN


def train(  # noqa: PLR0913  (every option is a parameter)
    source: Source,
    *,
    recipe: Recipe = None,
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to. runs/ and the name of the data.")] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An audit of the data: copies go to one side of the split.")
    ] = None,
    metric: Metric = None,
    changes: Changes = None,
    minutes: Annotated[
        str | None, typer.Option(metavar="M", help="Do all of it, report included, in so many minutes.")
    ] = None,
    no_repairs: NoRepairs = False,
    device: Device = None,
    executor: RunExecutor = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="With --executor ray: processes that train together, as by torchrun."),
    ] = None,
    stop_at: StopAt = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse broken images instead of leaving them out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier, or continue where the same command was stopped."""
    started, folder = time.monotonic(), run or default_run(source)
    alone = "train --executor ray" if executor == "ray" else ""
    with command(as_json, run=folder, stopped=GOES_ON, until=stop_at, alone=alone, reading=source) as out:
        require_source(source)
        given = (*metric_change(metric), *repairs_change(no_repairs), *(changes or ()), *minutes_change(minutes))
        changes = [*audit_change(audit), *given]
        on_ray = require_ray(executor, workers, otherwise=f"start the processes by {TORCHRUN}")
        if on_ray and workers is None:
            raise RunError("--executor ray: how many processes train together is part of a run. Say it: --workers 2")
        if not on_ray:
            hash_ahead(source, changes)
        from assay.commands.api import train as train_plan

        train_run = partial(train_plan, source, run=folder, recipe=recipe, overrides=tuple(changes), strict=strict)
        if on_ray and workers is not None:
            from assay.run.train import load
            from assay.scale.runs_on_ray import train_together

            train_together(train_run, folder, workers=workers, device=device, progress=out.progress)
            finished = load(folder)
        else:
            from assay.run.environment import process_began

            finished = train_run(device=device, progress=out.progress, began=process_began() or started)
        print_run(out, finished, again=command_line(source, run=folder, recipe=recipe, changes=changes))
