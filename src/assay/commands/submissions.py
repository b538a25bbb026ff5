"""submissions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.commands.options import AsJson
from assay.commands.output import Block, command
from assay.labels.paths import require_run

if TYPE_CHECKING:
    from assay.export.submissions import LoggedSubmission


def submissions(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Runs, or a folder that holds a project's.")],
    *,
    score: Annotated[
        tuple[str, float] | None, typer.Option(metavar="FILE VALUE", help="Note what the leaderboard gave a file.")
    ] = None,
    choose: Annotated[
        str | None, typer.Option(metavar="FILE", help="The file that counts, of all that are listed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what was handed in; note what it scored, and which file counts."""
    with command(as_json, reading=", ".join(map(str, runs))) as out:
        require_run(*runs)
        from assay.export import submissions as log

        logged = log.submissions_of(runs)
        if score is not None:
            logged = log.set_score(logged, *score)
        if choose is not None:
            logged = log.choose(logged, choose)
        out.print([one.to_json() for one in logged], _blocks(logged))


def _blocks(logged: Sequence[LoggedSubmission]) -> Iterator[Block]:
    from assay.messages import text_table

    if not logged:
        yield "Nothing was handed in yet: `assay predict RUN IMAGES --out FILE` notes each file that it writes."
        return
    rows = []
    for one in logged:
        of = one.submission
        size = "" if of.bytes is None else f"{of.bytes:,}"
        score = "" if of.score is None else f"{of.score:g}"
        name = os.path.basename(of.file) + (f" ({of.state})" if of.state else "")
        counts = "counts" if of.chosen else ""
        rows.append((of.date, str(one.run), name, f"{of.images:,}", size, of.sha256[:8], score, counts))
    columns = ("date (UTC)", "run", "file", "images", "bytes", "sha256", "score", "")
    yield text_table(columns, rows, right=("images", "bytes", "score"))
    unscored = [one for one in logged if one.submission.score is None]
    if unscored:
        yield f"Note a score: assay submissions RUN --score {os.path.basename(unscored[-1].submission.file)} VALUE"
