"""demo."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.commands.endings import GOES_ON
from assay.commands.options import AsJson
from assay.commands.output import Block, command

if TYPE_CHECKING:
    from assay.experiments.demo import DemoRun

HEADER = ("trained on", "validation accuracy", "difference to the first", "seconds")


def demo(
    run: Annotated[Path, typer.Option(metavar="DIR", help="Where to; the images go to DIR-images.")] = Path(
        "runs/demo"
    ),
    as_json: AsJson = False,
) -> None:
    """Train on built-in images with missing and wrong labels, and show what repairs gain."""
    with command(as_json, run=run, stopped=GOES_ON, alone="demo", reading="the built-in images") as out:
        from assay.commands.api import draw
        from assay.experiments.demo import run_demo, write_digits, write_labels

        images = Path(f"{run}-images")
        write_digits(images)
        write_labels(images)
        chapters = run_demo(images, run, recipe="demo", progress=out.progress, draw=draw)
        out.print([chapter.to_json() for chapter in chapters], _blocks(chapters, run), width=110)


def _blocks(chapters: Sequence[DemoRun], run: Path) -> Iterator[Block]:
    from assay.messages import text_table

    n = chapters[0].metric.n
    title = f"Handwritten digits: 60 % of the training labels hidden, 15 % of the rest wrong; n = {n}, labels true"
    yield text_table(HEADER, [chapter.cells for chapter in chapters], right=("seconds",), title=title)
    folder = shlex.quote(str(run))
    yield f"The repaired run is in {run}. See what was changed, label images with it, settle labels in the browser:\n"
    yield f"    assay ledger {folder}\n    assay predict {folder} IMAGES --out labels.csv\n    assay review {folder}\n"
