"""backbones."""

from __future__ import annotations

from typing import Annotated

import typer

from assay.commands.options import AsJson
from assay.commands.output import command


def backbones(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Backbones, as timm names them; else a usual list.")
    ] = None,
    *,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Download the weights that are not here: of those named under any licence.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the backbones that `backbone: auto` chooses among, or fetch their weights."""
    with command(as_json) as out:
        from assay.messages import text_table
        from assay.models.candidates import candidates
        from assay.models.weights import fetch_weights

        for one in candidates(names or ()) if fetch else ():
            if one.weights == "hub" and (names or one.permissive):
                out.progress.line(f"{one.name}: {fetch_weights(one.name)}")
        known = candidates(names or ())
        columns = ("backbone", "weights", "MB", "images", "normalised by", "licence")
        rows = [
            (
                one.name,
                one.weights,
                "" if one.megabytes is None else str(one.megabytes),
                str(one.made_for),
                " ".join(f"{value:.2g}" for value in one.mean) + " / " + " ".join(f"{value:.2g}" for value in one.std),
                f"{one.licence or 'not known'}{'' if one.permissive else ': only if named'}",
            )
            for one in known
        ]
        out.print([one.to_json() for one in known], [text_table(columns, rows)])
