"""evaluate."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands.shared import (
    NOTHING_WRITTEN,
    TTA,
    AsJson,
    RunArgument,
    exit_codes,
    parse_tta,
    print_json,
    print_metrics,
    shown_progress,
)


def evaluate(
    run: RunArgument,
    source: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Labelled images: a folder a class, a table, or YAML with `data:`."),
    ],
    tta: TTA = None,
    as_json: AsJson = False,
) -> None:
    """Score on labelled images, beside the validation metric."""
    with exit_codes(None, stopped=NOTHING_WRITTEN), shown_progress(as_json) as progress:
        from assay.labels.corrections import corrected
        from assay.labels.readers.read import read_whole, resolve_paths
        from assay.plan.plan import from_source
        from assay.run.train import evaluate as evaluate_run
        from assay.run.train import load as load_run

        asked = parse_tta(tta)
        finished = load_run(run)
        loaded = from_source(source)
        data, base = loaded.plan.data, loaded.base
        samples = corrected(read_whole(data, base=base), resolve_paths(data, base=base).get("corrections"))
        found = evaluate_run(finished, samples, tta=asked, progress=progress)
        if as_json:
            print_json(found)
            return
        plain = found["tta"]["plain"] if asked else found["scores"]
        shown = {"these images, tta": found["scores"]} if asked else {}
        print_metrics({"validation": found["validation"], "these images": plain, **shown})
        for line in _learnt(found):
            typer.echo(line)
        if asked:
            _print_gained(found["tta"])


def _learnt(found: Mapping[str, Any]) -> Iterator[str]:
    """A word on images that the model has by heart."""
    count, n = found["trained on"], found["n"]
    if count:
        yield (
            f"note: the run was trained on {count:,} of these {n:,} images. What it has by heart says little of how "
            "good it is on others."
        )


def _print_gained(views: Mapping[str, Any]) -> None:
    """What views gained, metric by metric, and what they cost."""
    from rich.console import Console

    from assay.messages import text_table
    from assay.report.charts import metric_title

    gain = {
        name: metric for name, metric in views["gain"].items() if name != "micro_f1" or "accuracy" not in views["gain"]
    }
    rows = [
        (metric_title(name), f"{one['value']:+.4f}", f"{one['low']:+.4f} to {one['high']:+.4f}", f"{one['n']:,}")
        for name, one in gain.items()
    ]
    columns = ("tta", "better by", "95 % interval, paired", "n")
    Console(file=sys.stdout, highlight=False).print(text_table(columns, rows, right=columns[1:]))
    if not any(one["low"] > 0 or one["high"] < 0 for one in gain.values()):
        typer.echo("Every interval holds 0: on these images views change nothing for certain.")
    seconds = views["seconds"]
    typer.echo(f"They took {seconds['tta']:.1f} s, the plain images {seconds['plain']:.1f} s.")
