"""ablate."""

from __future__ import annotations

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


def ablate(  # noqa: PLR0913  (every option is a parameter)
    source: Source,
    *,
    recipe: Recipe = None,
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to. runs/ and the name of the plan.")] = None,
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
    figure: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of validation: macro_f1, HEAD/accuracy. The headline.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure what each repair is worth: the plan, and the plan without it, side by side."""
    folder = run or default_run(source)
    with reported(folder, stopped=GOES_ON), watching(as_json) as watch:
        require_one_process("assay ablate")
        from rich.console import Console

        from assay.evidence.tables import text_table
        from assay.plan import from_source
        from assay.studies import ablation_table
        from assay.studies.ablate import ablate as measure

        found = measure(
            from_source(source, recipe=recipe, overrides=tuple(changes or ())),
            folder,
            without=tuple(without or ()),
            alternatives=tuple(alternative or ()),
            seeds=seeds,
            figure=figure,
            device=device,
            watch=watch,
        )
        ablation_table.write(found, folder)
        if as_json:
            print_json({"run": str(folder), **found.to_json()})
            return
        console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 130)
        rows = ablation_table.rows(found)
        console.print(text_table(ablation_table.COLUMNS, rows, right=("seconds",), title=ablation_table.named(found)))
        typer.echo(f"{found.basis}.\nThe table is in {folder}/ablation.md, .csv and .json.")
