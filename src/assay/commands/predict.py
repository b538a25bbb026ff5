"""predict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from assay.commands.endings import GOES_ON, NOTHING_WRITTEN
from assay.commands.options import (
    TTA,
    AsJson,
    Device,
    ExecutorName,
    FinishedRun,
    ImageColumn,
    Workers,
    model_of,
    parse_tta,
)
from assay.commands.output import command
from assay.labels.paths import require_run, require_source
from assay.progress import Progress, stage

if TYPE_CHECKING:
    from assay.export.submission_form import Form, Image
    from assay.labels.left_out import LeftOut
    from assay.models.ensemble import Model
    from assay.models.uncertainty import Uncertainty
    from assay.predictions.predict import Predictions
    from assay.predictions.tta import AnyTTA


Images = Annotated[Path, typer.Argument(metavar="IMAGES", help="An image, a folder, a table, a list or shards.")]
Out = Annotated[
    Path, typer.Option(metavar="FILE", help="The .csv (.txt: integers) to write, a .zip with it, or a .parquet.")
]
Root = Annotated[Path | None, typer.Option(metavar="DIR", help="Where the names of a table or list start.")]
Top = Annotated[int | None, typer.Option(metavar="K", min=1, help="Only the K most probable classes.")]
Columns = Annotated[
    str | None, typer.Option(metavar="LIST", help="Only these, in this order; id=image renames: id=image,label")
]
Tags = Annotated[
    Literal["joined", "one-hot"] | None,
    typer.Option(help="joined: a probability a class (usual); one-hot: 0 or 1 a class, as decided."),
]
Separator = Annotated[str | None, typer.Option(metavar="MARK", help="What parts the tags in a cell.")]
NoTag = Annotated[str | None, typer.Option(metavar="MARK", help="What stands for no tag.")]
Ids = Annotated[
    Literal["path", "name", "stem"] | None,
    typer.Option(help="What an image is called: its path as given (usual), file name, or that without ending."),
]
FormName = Annotated[
    Literal["table", "integers"], typer.Option(help="integers: the classes' numbers row for row, as text.")
]
Header = Annotated[bool | None, typer.Option("--header/--no-header", help="A first line of names. A table has one.")]
Like = Annotated[Path | None, typer.Option(metavar="SAMPLE.csv", help="Copy the columns, order and ids of this file.")]
Coverage = Annotated[
    float | None, typer.Option(metavar="SHARE", help="Add a set of classes that holds the true one so often: 0.9.")
]
ByClass = Annotated[bool, typer.Option("--by-class", help="Sets that hold each class so often by itself.")]
Unlike = Annotated[bool, typer.Option("--unlike", help="Add unlike_training: from 0 to 1, how foreign an image is.")]
Abstain = Annotated[
    float | None, typer.Option(metavar="SHARE", help="No label for foreign images; the share of false alarms: 0.01.")
]
AdaptPrior = Annotated[
    bool, typer.Option("--adapt-prior", help="Correct probabilities for the class frequencies of these images.")
]
Features = Annotated[bool, typer.Option("--features", help="Add the features of the network: to a .parquet only.")]
Inner = Annotated[str | None, typer.Option(metavar="NAME", help="What the file in the zip is called.")]
SafeCells = Annotated[
    bool, typer.Option("--safe-cells", help="An apostrophe before cells that a spreadsheet takes for formulas.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse files that cannot be read; no file is written.")]


def predict(  # noqa: PLR0913  (every option is a parameter)
    run: FinishedRun,
    images: Images,
    *,
    out: Out,
    image: ImageColumn = None,
    root: Root = None,
    top: Top = None,
    columns: Columns = None,
    tags: Tags = None,
    separator: Separator = None,
    none: NoTag = None,
    ids: Ids = None,
    form: FormName = "table",
    header: Header = None,
    like: Like = None,
    coverage: Coverage = None,
    by_class: ByClass = False,
    unlike: Unlike = False,
    abstain: Abstain = None,
    adapt_prior: AdaptPrior = False,
    features: Features = False,
    tta: TTA = None,
    inner: Inner = None,
    safe_cells: SafeCells = False,
    workers: Workers = None,
    executor: ExecutorName = None,
    device: Device = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Label new images, and write the predictions as CSV, Parquet or a submission."""
    spread = _is_spread(images, out, workers=workers, executor=executor)
    with command(as_json, reading=images, stopped=GOES_ON if spread else NOTHING_WRITTEN) as terminal:
        require_run(run)
        require_source(images)
        from assay.export.submission import member_of, write_predictions
        from assay.export.submission_form import Form
        from assay.labels.left_out import by_reason, require_all, unreadable_as_left_out
        from assay.messages import formula_note
        from assay.predictions.class_prior import Frequencies

        options = Form(
            form=form, like=like, top=top, columns=columns, tags=tags, separator=separator, none=none, ids=ids,
            header=header, inner=inner, safe_cells=safe_cells or None, coverage=coverage, by_class=by_class or None,
            unlike=unlike or None, abstain=abstain, features=features or None
        )  # fmt: skip
        _require_same_probabilities(coverage, tta=tta, adapt_prior=adapt_prior)
        wanted = _Wanted(model_of(run), device, parse_tta(tta), options.doubt.by_distance, features)
        if spread:
            _require_no_names_at_once(options)
            source = _of_shards(wanted, images, out, workers=workers, executor=executor, progress=terminal.progress)
        else:
            _require_shards(images, workers=workers, executor=executor)
            source = _of_files(wanted, images, image=image, root=root, progress=terminal.progress)
        if strict:
            require_all(source.left_out, used=source.count)
        uncertainty, space = source.saved.uncertainty, source.saved.space
        frequencies = Frequencies(space, _require_frequencies(uncertainty) if adapt_prior else uncertainty)
        layout, files = options.layout(space, source.files, uncertainty=uncertainty)
        unreadable, formulas = dict[str, str](), dict[str, None]()
        chunks = frequencies.counted(_noted(source.stream(files), unreadable, formulas))
        with stage(terminal.progress, "labelling", source.count):
            adapted = frequencies.adapted(chunks) if adapt_prior else chunks
            count = write_predictions(adapted, out, layout, strict=strict)
        notes = [*source.notes, *layout.notes, *(_view_notes(source.saved) if tta is None else ())]
        if out.suffix.lower() not in (".txt", ".parquet") and not safe_cells:
            names = [*formulas, *(name for head in space for name in head.classes)]
            notes += formula_note(names, "--safe-cells puts an apostrophe before them")
        notes += frequencies.notes()
        _note_in_run(run, out, images=count, form=str(options), progress=terminal.progress)
        reasons = {
            "unreadable_by_reason": by_reason(unreadable_as_left_out(unreadable, {})),
            "left_out": by_reason(source.left_out),
            "notes": notes,
        }
        written = {"member": member_of(out, layout), "columns": [column.name for column in layout.columns]}
        record = {"out": str(out), "form": form, **written, "images": count, "unreadable": unreadable, **reasons}
        terminal.print(record, _lines(out, count, reasons))


@dataclass(frozen=True)
class _Wanted:
    """What is computed of every image, by which model and where."""

    model: Path
    device: str | None
    tta: AnyTTA | None
    distances: bool
    features: bool


@dataclass(frozen=True)
class _Source:
    """Images to label, and a function that predicts them in the order and by the names of the file."""

    saved: Model
    count: int
    stream: Callable[[list[Image]], Iterable[Predictions]]
    files: Sequence[Image] = ()  # none where their names are not held at once
    left_out: Sequence[LeftOut] = ()
    notes: Sequence[str] = ()


def _of_files(wanted: _Wanted, images: Path, *, image: str | None, root: Path | None, progress: Progress) -> _Source:
    from assay.labels.readers.to_label import find_images
    from assay.predictions.predictor import Predictor
    from assay.training.devices import pick_device

    listed = find_images(images, image=image, root=root)
    predictor = Predictor.load(wanted.model, device=pick_device(wanted.device))

    def stream(files: list[Image]) -> Iterator[Predictions]:
        for chunk in predictor.stream(files, tta=wanted.tta, distances=wanted.distances, features=wanted.features):
            progress.advance(len(chunk))
            yield chunk

    return _Source(predictor.saved, len(listed.files), stream, listed.files, listed.left_out, listed.notes)


def _of_shards(
    wanted: _Wanted, images: Path, out: Path, *, workers: int | None, executor: str | None, progress: Progress
) -> _Source:
    from assay.labels.shards import absolute_addresses, address
    from assay.models.ensemble import load_model
    from assay.scale.executors import pick_executor
    from assay.scale.indexing import index_shards
    from assay.scale.shard_predictions import PredictShard, predict_shards

    saved = load_model(wanted.model)
    run, device = pick_executor(executor or "local", workers=workers, device=wanted.device, progress=progress)
    given = absolute_addresses([address(images)], Path.cwd())
    shards = index_shards(given, executor=run, progress=progress)
    function = PredictShard(wanted.model.absolute(), device, wanted.tta, wanted.distances, wanted.features)
    folder = out.absolute().with_suffix(".parts")

    def stream(_: list[Image]) -> Iterator[Predictions]:
        return predict_shards(shards, function, saved, folder=folder, executor=run, progress=progress)

    return _Source(saved, shards.images, stream, left_out=shards.left_out)


def _is_spread(images: Path, out: Path, *, workers: int | None, executor: str | None) -> bool:
    """Return whether images are predicted shard by shard, each to a file of its own."""
    from assay.labels.shards import names_shards

    wanted = workers is not None or executor is not None or out.suffix.lower() == ".parquet"
    with suppress(OSError):  # of a folder that may not be read: the command says so
        return wanted and names_shards(images)
    return False


def _require_shards(images: Path, *, workers: int | None, executor: str | None) -> None:
    from assay.errors import DataError
    from assay.messages import printable

    if workers is not None or executor is not None:
        option = "--workers" if workers is not None else "--executor"
        raise DataError(
            f"{option}: processes share the work by shards, and {printable(images)} is none. Leave it out, or write "
            f"shards: assay shard {printable(images)} --out shards/"
        )


def _require_no_names_at_once(options: Form) -> None:
    from assay.errors import DataError

    for option, given in (("--like", options.like is not None), ("--ids", options.ids not in (None, "path"))):
        if given:
            raise DataError(
                f"{option}: compares the names of all images, which nobody holds where shards are worked on by "
                "themselves. Leave it out, or go without --workers and --executor and write a .csv"
            )


def _require_frequencies(uncertainty: Uncertainty | None) -> Uncertainty:
    from assay.errors import ModelError
    from assay.export.submission_form import CALIBRATE_FIRST

    if uncertainty is None:
        raise ModelError(f"--adapt-prior: this model keeps no class frequencies of validation. {CALIBRATE_FIRST}")
    return uncertainty


def _view_notes(model: Model) -> Iterator[str]:
    """Yield what the views of a model cost."""
    from assay.models.classifier import FLIPS

    times = max(len(FLIPS[network.classifier.flip]) for network in model.networks)
    if times > 1:
        yield f"the model averages over {times} views of an image: this takes {times} times as long as one"


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


def _noted(
    chunks: Iterable[Predictions], unreadable: dict[str, str], formulas: dict[str, None]
) -> Iterator[Predictions]:
    """Yield the chunks; what could not be read, and names that are formulas, are added to the dictionaries."""
    from assay.messages import formulas as formulas_among

    for chunk in chunks:
        unreadable |= chunk.unreadable
        formulas |= dict.fromkeys(formulas_among(chunk.ids))
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
