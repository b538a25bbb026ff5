"""plan."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.commands.shared import (
    NO_RUN,
    AsJson,
    Changes,
    Device,
    Out,
    Recipe,
    Source,
    default_images,
    exit_codes,
    print_json,
    require_one_process,
    shown_progress,
)

if TYPE_CHECKING:
    from assay.experiments.preview import Preview


def plan(
    source: Source,
    *,
    recipe: Recipe = None,
    changes: Changes = None,
    out: Out = None,
    layers: Annotated[bool, typer.Option("--layers", help="List the layers of the network too.")] = False,
    memory: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="Name the largest batch of each fit for so much: 4GB.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show what a plan will do before it is trained: rates, augmented images, parameters, time and memory."""
    with exit_codes(stopped=NO_RUN), shown_progress(as_json) as progress:
        require_one_process("assay plan")
        from assay.experiments.peak import memory_of
        from assay.experiments.preview import preview
        from assay.plan.plan import from_source
        from assay.report.rate_charts import write_schedule

        folder = out or default_images(source)
        found = preview(
            from_source(source, recipe=recipe, overrides=tuple(changes or ())),
            folder,
            with_layers=layers,
            memory=None if memory is None else (memory, memory_of(memory)),
            device=device,
            progress=progress,
        )
        images = [write_schedule(found, folder), *found.images]
        if as_json:
            print_json({**found.to_json(), "images": [str(path) for path in images]})
        else:
            _print(found, images)


def _print(found: Preview, images: Sequence[Path]) -> None:
    from rich.console import Console

    from assay.messages import text_table
    from assay.report import dry_run_table

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 130)
    if found.layers:
        console.print(text_table(dry_run_table.LAYERS, dry_run_table.layer_rows(found), right=("parameters",)))
    columns = dry_run_table.columns(found)
    console.print(text_table(columns, dry_run_table.rows(found), right=columns[1:]))
    for line in dry_run_table.notes(found, images):
        typer.echo(line)
