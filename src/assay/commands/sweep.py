"""sweep."""

from __future__ import annotations

import shlex
import sys
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
    print_json,
    require_one_process,
    watching,
)
from assay.endings import reported


def sweep(
    source: Source,
    *,
    recipe: Recipe = None,
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to. runs/ and the name of the plan.")] = None,
    changes: Changes = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Trials in all; else what the plan says.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Search for the best values of a plan: what its `sweep:` says. Start it several times to share the work."""
    folder = run or default_run(source)
    with reported(None, stopped=GOES_ON), watching(as_json) as watch:
        require_one_process("assay sweep")
        from rich.console import Console

        from assay.evidence.tables import text_table
        from assay.plan import from_source
        from assay.studies import sweep_table
        from assay.studies.sweep import BEST
        from assay.studies.sweep import sweep as search
        from assay.studies.sweep_page import write_sweep_page

        loaded = from_source(source, recipe=recipe, overrides=tuple(changes or ()))
        found = search(loaded, folder, trials=trials, device=device, watch=watch)
        sweep_table.write(found, folder)
        page = write_sweep_page(found, folder)
        if as_json:
            print_json({"run": str(folder), **found.to_json()})
            return
        console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 130)
        title = f"Validation {found.figure} of {len(found.rows)} trials"
        console.print(text_table(sweep_table.columns(found), sweep_table.rows(found), right=("seconds",), title=title))
        best = shlex.quote(str(folder / BEST))
        typer.echo(f"{sweep_table.basis(found)}.\nThe table is in {folder}/sweep.csv and .json, the page in {page}.")
        typer.echo("To train the best plan:\n")
        typer.echo(f"    assay train {best} --run {shlex.quote(f'{folder}-best')}\n")
