"""audit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.commands.endings import GOES_ON
from assay.commands.options import AsJson, Changes, Device
from assay.commands.output import Block, command

if TYPE_CHECKING:
    from assay.experiments.findings import Audit


def audit(
    source: Annotated[Path, typer.Argument(metavar="DATA", help="A folder, a table, a plan, or the folder of a run.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to. audits/ and the name of the data.")
    ] = None,
    changes: Changes = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with images and labels, before training on them."""
    with command(as_json, stopped=GOES_ON, alone="audit", reading=source) as output:
        from assay.commands.options import default_run
        from assay.experiments.audit import audit as audit_data
        from assay.report.audit_page import write_audit_page

        folder = out or Path("audits") / default_run(source).name
        result = audit_data(source, folder, changes=tuple(changes or ()), device=device, progress=output.progress)
        page = write_audit_page(result, folder, data=str(source))
        output.print({"audit": str(folder), "page": str(page), **result.to_json()}, _blocks(result, source, page))


def _blocks(result: Audit, source: Path, page: Path) -> Iterator[Block]:
    from assay.experiments.findings import KINDS
    from assay.messages import plain

    for kind, count in result.counts().items():
        worst = f"; the worst: {plain(result.findings[kind][0].text)}" if count else ""
        yield f"{KINDS[kind].title}: {count:,}{worst}"
    yield f"\nThe images are in {page}. Train with copies on one side of the split:\n"
    yield f"    assay train {shlex.quote(str(source))} --audit {shlex.quote(str(page.parent))}\n"
