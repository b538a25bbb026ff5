"""predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from assay.commands.shared import (
    NOTHING_WRITTEN,
    AsJson,
    Device,
    RunFolder,
    Views,
    model_of,
    print_json,
    views_from,
    watching,
)
from assay.endings import reported
from assay.progress import Watch

if TYPE_CHECKING:
    from assay.predictions.predict import Predictions

LISTED = 20  # unreadable pictures on the terminal; the file has all of them


def predict(  # noqa: PLR0913  (every option is a parameter)
    run: RunFolder,
    pictures: Annotated[Path, typer.Argument(metavar="PICTURES", help="A picture, a folder, a table or a list.")],
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
        typer.Option(help="What a picture is called: its path as given (usual), file name, or that without ending."),
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
    views: Views = None,
    inner: Annotated[str | None, typer.Option(metavar="NAME", help="What the file in the zip is called.")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Label new pictures, and write what is handed in."""
    with reported(None, stopped=NOTHING_WRITTEN), watching(as_json) as watch:
        from assay.labels.read import find_pictures
        from assay.output.artifact import Artifact
        from assay.output.forms import Form
        from assay.output.submission import member_of, note_in_run, write_predictions
        from assay.training.hardware import pick_device

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
        asked = views_from(views)
        found = find_pictures(pictures, root=root)
        artifact = Artifact.load(model_of(run), device=pick_device(device))
        layout, found = wanted.layout(artifact.saved.space, found)
        unreadable: dict[str, str] = {}
        watch.begin("labelling", len(found))
        written = write_predictions(_counted(artifact.stream(found, views=asked), watch, unreadable), out, layout)
        watch.end()
        if (run / "plan.yaml").is_file():
            note_in_run(run, out, pictures=written, form=str(wanted), watch=watch)
        if as_json:
            named = {"member": member_of(out, layout), "columns": [column.name for column in layout.columns]}
            print_json({"out": str(out), "form": form, **named, "pictures": written, "unreadable": unreadable})
            return
        for name, reason in list(unreadable.items())[:LISTED]:
            watch.line(f"could not be read: {name}: {reason}")
        if len(unreadable) > LISTED:
            watch.line(f"... and {len(unreadable) - LISTED} more: --json names them, and so does the column `error`")
        watch.line(f"{out}: {written} pictures" + (f", {len(unreadable)} unreadable" if unreadable else ""))


def _counted(chunks: Iterable[Predictions], watch: Watch, unreadable: dict[str, str]) -> Iterator[Predictions]:
    for chunk in chunks:
        watch.advance(len(chunk.ids))
        unreadable |= chunk.unreadable
        yield chunk
