"""evaluate."""

from __future__ import annotations

import sys
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
        for line in _learnt(found):
            typer.echo(line)
        if asked:
            _print_gained(found["views"])


def _learnt(found: Mapping[str, Any]) -> Iterator[str]:
    """A word on pictures that the model has by heart."""
    count, n = found["trained on"], found["n"]
    if count:
        yield (
            f"note: the run was trained on {count:,} of these {n:,} pictures. What it has by heart says little of how "
            "good it is on others."
        )


def _print_gained(views: Mapping[str, Any]) -> None:
    """What views gained, figure by figure, and what they cost."""
    from rich.console import Console

    from assay.evidence.charts import figure_title
    from assay.evidence.tables import text_table

    gain = {
        name: figure for name, figure in views["gain"].items() if name != "micro_f1" or "accuracy" not in views["gain"]
    }
    rows = [
        (figure_title(name), f"{one['value']:+.4f}", f"{one['low']:+.4f} to {one['high']:+.4f}", f"{one['n']:,}")
        for name, one in gain.items()
    ]
    columns = ("views", "better by", "95 % interval, paired", "n")
    Console(file=sys.stdout, highlight=False).print(text_table(columns, rows, right=columns[1:]))
    if not any(one["low"] > 0 or one["high"] < 0 for one in gain.values()):
        typer.echo("Every interval holds 0: on these pictures views change nothing for certain.")
    seconds = views["seconds"]
    typer.echo(f"They took {seconds['views']:.1f} s, the plain pictures {seconds['plain']:.1f} s.")
