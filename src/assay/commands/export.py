"""export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.commands.shared import NOTHING_WRITTEN, AsJson, RunFolder, model_of, print_json, watching
from assay.endings import reported


def export(
    run: RunFolder,
    *,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx, one file, normalisation inside.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to; else RUN/export.")] = None,
    pictures: Annotated[
        int, typer.Option(metavar="N", min=2, help="Validation pictures for which file and model must agree.")
    ] = 64,
    as_json: AsJson = False,
) -> None:
    """Leave with the model: a model card (Markdown), and the model as one ONNX file."""
    folder = out or run / "export"
    with reported(None, stopped=NOTHING_WRITTEN), watching(as_json) as watch:
        import assay.run
        from assay.files import write_text
        from assay.models.composite import load_model
        from assay.output.card import card
        from assay.output.export import examples, export_onnx

        finished = assay.run.load(run)
        model = load_model(model_of(run))
        written = {"card": str(folder / "card.md")}
        if onnx:
            watch.line("exporting; this takes up to a minute")
            shown, what = examples(model, finished.folder, count=pictures)
            parity = export_onnx(model, folder / "model.onnx", shown)
            written |= {"onnx": str(folder / "model.onnx")}
            watch.line(f"{folder / 'model.onnx'}: {parity} {what}")
        write_text(folder / "card.md", card(finished.folder, model))
        watch.line(f"{folder / 'card.md'}: the model card")
        if as_json:
            print_json(written | ({"largest difference": parity.largest, "n": parity.n, "of": what} if onnx else {}))
