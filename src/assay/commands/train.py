"""train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.commands.shared import (
    GOES_ON,
    AsJson,
    Changes,
    Device,
    Recipe,
    Source,
    default_run,
    tell_run,
    watching,
)
from assay.endings import reported


def train(
    source: Source,
    recipe: Recipe = None,
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to. runs/ and the name of the data.")] = None,
    changes: Changes = None,
    device: Device = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse broken pictures instead of leaving them out.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier, or go on where the same command was stopped."""
    folder = run or default_run(source)
    with reported(folder, stopped=GOES_ON), watching(as_json) as watch:
        import assay.run

        finished = assay.run.train(
            source,
            run=folder,
            recipe=recipe,
            overrides=tuple(changes or ()),
            device=device,
            strict=strict,
            watch=watch,
        )
        tell_run(finished, as_json)
