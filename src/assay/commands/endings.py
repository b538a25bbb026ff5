"""How a command ends: exit code 0 done, 2 the user can mend it, 1 a fault of ours, 130 or 143 stopped."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

import typer

from assay.errors import AssayError, SpaceError
from assay.files import RunFolder, append, full_disk
from assay.progress import process_count

GOES_ON = "What was finished is kept: the same command goes on from there."
NO_RUN = "No run is left behind."
NOTHING_WRITTEN = "Nothing was written; give the same command to begin again."
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")  # gloo's and NCCL's words
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@contextmanager
def exit_codes(run: Path | None = None, *, stopped: str = "") -> Iterator[None]:
    """Turn whatever ends the block early into a message on stderr and an exit code.

    A fault of ours keeps its traceback, which is added to the log of `run` too, if there is one.
    `stopped` says how to go on after Ctrl-C or SIGTERM. Raises typer.Exit.
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
        raise _end(error.code, f"stopped. {stopped}") from error
    except Exception as error:
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
    if process_count(os.environ) == 1 or not any(words in str(error) for words in LOST):
        return ""
    return (
        "another process of this run ended, and it did not say why: it was killed, perhaps for want of memory. "
        "What was finished is kept; the same command goes on from there."
    )


def _closed_disk(error: Exception) -> str:
    """Return the message where a disk may not be written or read, else nothing."""
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
        entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "fault": lines}
        with suppress(OSError, AssayError):
            append(log, f"{json.dumps(entry)}\n".encode())
        kept = f" They are in {log} too."
    return f"this is a fault of the program, not yours. Please report it with the lines above.{kept}"


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
        entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "warning": text, "by": record.name}
        with suppress(OSError, AssayError):  # the disk may be full, which ends the run in its own words
            append(self._log, f"{json.dumps(entry, ensure_ascii=False)}\n".encode())


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
