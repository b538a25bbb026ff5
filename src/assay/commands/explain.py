"""explain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.commands.options import AnyRun, AsJson, Device
from assay.commands.output import Block, command
from assay.labels.paths import require_run

if TYPE_CHECKING:
    from assay.report.explain import LayerName


def explain(  # noqa: PLR0913  (every option is a parameter)
    run: AnyRun,
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]...", help="Files, or images of the run by id. Without any, list the layers."),
    ] = None,
    *,
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Modules to show, by name: conv1,layer2.0.bn3. Stem and stages."),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Show so many blocks instead, from the first to the last.")
    ] = None,
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
    """Show which pixels a prediction depends on (Grad-CAM), and the activations of the layers."""
    with command(as_json, reading=run) as terminal:
        require_run(run)
        from assay.report.explain import ExplainOptions, explain_target, list_layers
        from assay.report.explain_files import explain_images
        from assay.run.contents import read_run
        from assay.training.devices import pick_device

        if not images:
            listed = list_layers(explain_target(read_run(run), member).network)
            terminal.print({"layers": listed}, [_layer_table(listed)])
            return
        layer_names = tuple(name.strip() for names in layers or () for name in names.split(",") if name.strip())
        options = ExplainOptions(layer_names, count, tuple(classes or ()), cam)
        explanations = explain_images(
            read_run(run), images, options=options, member=member, out=out, device=pick_device(device)
        )
        terminal.print({"explanations": explanations}, _blocks(explanations, in_report=out is None))


def _layer_table(layers: Sequence[LayerName]) -> Block:
    from assay.messages import text_table

    rows = [
        [one["name"], one["kind"], " × ".join(map(str, one["shape"])), "shown" if one["default"] else ""]
        for one in layers
    ]
    return text_table(["layer", "kind", "shape", "by default"], rows)


def _blocks(explanations: Sequence[Mapping[str, Any]], *, in_report: bool) -> Iterator[Block]:
    from assay.messages import plain

    for record in explanations:
        yield plain(record["image"]) + (f" ({record['part']})" if record["part"] else "")
        for answer in record["answers"]:
            yield f"  {answer['line']}"
        for cam in record["grad-cam"]:
            point = cam["hottest"]
            where = f"hottest {point[0]:.0%} across, {point[1]:.0%} down" if point else "no place speaks for it"
            yield f"  {plain(cam['class'])} ({' and '.join(cam['reasons'])}): {where}; layer {plain(cam['layer'])}"
        yield f"  {plain(record['folder'])}/{record['sheet']}"
    if in_report:
        yield "They are in the report too once it is written again: assay report."
