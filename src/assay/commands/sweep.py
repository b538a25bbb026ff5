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
    exit_codes,
    print_json,
    require_one_process,
    shown_progress,
)


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
    with exit_codes(None, stopped=GOES_ON), shown_progress(as_json) as progress:
        require_one_process("assay sweep")
        from rich.console import Console

        from assay.experiments.sweep import BEST
        from assay.experiments.sweep import sweep as search
        from assay.messages import text_table
        from assay.plan.plan import from_source
        from assay.report import sweep_page
        from assay.report.sweep_page import write_sweep_page

        loaded = from_source(source, recipe=recipe, overrides=tuple(changes or ()))
        found = search(loaded, folder, trials=trials, device=device, progress=progress)
        sweep_page.write(found, folder)
        page = write_sweep_page(found, folder)
        if as_json:
            print_json({"run": str(folder), **found.to_json()})
            return
        console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 130)
        title = f"Validation {found.metric} of {len(found.rows)} trials"
        console.print(text_table(sweep_page.columns(found), sweep_page.rows(found), right=("seconds",), title=title))
        best = shlex.quote(str(folder / BEST))
        typer.echo(f"{sweep_page.basis(found)}.\nThe table is in {folder}/sweep.csv and .json, the page in {page}.")
        typer.echo("To train the best plan:\n")
        typer.echo(f"    assay train {best} --run {shlex.quote(f'{folder}-best')}\n")
