"""export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.commands.shared import NOTHING_WRITTEN, AsJson, RunArgument, exit_codes, model_of, print_json, shown_progress


def export(
    run: RunArgument,
    *,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx, one file, normalisation inside.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to; else RUN/export.")] = None,
    images: Annotated[
        int, typer.Option(metavar="N", min=2, help="Validation images for which file and model must agree.")
    ] = 64,
    as_json: AsJson = False,
) -> None:
    """Leave with the model: a model card (Markdown), and the model as one ONNX file."""
    folder = out or run / "export"
    with exit_codes(None, stopped=NOTHING_WRITTEN), shown_progress(as_json) as progress:
        from assay.export.model_card import card
        from assay.export.onnx import examples, export_onnx
        from assay.files import write_text
        from assay.models.ensemble import load_model
        from assay.run.train import load as load_run

        finished = load_run(run)
        model = load_model(model_of(run))
        written = {"card": str(folder / "card.md")}
        if onnx:
            progress.line("exporting; this takes up to a minute")
            shown, what = examples(model, finished.folder, count=images)
            parity = export_onnx(model, folder / "model.onnx", shown)
            written |= {"onnx": str(folder / "model.onnx")}
            progress.line(f"{folder / 'model.onnx'}: {parity} {what}")
        write_text(folder / "card.md", card(finished.folder, model))
        progress.line(f"{folder / 'card.md'}: the model card")
        if as_json:
            print_json(written | ({"largest difference": parity.largest, "n": parity.n, "of": what} if onnx else {}))
