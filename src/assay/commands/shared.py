"""What the commands share: options, progress, and how metrics are told."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.errors import AssayError, RunError, SpaceError
from assay.files import ModelFolder, RunFolder, append, full_disk
from assay.progress import NoProgress, Progress, is_main_process, process_count, progress_for

if TYPE_CHECKING:
    from assay.predictions.tta import AnyTTA
    from assay.run.train import Run

GOES_ON = "What was finished is kept: the same command goes on from there."
NO_RUN = "No run is left behind."
NOTHING_WRITTEN = "Nothing was written; give the same command to begin again."
HEADS_SHOWN = 6  # with a table of their classes

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")]
Device = Annotated[str | None, typer.Option(metavar="D", help="cpu, cuda, cuda:1, mps. The best there is.")]
TTA = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="Mean over views: flips, five_crops, scales, random, or {kind: flips, ...}"),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
Source = Annotated[
    Path, typer.Argument(metavar="DATA_OR_PLAN", help="A folder a class, a table (.csv, .tsv, .parquet) or a plan.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where images go. plans/ and the name of the data.")
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


def default_images(source: Path) -> Path:
    """plans/NAME after the data or the plan: what is shown before there is a run."""
    return Path("plans") / default_run(source).name


def model_of(run: Path) -> Path:
    """The model of a run; a model's folder that was taken elsewhere serves as well."""
    return run if ModelFolder(run).spec.is_file() else RunFolder(run).model.path


@contextmanager
def shown_progress(as_json: bool) -> Iterator[Progress]:
    if not is_main_process():
        yield NoProgress()
        return
    progress = progress_for(sys.stderr if as_json else sys.stdout)
    try:
        yield progress
    finally:
        progress.close()  # before a message is printed over the bar


def require_one_process(command: str) -> None:
    """Refuse to be one of several processes. Raises RunError."""
    if process_count(os.environ) > 1:
        raise RunError(f"{command}: it works in one process; start it without torchrun or accelerate launch.")


def print_run(run: Run, as_json: bool) -> None:
    if not is_main_process():
        return
    if as_json:
        print_json({"run": str(run.folder), "metrics": run.metrics})
        return
    metrics = run.metrics
    named = {step["name"]: step.get("scores") for step in _inner_first(metrics["steps"])}
    print_metrics({**metrics["baselines"], **named, "test split": metrics["test"]})
    folder = shlex.quote(str(run.folder))
    typer.echo(f"The run is in {run.folder}. To label images with it:\n")
    typer.echo(f"    assay predict {folder} IMAGES --out labels.csv\n")


def _inner_first(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps with metrics for the questions that the last one answers; those within another before it."""
    ordered = sorted(steps, key=lambda step: (step["name"].partition("/")[0], "/" not in step["name"]))
    asked = next((_questions(step) for step in reversed(ordered) if "scores" in step), None)
    return [step for step in ordered if "scores" in step and _questions(step) == asked]


def _questions(step: dict[str, Any]) -> dict[str, list[str]]:
    heads = step["scores"]["heads"]
    return {name: [row["class"] for row in head["per_class"]] for name, head in heads.items()}


def print_metrics(scores: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Scores under one another, None left out; of the last each head, and each class."""
    from rich.console import Console

    from assay.report.tables import frequency_table, heads_table, metrics_table, per_class_table, untagged_line

    known = {name: score for name, score in scores.items() if score is not None}
    if not known:
        typer.echo("No labelled images to score on, so there are no metrics.")
        return
    width = None if sys.stdout.isatty() else 110  # a file need not fold
    console = Console(file=sys.stdout, highlight=False, width=width)
    console.print(metrics_table(known))
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
        typer.echo(f"The classes of the other {len(heads) - HEADS_SHOWN} heads are in the metrics that --json prints.")


def parse_tta(text: str | None) -> AnyTTA | None:
    """The views that an option names, in YAML. Raises PlanError where there are none such."""
    if text is None:
        return None
    from assay.plan.checks import Check
    from assay.plan.problems import refuse
    from assay.plan.yaml_lines import Document, read
    from assay.predictions.tta import TTAOption

    document = Document({"tta": read(text, "--tta", lines=False).value}, f"--tta {text}")
    check = Check({}, TTAOption.model_json_schema)
    asked = check.settings(TTAOption, document, ())
    if asked is None:
        raise refuse(document, check.problems)
    return asked.tta


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


# How a command ends: exit code 0 done, 2 the user can mend it, 1 a fault of ours, 130 or 143 stopped.

PIPE_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")  # gloo's and NCCL's words
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@contextmanager
def exit_codes(run: Path | None = None, *, stopped: str = "") -> Iterator[None]:
    """Turn whatever ends the block early into a message on stderr and an exit code.

    A fault of ours keeps its traceback, which is added to the log of `run` too, if there is one.
    `stopped` says how to go on after Ctrl-C or SIGTERM. Raises typer.Exit.
    """
    try:
        with _terminable():
            yield
    except (typer.Exit, BrokenPipeError):  # the reader of our output has left: typer ends quietly
        raise
    except SpaceError as error:
        raise _ended(2, f"{error} {stopped}") from error
    except AssayError as error:
        raise _ended(2, str(error)) from error
    except KeyboardInterrupt as error:
        raise _ended(STOPPED[0], f"stopped. {stopped}") from error
    except SystemExit as error:
        if error.code not in STOPPED:
            raise
        raise _ended(error.code, f"stopped. {stopped}") from error
    except Exception as error:
        full = full_disk(error)
        message = f"{full} {stopped}" if full else _of_the_disk(error) or _of_the_processes(error)
        if message:
            raise _ended(2, message) from error
        raise _ended(1, lambda: _fault(run)) from error


def _ended(code: int, message: str | Callable[[], str]) -> typer.Exit:
    if first_to_fail(os.environ):
        text = message if isinstance(message, str) else message()
        typer.secho("assay: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(text.rstrip(), err=True)
    return typer.Exit(code)


def first_to_fail(environment: Mapping[str, str]) -> bool:
    """Return whether this process is the first of its run to end early, so that one message is printed and not many.

    When one process ends, the others fail in the next exchange with it. They ask the store that torchrun keeps for
    them; where there is none, or it cannot be reached, every process is to speak.
    """
    if process_count(environment) == 1 or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # 2 s, which one process need not wait for

    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    attempt = f"{environment.get('TORCHELASTIC_RUN_ID')}/{environment.get('TORCHELASTIC_RESTART_COUNT')}"
    try:
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
        return bool(store.add(f"assay/{attempt}/failed", 1) == 1)
    except RuntimeError:  # the launcher is gone
        return True


def _of_the_processes(error: Exception) -> str:
    """What to say where an exchange with another process failed; else nothing."""
    if process_count(os.environ) == 1 or not any(words in str(error) for words in LOST):
        return ""
    return (
        "another process of this run ended, and it did not say why: it was killed, perhaps for want of memory. "
        "What was finished is kept; the same command goes on from there."
    )


def _of_the_disk(error: Exception) -> str:
    """What to say of a disk that is closed to us, wherever that showed; else nothing."""
    if not isinstance(error, OSError) or error.errno not in PIPE_CLOSED:
        return ""
    at = f"{error.filename}: " if error.filename else ""
    return f"{at}{error.strerror}. Give permission to it, or choose another place."


def _fault(run: Path | None) -> str:
    """Print the traceback, keep it in the run's log, and say what to do with it."""
    lines = traceback.format_exc()
    typer.echo(lines, err=True, nl=False)
    log = RunFolder(run).log if run is not None else None
    if log is not None and log.is_file():
        entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "fault": lines}
        with suppress(OSError, AssayError):
            append(log, f"{json.dumps(entry)}\n".encode())
    kept = f" They are in {log} too." if log is not None and log.is_file() else ""
    return f"this is a fault of the program, not yours. Please report it with the lines above.{kept}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, so that nothing half-written stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
