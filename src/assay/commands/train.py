"""train."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from assay.commands.endings import GOES_ON
from assay.commands.options import (
    AsJson,
    Changes,
    Device,
    Metric,
    Recipe,
    Source,
    StopAt,
    audit_change,
    command_line,
    default_run,
    metric_change,
    minutes_change,
)
from assay.commands.output import command, hash_ahead, print_run


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
    device: Device = None,
    stop_at: StopAt = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse broken images instead of leaving them out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier, or continue where the same command was stopped."""
    started, folder = time.monotonic(), run or default_run(source)
    changes = [*audit_change(audit), *metric_change(metric), *(changes or ())]
    with command(as_json, run=folder, stopped=GOES_ON, until=stop_at, reading=source) as out:
        changes += minutes_change(minutes)
        hash_ahead(source, changes)
        from assay.commands.api import train as train_plan
        from assay.run.environment import process_began

        finished = train_plan(
            source,
            run=folder,
            recipe=recipe,
            overrides=tuple(changes),
            device=device,
            strict=strict,
            progress=out.progress,
            began=process_began() or started,
        )
        print_run(out, finished, again=command_line(source, run=folder, recipe=recipe, changes=changes))
