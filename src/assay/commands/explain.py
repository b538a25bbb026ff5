"""explain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands.shared import NOTHING_WRITTEN, AsJson, Device, exit_codes, print_json, shown_progress


def explain(  # noqa: PLR0913  (every option is a parameter)
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or not.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, or images of the run by id.")],
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
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write. RUN/explanations.")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show where an answer comes from (Grad-CAM) and what the layers make of an image."""
    with exit_codes(None, stopped=NOTHING_WRITTEN), shown_progress(as_json):
        from assay.report.explain import ExplainOptions
        from assay.report.explain_files import explain_images
        from assay.run.contents import read_run
        from assay.training.devices import pick_device

        named = tuple(name.strip() for name in (layers or "").split(",") if name.strip())
        wanted = ExplainOptions(named, count, tuple(classes or ()), cam)
        found = explain_images(read_run(run), images, wanted=wanted, member=member, out=out, device=pick_device(device))
        if as_json:
            print_json({"looks": found})
            return
        for seen in found:
            for line in _lines(seen):
                typer.echo(line)
        if out is None:
            typer.echo("They are in the report too once it is written again: assay report.")


def _lines(seen: Mapping[str, Any]) -> Iterator[str]:
    """What was seen of one image, for the terminal."""
    from assay.messages import plain

    yield plain(seen["image"]) + (f" ({seen['part']})" if seen["part"] else "")
    for answered in seen["answers"]:
        yield f"  {answered['line']}"
    for cam in seen["grad-cam"]:
        place = cam["hottest"]
        where = f"hottest {place[0]:.0%} across, {place[1]:.0%} down" if place else "no place speaks for it"
        yield f"  {plain(cam['class'])} ({' and '.join(cam['said'])}): {where}; layer {plain(cam['layer'])}"
    yield f"  {plain(seen['folder'])}/{seen['sheet']}"
