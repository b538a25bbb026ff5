"""plan."""

from __future__ import annotations

import re
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
from assay.errors import PlanError

if TYPE_CHECKING:
    from assay.experiments.dry_run import DryRun

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


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
        from assay.experiments.dry_run import dry_run
        from assay.plan.plan import from_source
        from assay.report.rate_charts import write_schedule

        folder = out or default_images(source)
        preview = dry_run(
            from_source(source, recipe=recipe, overrides=tuple(changes or ())),
            folder,
            with_layers=layers,
            memory=None if memory is None else (memory, memory_of(memory)),
            device=device,
            progress=progress,
        )
        images = [write_schedule(preview, folder), *preview.sheets]
        if as_json:
            print_json({**preview.to_json(), "images": [str(path) for path in images]})
        else:
            _print(preview, images)


def _print(preview: DryRun, images: Sequence[Path]) -> None:
    from rich.console import Console

    from assay.messages import text_table
    from assay.report import dry_run_table

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 130)
    if preview.layers:
        console.print(text_table(dry_run_table.LAYERS, dry_run_table.layer_rows(preview), right=("parameters",)))
    columns = dry_run_table.columns(preview)
    console.print(text_table(columns, dry_run_table.rows(preview), right=columns[1:]))
    for line in dry_run_table.notes(preview, images):
        typer.echo(line)


def memory_of(text: str) -> float:
    """MiB of an amount such as 4GB, 512MB or 1.5GiB. Raises PlanError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", text, re.IGNORECASE)
    amount = float(match[1]) * UNITS[match[2].upper()] / 2**20 if match else 0.0
    if amount <= 0:
        raise PlanError(
            f"--memory {text}: is no amount of memory. Give a number above 0 and its unit, such as 4GB, 512MB, 1.5GiB."
        )
    return amount
