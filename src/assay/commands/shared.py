"""What the commands share: options, progress, and how figures are told."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.endings import process_count
from assay.errors import RunError
from assay.progress import Silent, Watch, watch_for

if TYPE_CHECKING:
    from assay.predictions.views import AnyViews
    from assay.run import Run

GOES_ON = "What was finished is kept: the same command goes on from there."
NO_RUN = "No run is left behind."
NOTHING_WRITTEN = "Nothing was written; give the same command to begin again."
HEADS_SHOWN = 6  # with a table of their classes

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")]
Device = Annotated[str | None, typer.Option(metavar="D", help="cpu, cuda, cuda:1, mps. The best there is.")]
Views = Annotated[
    str | None,
    typer.Option(metavar="VIEWS", help="Mean over views: flips, five_crops, scales, random, or {kind: flips, ...}"),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
Source = Annotated[
    Path, typer.Argument(metavar="DATA_OR_PLAN", help="A folder a class, a table (.csv, .tsv, .parquet) or a plan.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where pictures go. plans/ and the name of the data.")
]
Recipe = Annotated[str | None, typer.Option(metavar="NAME", help="A ready plan; see `assay recipes`.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the plan: --set steps.1.fit.epochs=4"),
]


def default_run(source: Path) -> Path:
    """runs/NAME after the data or the plan."""
    place = source.absolute()
    return Path("runs") / (place.resolve().name if place.is_dir() else place.stem)


def default_pictures(source: Path) -> Path:
    """plans/NAME after the data or the plan: what is shown before there is a run."""
    return Path("plans") / default_run(source).name


def model_of(run: Path) -> Path:
    """The model of a run; a model's folder that was taken elsewhere serves as well."""
    return run if (run / "spec.json").is_file() else run / "model"


@contextmanager
def watching(as_json: bool) -> Iterator[Watch]:
    if not is_main():
        yield Silent()
        return
    watch = watch_for(sys.stderr if as_json else sys.stdout)
    try:
        yield watch
    finally:
        watch.close()  # before a message is printed over the bar


def is_main() -> bool:
    """Whether this is the first of the processes that torchrun or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def require_one_process(command: str) -> None:
    """Refuse to be one of several processes. Raises RunError."""
    if process_count(os.environ) > 1:
        raise RunError(f"{command}: it works in one process; start it without torchrun or accelerate launch.")


def tell_run(run: Run, as_json: bool) -> None:
    if not is_main():
        return
    if as_json:
        print_json({"run": str(run.folder), "metrics": run.metrics})
        return
    figures = run.metrics
    named = {step["name"]: step.get("scores") for step in _inner_first(figures["steps"])}
    print_figures({**figures["baselines"], **named, "test split": figures["test"]})
    folder = shlex.quote(str(run.folder))
    typer.echo(f"The run is in {run.folder}. To label pictures with it:\n")
    typer.echo(f"    assay predict {folder} PICTURES --out labels.csv\n")


def _inner_first(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps with figures for the questions that the last one answers; those within another before it."""
    ordered = sorted(steps, key=lambda step: (step["name"].partition("/")[0], "/" not in step["name"]))
    asked = next((_questions(step) for step in reversed(ordered) if "scores" in step), None)
    return [step for step in ordered if "scores" in step and _questions(step) == asked]


def _questions(step: dict[str, Any]) -> dict[str, list[str]]:
    heads = step["scores"]["heads"]
    return {name: [row["class"] for row in head["per_class"]] for name, head in heads.items()}


def print_figures(scores: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Scores under one another, None left out; of the last each head, and each class."""
    from rich.console import Console

    from assay.evidence.tables import figures_table, frequency_table, heads_table, per_class_table, untagged_line

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
        if head["by_frequency"]:
            console.print(frequency_table(head["by_frequency"], head=name))
    if len(heads) > HEADS_SHOWN:
        typer.echo(f"The classes of the other {len(heads) - HEADS_SHOWN} heads are in the figures that --json prints.")


def views_from(text: str | None) -> AnyViews | None:
    """The views that an option names, in YAML. Raises PlanError where there are none such."""
    if text is None:
        return None
    from assay.plan_checks import Check
    from assay.plan_problems import refuse
    from assay.predictions.views import Asked
    from assay.yaml_lines import Document, read

    document = Document({"views": read(text, "--views", lines=False).value}, f"--views {text}")
    check = Check({}, Asked.model_json_schema)
    asked = check.settings(Asked, document, ())
    if asked is None:
        raise refuse(document, check.problems)
    return asked.views


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
