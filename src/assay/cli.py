"""The commands. What is heavy is imported inside them, so that `assay --help` answers at once."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from assay import __version__
from assay.endings import reported
from assay.progress import Silent, Watch, watch_for

if TYPE_CHECKING:
    from assay.predictions.predict import Predictions
    from assay.run import Run

GOES_ON = "What was finished is kept: the same command goes on from there."
NOTHING_WRITTEN = "Nothing was written; give the same command to begin again."
HEADS_SHOWN = 6  # with a table of their classes
LISTED = 20  # unreadable pictures on the terminal; the file has all of them

app = typer.Typer(
    name="assay",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing the frames of rich's help takes longer than all the rest of it
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")]
Device = Annotated[str | None, typer.Option(metavar="D", help="cpu, cuda, cuda:1, mps. The best there is.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]


def main() -> None:
    """The command `assay`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be text that can be printed
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"assay {__version__}")
        raise typer.Exit


@app.callback()
def _assay(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Image classifiers from pictures whose labels cannot be fully trusted."""


@app.command()
def train(
    source: Annotated[
        Path,
        typer.Argument(metavar="DATA_OR_PLAN", help="A folder a class, a table (.csv, .tsv, .parquet) or a plan."),
    ],
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="A ready plan; see `assay recipes`.")] = None,
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to. runs/ and the name of the data.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the plan: --set steps.1.fit.epochs=4"),
    ] = None,
    device: Device = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse broken pictures instead of leaving them out.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier, or go on where the same command was stopped."""
    folder = run or _default_run(source)
    with reported(folder, stopped=GOES_ON), _watching(as_json) as watch:
        import assay.run

        finished = assay.run.train(
            source,
            run=folder,
            recipe=recipe,
            overrides=tuple(changes or ()),
            device=device,
            strict=strict,
            watch=watch,
        )
        _tell_run(finished, as_json)


@app.command()
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
    inner: Annotated[str | None, typer.Option(metavar="NAME", help="What the file in the zip is called.")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Label new pictures, and write what is handed in."""
    with reported(None, stopped=NOTHING_WRITTEN), _watching(as_json) as watch:
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
        found = find_pictures(pictures, root=root)
        artifact = Artifact.load(_model_of(run), device=pick_device(device))
        layout, found = wanted.layout(artifact.saved.space, found)
        unreadable: dict[str, str] = {}
        watch.begin("labelling", len(found))
        written = write_predictions(_counted(artifact.stream(found), watch, unreadable), out, layout)
        watch.end()
        if (run / "plan.yaml").is_file():
            note_in_run(run, out, pictures=written, form=str(wanted), watch=watch)
        if as_json:
            named = {"member": member_of(out, layout), "columns": [column.name for column in layout.columns]}
            _print_json({"out": str(out), "form": form, **named, "pictures": written, "unreadable": unreadable})
            return
        for name, reason in list(unreadable.items())[:LISTED]:
            watch.line(f"could not be read: {name}: {reason}")
        if len(unreadable) > LISTED:
            watch.line(f"... and {len(unreadable) - LISTED} more: --json names them, and so does the column `error`")
        watch.line(f"{out}: {written} pictures" + (f", {len(unreadable)} unreadable" if unreadable else ""))


@app.command()
def evaluate(
    run: RunFolder,
    source: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Labelled pictures: a folder a class, a table, or YAML with `data:`."),
    ],
    as_json: AsJson = False,
) -> None:
    """Score on labelled pictures, beside the validation figure."""
    with reported(None, stopped=NOTHING_WRITTEN), _watching(as_json) as watch:
        import assay.run
        from assay.labels.read import read_whole
        from assay.plan import from_source

        finished = assay.run.load(run)
        loaded = from_source(source)
        samples = read_whole(loaded.plan.data, base=loaded.base)
        found = assay.run.evaluate(finished, samples, watch=watch)
        if as_json:
            _print_json(found)
        else:
            _print_figures({"validation": found["validation"], "these pictures": found["scores"]})


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The recipe to print.")] = None,
) -> None:
    """List the ready plans, or print one to edit."""
    with reported(None):
        from assay.recipes import recipe_names, recipe_summary, recipe_text

        if name is not None:
            typer.echo(recipe_text(name), nl=False)
            return
        for known in recipe_names():
            typer.echo(f"{known}\n    {recipe_summary(known)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a plan, for your editor."""
    with reported(None):
        from assay.plan import json_schema

        _print_json(json_schema())


@app.command()
def demo(
    run: Annotated[Path, typer.Option(metavar="DIR", help="Where to; the pictures go to DIR-pictures.")] = Path(
        "runs/demo"
    ),
) -> None:
    """The whole story on built-in pictures: handwritten digits."""
    with reported(run, stopped=GOES_ON), _watching(False) as watch:
        import assay.run
        from assay.demo import write_digits

        pictures = Path(f"{run}-pictures")
        if _is_main():
            write_digits(pictures)
        finished = assay.run.train(pictures, run=run, recipe="demo", watch=watch)
        _tell_run(finished, False)


def _default_run(source: Path) -> Path:
    """runs/NAME after the data or the plan."""
    place = source.absolute()
    return Path("runs") / (place.resolve().name if place.is_dir() else place.stem)


def _model_of(run: Path) -> Path:
    """The model of a run; a model's folder that was taken elsewhere serves as well."""
    return run if (run / "spec.json").is_file() else run / "model"


@contextmanager
def _watching(as_json: bool) -> Iterator[Watch]:
    if not _is_main():
        yield Silent()
        return
    watch = watch_for(sys.stderr if as_json else sys.stdout)
    try:
        yield watch
    finally:
        watch.close()  # before a message is printed over the bar


def _is_main() -> bool:
    """Whether this is the first of the processes that `accelerate launch` or torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _counted(chunks: Iterable[Predictions], watch: Watch, unreadable: dict[str, str]) -> Iterator[Predictions]:
    for chunk in chunks:
        watch.advance(len(chunk.ids))
        unreadable |= chunk.unreadable
        yield chunk


def _tell_run(run: Run, as_json: bool) -> None:
    if not _is_main():
        return
    if as_json:
        _print_json({"run": str(run.folder), "metrics": run.metrics})
        return
    figures = run.metrics
    named = {step["name"]: step.get("scores") for step in figures["steps"]}
    _print_figures({**figures["baselines"], **named, "test split": figures["test"]})
    folder = shlex.quote(str(run.folder))
    typer.echo(f"The run is in {run.folder}. To label pictures with it:\n")
    typer.echo(f"    assay predict {folder} PICTURES --out labels.csv\n")


def _print_figures(scores: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Scores under one another, None left out; of the last each head, and each class."""
    from rich.console import Console

    from assay.evidence.tables import figures_table, heads_table, per_class_table, untagged_line

    known = {name: score for name, score in scores.items() if score is not None}
    if not known:
        typer.echo("No labelled pictures to score on, so there are no figures.")
        return
    width = None if sys.stdout.isatty() else 110  # a file need not fold
    console = Console(file=sys.stdout, highlight=False, width=width)
    console.print(figures_table(known))
    for score in known.values():
        if score.get("without a tag"):
            typer.echo(untagged_line(score["without a tag"]) + "\n")
    last = list(known)[-1]
    heads = known[last]["heads"]
    if len(heads) > 1:
        console.print(heads_table(known[last], title=last))
    title: str | None = f"{last}, by class"
    for name, head in list(heads.items())[:HEADS_SHOWN]:
        if head["per_class"]:
            console.print(per_class_table(head["per_class"], head=name, title=title))
            title = None
    if len(heads) > HEADS_SHOWN:
        typer.echo(f"The classes of the other {len(heads) - HEADS_SHOWN} heads are in the figures that --json prints.")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
