from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from assay.errors import RunError
from assay.run.environment import lock

HOLD = """
import pathlib, sys
from assay.run.environment import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "runs" / "x")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_learns_who_holds_the_folder_and_what_to_do(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "x"
    message = f"{folder}: another process (pid {holder.pid}) is writing to this run. Wait for it, or choose another"
    with pytest.raises(RunError) as refused, lock(folder):
        pass
    assert str(refused.value).startswith(message)


def test_the_lock_dies_with_a_killed_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock(tmp_path / "runs" / "x"):
        assert (tmp_path / "runs" / "x" / ".lock").read_text() == str(os.getpid())


def test_twice_in_one_process_is_refused_and_once_given_back_it_is_free(tmp_path: Path) -> None:
    for _ in range(2):
        with lock(tmp_path), pytest.raises(RunError, match=rf"pid {os.getpid()}\)"), lock(tmp_path):
            pass
    assert (tmp_path / ".lock").read_text() == ""


def test_it_is_given_back_after_an_error_and_other_folders_are_free(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "a"), lock(tmp_path / "b"):
        raise ZeroDivisionError
    with lock(tmp_path / "a"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/x: cannot be written .*--run"), lock(tmp_path / "file" / "x"):
        pass


def test_a_started_program_does_not_keep_the_lock(tmp_path: Path) -> None:
    with lock(tmp_path):
        program = subprocess.Popen(["sleep", "30"])
    try:
        with lock(tmp_path):
            pass
    finally:
        program.kill()
        program.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()

    def work() -> None:
        begun.set()
        time.sleep(30)

    with lock(tmp_path):
        process = fork.Process(target=work)
        process.start()
    try:
        assert begun.wait(20)
        with lock(tmp_path):
            pass
    finally:
        process.kill()
        process.join()
