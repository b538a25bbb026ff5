"""look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands.shared import NOTHING_WRITTEN, AsJson, Device, print_json, watching
from assay.endings import reported


def look(  # noqa: PLR0913  (every option is a parameter)
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or not.")],
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="Files, or pictures of the run by id.")],
    *,
    layers: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Layers to show: bn1,blocks.2.0. Evenly spaced ones.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many layers, from the first to the last.")] = 6,
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="Also where this class is seen.")
    ] = None,
    cam: Annotated[
        str | None, typer.Option(metavar="LAYER", help="The layer of Grad-CAM. The last whose map counts.")
    ] = None,
    member: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Which network, where several answer together.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write. RUN/pictures/look.")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show where an answer comes from (Grad-CAM) and what the layers make of a picture."""
    with reported(None, stopped=NOTHING_WRITTEN), watching(as_json):
        from assay.evidence.look_files import look_at
        from assay.evidence.looks import Wanted
        from assay.evidence.page.folder import read_run
        from assay.training.hardware import pick_device

        named = tuple(name.strip() for name in (layers or "").split(",") if name.strip())
        wanted = Wanted(named, count, tuple(classes or ()), cam)
        found = look_at(read_run(run), pictures, wanted=wanted, member=member, out=out, device=pick_device(device))
        if as_json:
            print_json({"looks": found})
            return
        for seen in found:
            for line in _lines(seen):
                typer.echo(line)
        if out is None:
            typer.echo("They are in the report too once it is written again: assay report.")


def _lines(seen: Mapping[str, Any]) -> Iterator[str]:
    """What was seen of one picture, for the terminal."""
    from assay.evidence.names import plain

    yield plain(seen["picture"]) + (f" ({seen['part']})" if seen["part"] else "")
    for answered in seen["answers"]:
        yield f"  {answered['line']}"
    for cam in seen["grad-cam"]:
        place = cam["hottest"]
        where = f"hottest {place[0]:.0%} across, {place[1]:.0%} down" if place else "no place speaks for it"
        yield f"  {plain(cam['class'])} ({' and '.join(cam['said'])}): {where}; layer {plain(cam['layer'])}"
    yield f"  {plain(seen['folder'])}/{seen['sheet']}"
