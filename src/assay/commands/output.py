"""What every command does around its work: progress, one object with --json or tables and lines, exit codes."""

from __future__ import annotations

import atexit
import getpass
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import typer

from assay.commands.endings import NOTHING_WRITTEN, exit_codes, stop_at
from assay.errors import RunError
from assay.labels.ahead import begin
from assay.progress import NoProgress, Progress, cores, is_main_process, process_count, progress_for

if TYPE_CHECKING:
    from rich.table import Table

    from assay.run.train import Run

Block: TypeAlias = "str | Table"
"""A line, or a table."""

MAX_HEADS = 6  # whose classes have a table


@dataclass(frozen=True)
class Output:
    """The terminal of a command: progress while it works, then what came of it."""

    progress: Progress
    as_json: bool
    close: Callable[[], None] = lambda: None
    """Ends the lines that say that the command is at work: it waits for a person from here on."""

    def print(self, record: Any, blocks: Iterable[Block], *, width: int = 130) -> None:
        """Print `record` as one JSON object with --json, else the blocks; nothing but in the main process.

        `width` is that of tables in a file or pipe, which need not fold as on a terminal.
        """
        if not is_main_process():
            return
        if self.as_json:
            typer.echo(json.dumps(record, indent=1, ensure_ascii=False))
            return
        for block in blocks:
            if isinstance(block, str):
                typer.echo(block)
                continue
            from rich.console import Console

            Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else width).print(block)


@contextmanager
def command(
    as_json: bool = False,
    *,
    run: Path | None = None,
    stopped: str = NOTHING_WRITTEN,
    alone: str = "",
    until: str | None = None,
    reading: object = None,
) -> Iterator[Output]:
    """Run the block as a command: show its progress, turn its errors into messages and exit codes.

    A fault is added to the log of `run`; `stopped` tells how to go on after Ctrl-C; `alone` is the name of a command
    that works in one process only; `until` is when to stop, see `stop_at`; `reading` is printed before anything is
    imported, which takes seconds. Raises typer.Exit.
    """
    with exit_codes(run, stopped=stopped), stop_at(until):
        progress = progress_for(sys.stderr if as_json else sys.stdout) if is_main_process() else NoProgress()
        try:
            if alone and process_count(os.environ) > 1:
                raise RunError(
                    f"assay {alone}: it works in one process; start it without torchrun or accelerate launch."
                )
            _require_working_folder()
            if reading is not None and is_process_stream(as_json):
                progress.loading(str(reading))
            yield Output(progress, as_json, progress.close)
        finally:
            progress.close()  # before a message is printed over the bar


def hash_ahead(source: Path, changes: Sequence[str] | None) -> None:
    """Have the images of a folder, a table or a plan hashed while this process imports libraries.

    Not where there is no core for it, where `changes` may name other images, or where all is imported already.
    """
    busy = cores() < 2 or process_count(os.environ) > 1
    if not busy and "torch" not in sys.modules and not any(change.startswith("data.") for change in changes or ()):
        begin("assay.commands.hash_ahead", str(source), str(os.getpid()))


def require_home() -> None:
    """Give libraries a home and a user name where there is none, as in a container: they ask for both when imported."""
    try:
        home = Path.home()
    except (RuntimeError, KeyError):
        home = None
    if home is None or not os.access(home, os.W_OK | os.X_OK):
        with suppress(OSError):  # no disk may be written at all: whoever needs it says so
            folder = tempfile.mkdtemp(prefix="assay-home-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            for name in ("MPLCONFIGDIR", *(("HOME",) if home is None else ())):
                os.environ.setdefault(name, folder)
    try:
        getpass.getuser()
    except (OSError, KeyError, ImportError):
        os.environ["USER"] = "unknown"


def _require_working_folder() -> None:
    """Raise RunError where this was started in a folder that is gone, or may not be entered."""
    try:
        os.getcwd()
    except OSError as error:
        raise RunError(f"the folder this was started in is gone ({error.strerror}). Change to another one.") from error


def is_process_stream(as_json: bool) -> bool:
    """Return whether progress is printed on a stream of this process, and not collected by what has replaced it."""
    return (sys.stderr is sys.__stderr__) if as_json else (sys.stdout is sys.__stdout__)


def print_run(out: Output, run: Run, *, again: str = "") -> None:
    """Print the metrics of a finished run and what it concludes; `again` is the command that trains it again."""
    out.print({"run": str(run.folder), "metrics": run.metrics}, _run_blocks(run, again), width=110)


def _run_blocks(run: Run, again: str) -> Iterator[Block]:
    from assay.run.conclusions import conclusion_lines

    metrics, record, folder = run.metrics, run.record, shlex.quote(str(run.folder))
    if record.handed_on:
        steps = {step["name"]: step["scores"] for step in _comparable_steps(metrics["steps"])}
        steps |= {name: steps.pop(name) for name in [record.handed_on["step"]] if name in steps}  # last, by class too
        scores = {**metrics["baselines"], **steps, "test split": metrics["test"]}
        yield from metric_blocks(scores, chief=record.metric)
        yield f"The run is in {run.folder}. To label images with it:\n"
        yield f"    assay predict {folder} IMAGES --out labels.csv\n"
    yield from conclusion_lines(record, run.folder)
    if record.suspects and record.suspects["suspects"] + record.suspects["validation_suspects"]:
        table = shlex.quote(str(run.folder / record.suspects["file"]))
        yield "Then correct the labels and train again:\n"
        yield f"    assay ledger {folder} --correct {table}\n    {again}\n"
        yield f"Or settle them in the browser, which shows the images:\n\n    assay review {folder}\n"


def _comparable_steps(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps with metrics for the heads of the last one; those within another stand before it."""
    ordered = sorted(steps, key=lambda step: (step["name"].partition("/")[0], "/" not in step["name"]))
    scored = [step for step in ordered if "scores" in step]
    return [step for step in scored if _classes_by_head(step) == _classes_by_head(scored[-1])]


def _classes_by_head(step: dict[str, Any]) -> dict[str, list[str]]:
    heads = step["scores"]["heads"]
    return {name: [row["class"] for row in head["per_class"]] for name, head in heads.items()}


def metric_blocks(scores: Mapping[str, Mapping[str, Any] | None], *, chief: str | None = None) -> Iterator[Block]:
    """Yield tables of scores under one another, None left out; of the last each head, and each class.

    The metric `chief`, that of the plan, comes first.
    """
    from assay.predictions.baselines import MAJORITY
    from assay.report.tables import (
        baseline_lines,
        frequency_table,
        heads_table,
        metrics_table,
        per_class_table,
        small_n_line,
        untagged_line,
    )

    known = {name: score for name, score in scores.items() if score is not None}
    if not known:
        yield "No labelled images to score on, so there are no metrics."
        return
    yield metrics_table(known, chief=chief)
    last = list(known)[-1]
    heads = known[last]["heads"]
    yield from filter(None, [small_n_line(max((head["n"] for head in heads.values()), default=0))])
    yield from baseline_lines(known)
    yield from (untagged_line(score["without a tag"]) + "\n" for score in known.values() if score.get("without a tag"))
    if len(heads) > 1:
        yield heads_table(known[last], majority=known.get(MAJORITY), title=last)
    title: str | None = f"{last}, by class"
    for name, head in list(heads.items())[:MAX_HEADS]:
        if head["per_class"]:
            yield per_class_table(head["per_class"], head=name, title=title)
            title = None
        if head["by_frequency"]:
            yield frequency_table(head["by_frequency"], head=name)
    if len(heads) > MAX_HEADS:
        yield f"The classes of the other {len(heads) - MAX_HEADS} heads are in the metrics that --json prints."
