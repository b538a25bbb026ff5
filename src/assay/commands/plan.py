"""plan."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from assay.commands.endings import NO_RUN
from assay.commands.options import (
    AsJson,
    Changes,
    Device,
    Metric,
    NoRepairs,
    Out,
    Recipe,
    Source,
    default_images,
    metric_change,
    repairs_change,
)
from assay.commands.output import command
from assay.errors import PlanError
from assay.labels.paths import require_source

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def plan(  # noqa: PLR0913  (every option is a parameter)
    source: Source,
    *,
    recipe: Recipe = None,
    metric: Metric = None,
    changes: Changes = None,
    no_repairs: NoRepairs = False,
    out: Out = None,
    layers: Annotated[bool, typer.Option("--layers", help="List the layers of the network too.")] = False,
    memory: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="Name the largest batch of each fit for so much: 4GB.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show what a plan will do before it is trained: rates, augmented images, parameters, time and memory."""
    with command(as_json, stopped=NO_RUN, alone="plan", reading=source) as terminal:
        require_source(source)
        from assay.experiments.dry_run import dry_run
        from assay.models.classifier import AUTO, DEFAULT_BACKBONE
        from assay.plan.plan import from_source, with_backbone
        from assay.report.dry_run_table import blocks
        from assay.report.rate_charts import write_schedule

        folder = out or default_images(source)
        given = (*metric_change(metric), *repairs_change(no_repairs), *(changes or ()))
        loaded = from_source(source, recipe=recipe, overrides=given)
        if loaded.plan.model.backbone == AUTO:
            terminal.progress.line(f"backbone: {AUTO}: training chooses one; the estimates are of {DEFAULT_BACKBONE}")
            loaded = with_backbone(loaded, DEFAULT_BACKBONE)
        estimate = dry_run(
            loaded,
            folder,
            with_layers=layers,
            memory=None if memory is None else (memory, memory_of(memory)),
            device=device,
            progress=terminal.progress,
        )
        images = [write_schedule(estimate, folder), *estimate.sheets]
        record = {**estimate.to_json(), "images": [str(path) for path in images]}
        terminal.print(record, blocks(estimate, images))


def memory_of(text: str) -> float:
    """Return the MiB of an amount such as 4GB, 512MB or 1.5GiB. Raises PlanError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", text, re.IGNORECASE)
    amount = float(match[1]) * UNITS[match[2].upper()] / 2**20 if match else 0.0
    if amount <= 0:
        raise PlanError(
            f"--memory {text}: is no amount of memory. Give a number above 0 and its unit, such as 4GB, 512MB, 1.5GiB."
        )
    return amount
