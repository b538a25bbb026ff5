"""plan."""

from __future__ import annotations

import sys
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
    default_pictures,
    print_json,
    require_one_process,
    watching,
)
from assay.endings import reported

if TYPE_CHECKING:
    from assay.studies.preview import Preview


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
    """Show what a plan will do before it is trained: rates, augmented pictures, parameters, time and memory."""
    with reported(stopped=NO_RUN), watching(as_json) as watch:
        require_one_process("assay plan")
        from assay.plan import from_source
        from assay.studies.peak import memory_of
        from assay.studies.preview import preview

        found = preview(
            from_source(source, recipe=recipe, overrides=tuple(changes or ())),
            out or default_pictures(source),
            with_layers=layers,
            memory=None if memory is None else (memory, memory_of(memory)),
            device=device,
            watch=watch,
        )
        if as_json:
            print_json(found.to_json())
        else:
            _print(found)


def _print(found: Preview) -> None:
    from rich.console import Console

    from assay.evidence.tables import text_table
    from assay.studies import preview_table

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 130)
    if found.layers:
        console.print(text_table(preview_table.LAYERS, preview_table.layer_rows(found), right=("parameters",)))
    columns = preview_table.columns(found)
    console.print(text_table(columns, preview_table.rows(found), right=columns[1:]))
    for line in preview_table.notes(found):
        typer.echo(line)
