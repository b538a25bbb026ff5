"""evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands.shared import (
    NOTHING_WRITTEN,
    AsJson,
    RunFolder,
    Views,
    print_figures,
    print_json,
    views_from,
    watching,
)
from assay.endings import reported


def evaluate(
    run: RunFolder,
    source: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Labelled pictures: a folder a class, a table, or YAML with `data:`."),
    ],
    views: Views = None,
    as_json: AsJson = False,
) -> None:
    """Score on labelled pictures, beside the validation figure."""
    with reported(None, stopped=NOTHING_WRITTEN), watching(as_json) as watch:
        import assay.run
        from assay.labels.corrections import corrected
        from assay.labels.read import places_of, read_whole
        from assay.plan import from_source

        asked = views_from(views)
        finished = assay.run.load(run)
        loaded = from_source(source)
        data, base = loaded.plan.data, loaded.base
        samples = corrected(read_whole(data, base=base), places_of(data, base=base).get("corrections"))
        found = assay.run.evaluate(finished, samples, views=asked, watch=watch)
        if as_json:
            print_json(found)
            return
        plain = found["views"]["plain"] if asked else found["scores"]
        shown = {"these pictures, views": found["scores"]} if asked else {}
        print_figures({"validation": found["validation"], "these pictures": plain, **shown})
        for line in _gained(found["views"]) if asked else ():
            typer.echo(line)


def _gained(views: Mapping[str, Any]) -> Iterator[str]:
    """What views gained and cost, in lines."""
    for name, figure in views["gain"].items():
        yield (
            f"views: {name} better by {figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}], "
            f"n = {figure['n']} (paired)"
        )
    yield f"views: {views['seconds']['views']:.1f} s, plain pictures {views['seconds']['plain']:.1f} s"
