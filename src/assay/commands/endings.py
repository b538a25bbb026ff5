"""How a command ends: exit code 0 done, 2 the user can mend it, 1 a fault of ours, 130 or 143 stopped."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType

import typer

from assay.errors import AssayError, PlanError, SpaceError
from assay.files import RunFolder, add_to_log, full_disk
from assay.progress import is_lost_process, kept_handler, process_count

GOES_ON = "What was finished is kept: the same command goes on from there."
NO_RUN = "No run is left behind."
NOTHING_WRITTEN = "Nothing was written; give the same command to begin again."
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@contextmanager
def exit_codes(run: Path | None = None, *, stopped: str = "") -> Iterator[None]:
    """Turn whatever ends the block early into a message on stderr and an exit code.

    A fault of ours keeps its traceback, which is added to the log of `run` too, if there is one.
    `stopped` says how to go on after Ctrl-C or SIGTERM; after SIGTERM the exit code of what goes on is 0.
    Raises typer.Exit.
    """
    try:
        with _terminable(), _warnings_to_log(run):
            yield
    except (typer.Exit, BrokenPipeError):  # the reader of our output has left: typer ends quietly
        raise
    except SpaceError as error:
        raise _end(2, f"{error} {stopped}") from error
    except AssayError as error:
        raise _end(2, str(error)) from error
    except KeyboardInterrupt as error:
        raise _end(STOPPED[0], f"stopped. {stopped}") from error
    except SystemExit as error:
        if error.code not in STOPPED:
            raise
        # A job that its cluster ends, or its own limit of time, is no failure where the same command goes on.
        raise _end(0 if stopped == GOES_ON else error.code, f"stopped. {stopped}") from error
    except Exception as error:
        if _lost_process(error) and _stopping and time.monotonic() > _stopping[0] - GRACE:
            raise _end(0, f"stopped. {stopped}") from error  # the other was first to stop
        full = full_disk(error)
        message = f"{full} {stopped}" if full else _closed_disk(error) or _lost_process(error)
        if message:
            raise _end(2, message) from error
        raise _end(1, lambda: _fault(run)) from error


def _end(code: int, message: str | Callable[[], str]) -> typer.Exit:
    """Print a message, unless another process has printed one, and return what ends this one."""
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


def _lost_process(error: Exception) -> str:
    """Return the message where an exchange with another process failed, else nothing."""
    if process_count(os.environ) == 1 or not is_lost_process(error):
        return ""
    return (
        "another process of this run ended, and it did not say why: it was killed, perhaps for want of memory. "
        "What was finished is kept; the same command goes on from there."
    )


def _closed_disk(error: Exception) -> str:
    """Return the message where a disk may not be written or read, else nothing."""
    if isinstance(error, FileNotFoundError) and "usable temporary directory" in str(error):
        return "there is no folder for temporary files that may be written. Name one: TMPDIR=/a/folder assay ..."
    if not isinstance(error, OSError) or error.errno not in CLOSED:
        return ""
    at = f"{error.filename}: " if error.filename else ""
    return f"{at}{error.strerror}. Give permission to it, or choose another place."


def _fault(run: Path | None) -> str:
    """Print the traceback, add it to the run's log, and return the message."""
    lines = traceback.format_exc()
    typer.echo(lines, err=True, nl=False)
    log = RunFolder(run).log if run is not None else None
    if log is None or not log.is_file():
        kept = ""
    else:
        with suppress(OSError, AssayError):
            add_to_log(log, fault=lines)
        kept = f" They are in {log} too."
    return f"this is a fault of the program, not yours. Please report it with the lines above.{kept}"


_stopping: list[float] = []  # when --stop-at rings, on the monotonic clock
GRACE = 20  # seconds for a process that waits for others, deaf to signals, or learns that they have left


@contextmanager
def stop_at(text: str | None) -> Iterator[None]:
    """Send this process SIGTERM after a duration (7h50m) since now, or at a time of day (06:30), within the block.

    Raises PlanError for a text that is neither, and where signals cannot be set.
    """
    if text is None:
        yield
        return
    seconds = seconds_until(text, datetime.now())
    if not hasattr(signal, "setitimer"):
        raise PlanError("--stop-at: this system cannot set a timer. Leave the option out.")
    rung = threading.Event()

    def ring(number: int, frame: FrameType | None) -> None:
        rung.set()
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _stopping.append(time.monotonic() + seconds)
    if process_count(os.environ) > 1:
        threading.Thread(target=_leave_waiting, args=(rung, seconds + GRACE), daemon=True).start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        rung.set()
        _stopping.clear()


def _leave_waiting(rung: threading.Event, seconds: float) -> None:
    """End a process that waits for one of several that has stopped: Python's signals do not reach it there."""
    if not rung.wait(seconds):
        os._exit(0)


def seconds_until(text: str, now: datetime) -> float:
    """Return the seconds of a duration (7h50m, 90m, 45s, 1d12h), or until a time of day (06:30). Raises PlanError."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    compact = text.strip().lower().replace(" ", "")
    if re.fullmatch(r"([0-9]+(\.[0-9]+)?[dhms])+", compact):
        seconds = sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)([dhms])", compact))
        if seconds > 0:
            return seconds
    if clock := re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", compact):
        at = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return (at - now).total_seconds() % units["d"] or units["d"]
    raise PlanError(
        f"--stop-at {text}: is neither a duration nor a time of day. Write 7h50m, 90m, 45s or 1d12h, or a time such as "
        "06:30."
    )


@contextmanager
def _warnings_to_log(run: Path | None) -> Iterator[None]:
    """Write what libraries warn of in the block to the log of `run`, where there is one, and nothing to the terminal.

    Their warnings are of code, which a user can do nothing about; ours are lines of the progress.
    """
    handler = _WarningLog(run)
    root = logging.getLogger()
    root.addHandler(handler)  # without any, Python prints what a library logs
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)


class _WarningLog(logging.Handler):
    """Appends each warning once to the log of a run that has one by then."""

    def __init__(self, run: Path | None) -> None:
        super().__init__(logging.WARNING)
        self._log = RunFolder(run).log if run is not None else None
        self._texts: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip()
        if self._log is None or not self._log.is_file() or text in self._texts:
            return
        self._texts.add(text)
        with suppress(OSError, AssayError):  # the disk may be full, which ends the run in its own words
            add_to_log(self._log, warning=text, by=record.name)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, so that nothing half-written stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    with kept_handler(signal.SIGTERM):
        signal.signal(signal.SIGTERM, leave)
        yield
