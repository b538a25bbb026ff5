"""predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from assay.commands.options import TTA, AsJson, Device, FinishedRun, ImageColumn, model_of, parse_tta
from assay.commands.output import command
from assay.progress import Progress

if TYPE_CHECKING:
    from assay.predictions.predict import Predictions


def predict(  # noqa: PLR0913  (every option is a parameter)
    run: FinishedRun,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="An image, a folder, a table, a list or shards.")],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .csv (.txt: integers) to write, or a .zip with it.")],
    image: ImageColumn = None,
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
    coverage: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Add a set of classes that holds the true one so often: 0.9.")
    ] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="Sets that hold each class so often by itself.")] = False,
    unlike: Annotated[
        bool, typer.Option("--unlike", help="Add unlike_training: from 0 to 1, how foreign an image is.")
    ] = False,
    abstain: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="No label for foreign images; the share of false alarms: 0.01."),
    ] = None,
    adapt_prior: Annotated[
        bool, typer.Option("--adapt-prior", help="Correct probabilities for the class frequencies of these images.")
    ] = False,
    tta: TTA = None,
    inner: Annotated[str | None, typer.Option(metavar="NAME", help="What the file in the zip is called.")] = None,
    safe_cells: Annotated[
        bool, typer.Option("--safe-cells", help="An apostrophe before cells that a spreadsheet takes for formulas.")
    ] = False,
    device: Device = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse files that cannot be read; no file is written.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Label new images, and write the predictions as CSV or a submission."""
    with command(as_json, reading=images) as terminal:
        from assay.errors import ModelError
        from assay.export.submission import member_of, write_predictions
        from assay.export.submission_form import CALIBRATE_FIRST, Form
        from assay.labels.left_out import by_reason, require_all, unreadable_as_left_out
        from assay.labels.readers.to_label import find_images
        from assay.messages import formula_note
        from assay.predictions.class_prior import Frequencies
        from assay.predictions.predictor import Predictor
        from assay.training.devices import pick_device

        options = Form(
            form=form, like=like, top=top, columns=columns, tags=tags, separator=separator, none=none, ids=ids,
            header=header, inner=inner, safe_cells=safe_cells or None, coverage=coverage, by_class=by_class or None,
            unlike=unlike or None, abstain=abstain
        )  # fmt: skip
        _require_same_probabilities(coverage, tta=tta, adapt_prior=adapt_prior)
        views, listed = parse_tta(tta), find_images(images, image=image, root=root)
        if strict:
            require_all(listed.left_out, used=len(listed.files))
        predictor = Predictor.load(model_of(run), device=pick_device(device))
        uncertainty = predictor.saved.uncertainty
        if adapt_prior and uncertainty is None:
            raise ModelError(f"--adapt-prior: this model keeps no class frequencies of validation. {CALIBRATE_FIRST}")
        layout, files = options.layout(predictor.saved.space, listed.files, uncertainty=uncertainty)
        notes = [*listed.notes, *layout.notes]
        if out.suffix.lower() != ".txt" and not safe_cells:
            names = [name for name, _ in files] + [name for head in predictor.saved.space for name in head.classes]
            notes += formula_note(names, "--safe-cells puts an apostrophe before them")
        progress, unreadable = terminal.progress, dict[str, str]()
        progress.begin("labelling", len(files))
        stream = predictor.stream(files, tta=views, distances=options.doubt.by_distance)
        frequencies = Frequencies(predictor.saved.space, uncertainty)
        chunks = frequencies.counted(_counted(stream, progress, unreadable))
        count = write_predictions(frequencies.adapted(chunks) if adapt_prior else chunks, out, layout, strict=strict)
        notes += frequencies.notes()
        progress.end()
        _note_in_run(run, out, images=count, form=str(options), progress=progress)
        reasons = {
            "unreadable_by_reason": by_reason(unreadable_as_left_out(unreadable, {})),
            "left_out": by_reason(listed.left_out),
            "notes": notes,
        }
        written = {"member": member_of(out, layout), "columns": [column.name for column in layout.columns]}
        record = {"out": str(out), "form": form, **written, "images": count, "unreadable": unreadable, **reasons}
        terminal.print(record, _lines(out, count, reasons))


def _require_same_probabilities(coverage: float | None, *, tta: str | None, adapt_prior: bool) -> None:
    """Raise DataError where sets would be taken of other probabilities than those that they were fitted on."""
    from assay.errors import DataError

    for option, given in (("--tta", tta is not None), ("--adapt-prior", adapt_prior)):
        if given and coverage is not None:
            raise DataError(
                f"--coverage beside {option}: sets were fitted on the probabilities of plain images, and promise "
                "nothing for others. Leave one of the two out."
            )


def _note_in_run(run: Path, out: Path, *, images: int, form: str, progress: Progress) -> None:
    """Note a file in the run's log of submissions, where there is a run; where that fails, report it."""
    from assay.errors import AssayError
    from assay.export.submissions import note_submission
    from assay.files import RunFolder

    if not RunFolder(run).plan.is_file():
        return
    try:
        note_submission(run, out, images=images, form=form)
    except AssayError as error:  # the file is written, and of use without a note
        progress.line(f"{out} could not be noted in the run. {error}")


def _counted(chunks: Iterable[Predictions], progress: Progress, unreadable: dict[str, str]) -> Iterator[Predictions]:
    for chunk in chunks:
        progress.advance(len(chunk.ids))
        unreadable |= chunk.unreadable
        yield chunk


def _lines(out: Path, count: int, reasons: Mapping[str, Any]) -> Iterator[str]:
    from assay.labels.left_out import reason_line

    for heading, name in (("could not be read", "unreadable_by_reason"), ("no image, no row", "left_out")):
        yield from (f"{heading}: {reason_line(reason)}" for reason in reasons[name])
    yield from (f"note: {note}" for note in reasons["notes"])
    unreadable, others = (sum(one["files"] for one in reasons[name]) for name in ("unreadable_by_reason", "left_out"))
    counts = [f"{count:,} images", f"{unreadable:,} unreadable" if unreadable else ""]
    counts += [f"{others:,} other files without a row" if others else ""]
    yield f"{out}: {', '.join(filter(None, counts))}"
