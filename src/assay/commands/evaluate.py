"""evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.commands.shared import NOTHING_WRITTEN, AsJson, RunFolder, print_figures, print_json, watching
from assay.endings import reported


def evaluate(
    run: RunFolder,
    source: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Labelled pictures: a folder a class, a table, or YAML with `data:`."),
    ],
    as_json: AsJson = False,
) -> None:
    """Score on labelled pictures, beside the validation figure."""
    with reported(None, stopped=NOTHING_WRITTEN), watching(as_json) as watch:
        import assay.run
        from assay.labels.read import read_whole
        from assay.plan import from_source

        finished = assay.run.load(run)
        loaded = from_source(source)
        samples = read_whole(loaded.plan.data, base=loaded.base)
        found = assay.run.evaluate(finished, samples, watch=watch)
        if as_json:
            print_json(found)
        else:
            print_figures({"validation": found["validation"], "these pictures": found["scores"]})
