"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Task

LIBRARIES = ("sklearn", "scipy", "cleanlab", "joblib", "timm", "accelerate", "altair")
"""Libraries whose warnings are for their developers: what matters of them is a line of ours."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep warnings that other libraries raise in their modules from the user; those of a caller's code stay."""
    with warnings.catch_warnings():
        for name in LIBRARIES:
            warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
        yield


@contextmanager
def kept_handler(number: signal.Signals) -> Iterator[None]:
    """Give a signal back its handler after the block, which sets another."""
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, before or signal.SIG_DFL)


class GivenUpError(Exception):
    """Raised from `Progress.epoch` to end a run early, with that epoch in its checkpoint; or when a review ends."""


class Progress:
    """Receiver of the progress of work, which this one passes over. Only the main process has one that prints."""

    def begin(self, what: str, total: int) -> None:
        """A stage begins ("reading images", "02-fit") that will take `total` images; stages may nest."""

    def advance(self, count: int, metrics: Mapping[str, float] | None = None) -> None:
        """`count` more images are done; `metrics` replace those on display unless None."""

    def line(self, text: str) -> None:
        """A line that stays: the metrics of an epoch, a note, a choice."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch of the innermost stage is over: its number (`epoch`), `lr`, and metrics by part (`validation`).

        After a kill it may be called again for an epoch. An error raised here ends the run.
        """

    def end(self) -> None:
        """The innermost stage is over."""


class NoProgress(Progress):
    """No output: for other processes than the main one, and for use from Python."""

    def loading(self, what: str) -> None:
        """The program is about to be loaded, to work on `what`."""

    def close(self) -> None:
        """Do nothing: no stage is open."""


class Lines(NoProgress):
    """Keeps the lines that a person would see."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@contextmanager
def stage(progress: Progress, what: str, total: int = 0) -> Iterator[None]:
    """Make the block a stage of the work; of unknown length without a total."""
    progress.begin(what, total)
    try:
        yield
    finally:
        progress.end()


def advancing(progress: Progress) -> Callable[[int, int], None]:
    """Return a callback for totals that advances progress by the differences."""
    before = 0

    def report(done: int, total: int) -> None:
        nonlocal before
        progress.advance(done - before)
        before = done

    return report


class ForwardingProgress(Progress):
    """Passes all calls on to another receiver: a base class for listeners; `stage` is the innermost one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stages: list[str] = []

    @property
    def stage(self) -> str:
        return self._stages[-1]

    def begin(self, what: str, total: int) -> None:
        self._stages.append(what)
        self._progress.begin(what, total)

    def advance(self, count: int, metrics: Mapping[str, float] | None = None) -> None:
        self._progress.advance(count, metrics)

    def line(self, text: str) -> None:
        self._progress.line(text)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self._progress.epoch(row)

    def end(self) -> None:
        self._stages.pop()
        self._progress.end()


@dataclass
class _Stage:
    """A part of the work, and how many of its images are done."""

    what: str
    total: int
    done: int = 0


SILENCE = 2.5  # seconds after which a line says what is being done
PATIENCE = 0.5  # of the seconds that a stage has been silent, those between two such lines


def pulse_due(since_line: float, since_pulse: float) -> bool:
    """Return whether to say again what is being done, by the seconds since any other line and since this was said."""
    return since_pulse >= max(SILENCE, PATIENCE * (since_line - since_pulse))


class PlainProgress(NoProgress):
    """Only lines that stay: for a file, a pipe or a continuous-integration log.

    With `pulse`, what is being done is printed after `SILENCE` seconds without a line, and ever more rarely after that:
    the log of a night is read by a person.
    """

    def __init__(self, terminal: TextIO, *, pulse: bool = False) -> None:
        self._terminal, self._lock, self._closed = terminal, threading.Lock(), threading.Event()
        self._stages: list[_Stage] = []
        self._doing = "working"
        self._announced = ""  # while the program was being loaded
        self._line_at = self._written_at = time.monotonic()
        if pulse:
            threading.Thread(target=self._pulse, daemon=True).start()

    def loading(self, what: str) -> None:
        """The program is about to be loaded, to work on `what`."""
        self.line(f"reading {what}")
        self._announced, self._doing = f"reading {what}", "loading libraries"

    def begin(self, what: str, total: int) -> None:
        self._stages.append(_Stage(what, total))
        self._line_at, self._doing = time.monotonic(), "working"

    def advance(self, count: int, metrics: Mapping[str, float] | None = None) -> None:
        if self._stages:
            self._stages[-1].done += count

    def line(self, text: str) -> None:
        # What is being read was named before the program was there, perhaps with its path.
        if self._announced and text.startswith("reading ") and self._announced.endswith(text.removeprefix("reading ")):
            self._announced = ""
            return
        with self._lock:
            self._terminal.write(text + "\n")
            self._terminal.flush()  # a log that is followed shows an epoch when it ends
            self._line_at = self._written_at = time.monotonic()
        self._doing = "working"

    def end(self) -> None:
        if self._stages:
            self._stages.pop()

    def close(self) -> None:
        self._closed.set()

    def _pulse(self) -> None:
        while not self._closed.wait(SILENCE / 10):
            now = time.monotonic()
            if not pulse_due(now - self._line_at, now - self._written_at):
                continue
            with self._lock, suppress(OSError, ValueError):  # whoever read this has left: the next line will tell
                self._terminal.write(f"  ... {self._activity()}, {now - self._line_at:.0f} s\n")
                self._terminal.flush()
            self._written_at = now

    def _activity(self) -> str:
        if not self._stages:
            return self._doing
        now = self._stages[-1]
        return f"{now.what}: {now.done:,} of {now.total:,}" if now.total else now.what


class BarProgress(Progress):
    """A bar at the foot of the terminal: images/s, time left, the newest metrics; lines go above it."""

    def __init__(self, terminal: TextIO) -> None:
        from rich.console import Console  # 0.1 s that `assay --help` need not spend
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._progress = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[pace]}", markup=False),
            TextColumn("{task.fields[metrics]}", style="cyan", markup=False),
            console=Console(file=terminal, highlight=False),
            transient=True,
            refresh_per_second=4,  # leaves the cores to training
            redirect_stdout=sys.stdout.isatty(),  # a stray print goes above the bar, and not into it
            redirect_stderr=sys.stderr.isatty(),
        )
        self._stages: list[Task] = []
        self._loading = False

    def loading(self, what: str) -> None:
        """Show that the program is being loaded, to work on `what`, until the next stage or line."""
        self.begin(f"reading {what}", 0)
        self._loading = True

    def begin(self, what: str, total: int) -> None:
        self._end_loading()
        self._progress.add_task(what, total=total or None, pace="", metrics="")
        self._stages.append(self._progress.tasks[-1])
        self._progress.start()

    def advance(self, count: int, metrics: Mapping[str, float] | None = None) -> None:
        if not self._stages:
            return
        stage = self._stages[-1]
        text = stage.fields["metrics"] if metrics is None else format_metrics(metrics)
        self._progress.update(stage.id, advance=count, pace=_pace(stage), metrics=text)

    def _end_loading(self) -> None:
        if self._loading:
            self._loading = False
            self.end()

    def line(self, text: str) -> None:
        self._end_loading()
        self._progress.console.print(text, markup=False, emoji=False, soft_wrap=True)

    def end(self) -> None:
        if len(self._stages) == 1:
            self._progress.stop()  # while the bar is there to be erased
        if self._stages:
            self._progress.remove_task(self._stages.pop().id)

    def close(self) -> None:
        """End every stage and give the terminal back as it was, also after an error."""
        while self._stages:
            self.end()


def progress_for(terminal: TextIO) -> BarProgress | PlainProgress:
    """Return a bar for a terminal that can redraw a line, else plain lines.

    Silence is broken on this process's own streams: what has replaced one collects lines, and nobody waits for them.
    """
    if terminal.isatty() and os.environ.get("TERM", "") != "dumb":
        return BarProgress(terminal)
    return PlainProgress(terminal, pulse=terminal in (sys.__stdout__, sys.__stderr__))


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return names and values on one line, with values of constant width."""
    return "  ".join(f"{name} {_fixed(value)}" for name, value in metrics.items())


def format_seconds(seconds: float) -> str:
    """Return seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _pace(stage: Task) -> str:
    if not stage.speed:  # unknown before the second report
        return ""
    speed = f"{stage.speed:,.0f}" if stage.speed >= 10 else f"{stage.speed:.1f}"
    left = "" if stage.time_remaining is None else f"  {format_seconds(stage.time_remaining)} left"
    return f"{speed} images/s{left}"


def _fixed(value: float) -> str:
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"


def is_main_process() -> bool:
    """Return whether this is the first of the processes that torchrun or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


TORCHRUN = "torchrun --nproc_per_node 2 -m -- assay train ..."


def process_count(environment: Mapping[str, str]) -> int:
    """Return how many processes this one is one of."""
    return int(environment.get("WORLD_SIZE", "1"))


LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")  # gloo's and NCCL's words


def is_lost_process(error: BaseException) -> bool:
    """Return whether an exchange with another process failed, since that one has ended."""
    return any(words in str(error) for words in LOST)


def cores() -> int:
    """Return the number of cores of this process, which in a container may be fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
