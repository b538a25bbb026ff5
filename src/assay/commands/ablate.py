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
    exit_codes,
    print_json,
    require_one_process,
    shown_progress,
)


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
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of validation: macro_f1, HEAD/accuracy. The headline.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure what each repair is worth: the plan, and the plan without it, side by side."""
    folder = run or default_run(source)
    with exit_codes(folder, stopped=GOES_ON), shown_progress(as_json) as progress:
        require_one_process("assay ablate")
        from rich.console import Console

        from assay.experiments.ablate import ablate as measure
        from assay.messages import text_table
        from assay.plan.plan import from_source
        from assay.report import ablation_table

        found = measure(
            from_source(source, recipe=recipe, overrides=tuple(changes or ())),
            folder,
            without=tuple(without or ()),
            alternatives=tuple(alternative or ()),
            seeds=seeds,
            metric=metric,
            device=device,
            progress=progress,
        )
        ablation_table.write(found, folder)
        if as_json:
            print_json({"run": str(folder), **found.to_json()})
            return
        console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 130)
        rows = ablation_table.rows(found)
        console.print(text_table(ablation_table.COLUMNS, rows, right=("seconds",), title=ablation_table.named(found)))
        typer.echo(f"{found.basis}.\nThe table is in {folder}/ablation.md, .csv and .json.")
