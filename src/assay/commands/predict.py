"""predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from assay.commands.shared import (
    NOTHING_WRITTEN,
    TTA,
    AsJson,
    Device,
    RunArgument,
    exit_codes,
    model_of,
    parse_tta,
    print_json,
    shown_progress,
)
from assay.files import RunFolder
from assay.progress import Progress

if TYPE_CHECKING:
    from assay.predictions.predict import Predictions

LISTED = 20  # unreadable images on the terminal; the file has all of them


def predict(  # noqa: PLR0913  (every option is a parameter)
    run: RunArgument,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="An image, a folder, a table or a list.")],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .csv (.txt: integers) to write, or a .zip with it.")],
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the names of a table or list start.")] = None,
    top: Annotated[int | None, typer.Option(metavar="K", min=1, help="Only the K most probable classes.")] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these, in this order; id=image renames: id=image,label")
    ] = None,
    tags: Annotated[
        Literal["joined", "one-hot"] | None,
        typer.Option(help="joined: a probability a class (usual); one-hot: 0 or 1 a class, as decided."),
    ] = None,
    separator: Annotated[str | None, typer.Option(metavar="MARK", help="What parts the tags in a cell.")] = None,
    none: Annotated[str | None, typer.Option(metavar="MARK", help="What stands for no tag.")] = None,
    ids: Annotated[
        Literal["path", "name", "stem"] | None,
        typer.Option(help="What an image is called: its path as given (usual), file name, or that without ending."),
    ] = None,
    form: Annotated[
        Literal["table", "integers"], typer.Option(help="integers: the classes' numbers row for row, as text.")
    ] = "table",
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="A first line of names. A table has one.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="SAMPLE.csv", help="Copy the columns, order and ids of this file.")
    ] = None,
    tta: TTA = None,
    inner: Annotated[str | None, typer.Option(metavar="NAME", help="What the file in the zip is called.")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Label new images, and write what is handed in."""
    with exit_codes(None, stopped=NOTHING_WRITTEN), shown_progress(as_json) as progress:
        from assay.export.submission import member_of, note_in_run, write_predictions
        from assay.export.submission_form import Form
        from assay.labels.readers.read import find_images
        from assay.predictions.predictor import Predictor
        from assay.training.devices import pick_device

        wanted = Form(
            form=form,
            like=like,
            top=top,
            columns=columns,
            tags=tags,
            separator=separator,
            none=none,
            ids=ids,
            header=header,
            inner=inner,
        )
        asked = parse_tta(tta)
        found = find_images(images, root=root)
        artifact = Predictor.load(model_of(run), device=pick_device(device))
        layout, found = wanted.layout(artifact.saved.space, found)
        unreadable: dict[str, str] = {}
        progress.begin("labelling", len(found))
        written = write_predictions(_counted(artifact.stream(found, tta=asked), progress, unreadable), out, layout)
        progress.end()
        if RunFolder(run).plan.is_file():
            note_in_run(run, out, images=written, form=str(wanted), progress=progress)
        if as_json:
            named = {"member": member_of(out, layout), "columns": [column.name for column in layout.columns]}
            print_json({"out": str(out), "form": form, **named, "images": written, "unreadable": unreadable})
            return
        for name, reason in list(unreadable.items())[:LISTED]:
            progress.line(f"could not be read: {name}: {reason}")
        if len(unreadable) > LISTED:
            progress.line(f"... and {len(unreadable) - LISTED} more: --json names them, and so does the column `error`")
        progress.line(f"{out}: {written} images" + (f", {len(unreadable)} unreadable" if unreadable else ""))


def _counted(chunks: Iterable[Predictions], progress: Progress, unreadable: dict[str, str]) -> Iterator[Predictions]:
    for chunk in chunks:
        progress.advance(len(chunk.ids))
        unreadable |= chunk.unreadable
        yield chunk
