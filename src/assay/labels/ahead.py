"""Content hashes that another process computes while this one still imports libraries.

It imports nothing heavy. What is hashed ahead only saves time: a file that has changed since, or was not reached, is
hashed as if nothing had been begun.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import IO

SETTLED = 2.0  # seconds: a file changed within these before it was hashed may change again with the same time

FileState = tuple[int, int, int]
"""Bytes, time of the last change in ns, and inode of a file."""

_begun: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []  # at most one, of this process


def begin(*arguments: str) -> None:
    """Start `python -m ARGUMENTS`, outside of the working folder, which prints what it hashes by `print_hashes`.

    Nothing is started where no file or process can be made. Whatever is wrong with the data, this process meets it too,
    and words it.
    """
    command, silent = [sys.executable, "-P", "-m", *arguments], subprocess.DEVNULL
    with suppress(OSError):
        output = tempfile.TemporaryFile()  # noqa: SIM115  (`collect` closes it; a pipe would have to be emptied)
        _begun.append((subprocess.Popen(command, stdin=silent, stdout=output, stderr=silent), output))


def collect() -> dict[str, tuple[FileState, str]]:
    """End the process begun, and return the state and the SHA-256 of every file that it has hashed, by path."""
    hashes: dict[str, tuple[FileState, str]] = {}
    while _begun:
        process, output = _begun.pop()
        process.kill()
        process.wait()
        with output:
            output.seek(0)
            whole = output.read().rpartition(b"\n")[0]  # without the line at which it was killed
        for line in whole.splitlines():
            hashes |= {
                path: ((size, changed, inode), digest) for path, size, changed, inode, digest in json.loads(line)
            }
    return hashes


def print_hashes(rows: Iterable[tuple[str, FileState, str]]) -> None:
    """Print paths, states and hashes as one line for `collect`; those of files that may just be changing are left out.

    A state is taken before the file is read.
    """
    before = time.time_ns() - int(SETTLED * 1e9)
    settled = [(path, *state, digest) for path, state, digest in rows if state[1] < before]
    sys.stdout.write(json.dumps(settled) + "\n")
    sys.stdout.flush()


def file_state(about: os.stat_result) -> FileState:
    """Return the state of a file from its `os.stat`."""
    return about.st_size, about.st_mtime_ns, about.st_ino


atexit.register(collect)
