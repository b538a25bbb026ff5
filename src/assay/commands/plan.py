"""plan."""

from __future__ import annotations

from typing import Annotated

import typer

from assay.commands.endings import NO_RUN
from assay.commands.options import AsJson, Changes, Device, Out, Recipe, Source, default_images
from assay.commands.output import command


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
    with command(as_json, stopped=NO_RUN, alone="plan") as terminal:
        from assay.experiments.peak import memory_of
        from assay.experiments.preview import preview
        from assay.plan.plan import from_source
        from assay.report.dry_run_table import blocks
        from assay.report.rate_charts import write_schedule

        folder = out or default_images(source)
        estimate = preview(
            from_source(source, recipe=recipe, overrides=tuple(changes or ())),
            folder,
            with_layers=layers,
            memory=None if memory is None else (memory, memory_of(memory)),
            device=device,
            progress=terminal.progress,
        )
        images = [write_schedule(estimate, folder), *estimate.images]
        record = {**estimate.to_json(), "images": [str(path) for path in images]}
        terminal.print(record, blocks(estimate, images))
