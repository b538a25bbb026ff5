"""shard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from assay.commands.endings import GOES_ON
from assay.commands.options import AsJson, Changes, Source
from assay.commands.output import command
from assay.labels.paths import require_source


def shard(
    source: Source,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the shards.")],
    size: Annotated[str, typer.Option(metavar="BYTES", help="Bytes of images in a shard, at most.")] = "256MB",
    form: Annotated[
        Literal["tar", "parquet"], typer.Option("--format", help="tar: as WebDataset; parquet: as Hugging Face.")
    ] = "tar",
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Write images and labels into few large files; the same command goes on where it was stopped."""
    with command(as_json, stopped=GOES_ON, reading=source) as terminal:
        require_source(source)
        from assay.labels.readers.read import read_to_look_at
        from assay.labels.writers.shards import list_shards, parse_bytes, write_shards
        from assay.plan.plan import from_source

        loaded = from_source(source, overrides=tuple(changes or ()))
        limit = parse_bytes(size)
        samples = read_to_look_at(loaded.plan.data, base=loaded.base)
        shards = list_shards(samples, size=limit, form=form)
        terminal.progress.begin("writing", len(samples))
        written = write_shards(samples, shards, out, wrote=terminal.progress.advance)
        terminal.progress.end()
        record = {"out": str(out), "format": form, "images": len(samples), "shards": len(shards.names), "new": written}
        notes = [*samples.notes, *(f"left out: {one.path}: {one.reason}" for one in samples.left_out[:5])]
        lines = [f"{out}: {len(samples):,} images in {len(shards.names):,} shards, {written:,} of them new"]
        again = f"to train on them: assay train {out}"
        terminal.print(record | {"notes": notes}, [*lines, *(f"note: {note}" for note in notes), again])
