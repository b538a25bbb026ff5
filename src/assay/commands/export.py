"""export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assay.commands.options import AsJson, model_of
from assay.commands.output import Output, command
from assay.labels.paths import require_run, require_source

if TYPE_CHECKING:
    from assay.labels.samples import Samples


def export(  # noqa: PLR0913  (every option is a parameter)
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_DATA", help="A finished run; with --labels also data.")],
    *,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx, one file, normalisation inside.")] = False,
    docker: Annotated[
        bool, typer.Option("--docker", help="Write a folder with a Dockerfile, which serves the model.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also model.int8.onnx, smaller and faster; implies --onnx.")
    ] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="Also openvino/, for Intel; implies --onnx.")] = False,
    labels: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Write the labels for another tool; a wrong name lists all.")
    ] = None,
    head: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Write the labels of this head alone.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="Where to; else RUN/export.")] = None,
    images: Annotated[
        int, typer.Option(metavar="N", min=2, help="Validation images for which file and model must agree.")
    ] = 64,
    as_json: AsJson = False,
) -> None:
    """Export a model card (Markdown), the model as one ONNX file or for Docker, or the labels for another tool."""
    with command(as_json, reading=run) as terminal:
        if labels is not None:
            require_source(run)
            _labels(run, labels, out, head or (), terminal)
        else:
            require_run(run)
            compact = [name for name, given in (("int8", int8), ("openvino", openvino)) if given]
            _model(
                run,
                out or run / "export",
                terminal,
                onnx=onnx or bool(compact),
                compact=compact,
                docker=docker,
                images=images,
            )


def _model(
    run: Path, folder: Path, terminal: Output, *, onnx: bool, compact: Sequence[str], docker: bool, images: int
) -> None:
    from assay.export.compact import export_compact, require_format
    from assay.export.docker import write_docker
    from assay.export.model_card import card
    from assay.export.onnx import PROGRAM, example_files, export_onnx
    from assay.files import RunFolder, write_text
    from assay.labels.samples import Samples
    from assay.models.ensemble import load_model
    from assay.predictions.predictor import Predictor
    from assay.run.train import load as load_run

    finished = load_run(run)
    model = load_model(model_of(run))
    record: dict[str, object] = {"card": str(folder / "card.md")}
    lines = [f"{folder / 'card.md'}: the model card"]
    held = []
    for name in compact:
        require_format(name)  # before the work
    if onnx:
        terminal.progress.line("exporting; this takes up to a minute")
        predictor = Predictor.load(model_of(run), device="cpu")
        with example_files(finished.folder, count=images) as (files, source):
            parity = export_onnx(predictor, folder / "model.onnx", files)
        record |= {"onnx": str(folder / "model.onnx"), "program": str(folder / PROGRAM)}
        record |= {"largest difference": parity.largest, "n": parity.n, "of": source}
        lines = [
            f"{folder / 'model.onnx'}: {parity} {source}",
            f"{folder / PROGRAM}: predicts image files by it, without Assay",
            *lines,
        ]
        write_text(folder / "card.md", card(finished.folder, model))  # should a compact file be refused
        samples = Samples.read(RunFolder(finished.folder).samples) if compact else None
        for name in compact:
            assert samples is not None
            terminal.progress.line(f"writing {name}, and holding it against the model on validation")
            one = export_compact(predictor, name, folder / "model.onnx", samples, metric=finished.record.metric)
            held.append(one)
            lines.insert(0, f"{folder / one.file}: {one}")
        record |= {"compact": [one.to_json() for one in held]} if compact else {}
    if docker:
        write_docker(model_of(run), folder / "docker", name=run.resolve().name)
        record["docker"] = str(folder / "docker")
        lines.append(f"{folder / 'docker'}: the model, and a Dockerfile that serves it; its first lines say how")
    write_text(folder / "card.md", card(finished.folder, model, held))
    terminal.print(record, lines)


def _labels(source: Path, form: str, out: Path | None, heads: Sequence[str], terminal: Output) -> None:
    from assay.errors import PlanError
    from assay.labels.writers.formats import WRITERS, with_heads
    from assay.messages import nearest
    from assay.plan.yaml_lines import flow

    if form not in WRITERS:
        guess = f" {nearest(form, WRITERS)}".rstrip()
        raise PlanError(f"--labels: there is no format {form!r}.{guess} There are: {', '.join(WRITERS)}.")
    if out is None:
        raise PlanError(f"--labels {form}: where to? Name a file or a new folder with --out.")
    samples = _current(source)
    written = WRITERS[form](with_heads(samples, heads) if heads else samples, out)
    line = f"data: {flow(written.data)}"
    notes = [f"note: {note}" for note in written.notes]
    record = {"out": str(out), "format": form, "images": len(samples), "data": dict(written.data)}
    terminal.print(
        record | {"notes": list(written.notes)},
        [f"{out}: the labels of {len(samples):,} images as {form}", *notes, f"to read it: {line}"],
    )


def _current(source: Path) -> Samples:
    """Return the labels of a run or of data as they are now: as read, with all edits and corrections."""
    from dataclasses import replace

    import polars as pl

    from assay.files import RunFolder
    from assay.labels.corrections import corrected
    from assay.labels.readers.read import read_whole, resolve_paths
    from assay.plan.plan import from_source
    from assay.run.contents import read_run

    if RunFolder(source).is_read:
        samples = read_run(source).samples
        synthetic = pl.any_horizontal(pl.col(f"origin:{head.name}") == "synthetic" for head in samples.space)
        return replace(samples, table=samples.table.filter(~synthetic))  # those lie in the run, not in the data
    loaded = from_source(source)
    data = loaded.plan.data
    return corrected(read_whole(data, base=loaded.base), resolve_paths(data, base=loaded.base).get("corrections"))
