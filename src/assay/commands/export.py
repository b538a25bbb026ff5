"""export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.commands.options import AsJson, FinishedRun, model_of
from assay.commands.output import command


def export(
    run: FinishedRun,
    *,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx, one file, normalisation inside.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to; else RUN/export.")] = None,
    images: Annotated[
        int, typer.Option(metavar="N", min=2, help="Validation images for which file and model must agree.")
    ] = 64,
    as_json: AsJson = False,
) -> None:
    """Export a model card (Markdown), and the model as one ONNX file."""
    folder = out or run / "export"
    with command(as_json, reading=run) as terminal:
        from assay.export.model_card import card
        from assay.export.onnx import PROGRAM, example_files, export_onnx
        from assay.files import write_text
        from assay.models.ensemble import load_model
        from assay.predictions.predictor import Predictor
        from assay.run.train import load as load_run

        finished = load_run(run)
        model = load_model(model_of(run))
        record: dict[str, object] = {"card": str(folder / "card.md")}
        lines = [f"{folder / 'card.md'}: the model card"]
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
        write_text(folder / "card.md", card(finished.folder, model))
        terminal.print(record, lines)
