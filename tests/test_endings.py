from __future__ import annotations

import errno
import json
import logging
import signal
import warnings
from pathlib import Path

import pytest
import typer

from assay.commands.endings import exit_codes
from assay.errors import DataError


def ending(error: BaseException, run: Path | None = None) -> int:
    with pytest.raises(typer.Exit) as left, exit_codes(run, stopped="Go on."):
        raise error
    return left.value.exit_code


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("photos/: no images. Add some."), 2, "assay: photos/: no images. Add some.\n"),
        (KeyboardInterrupt(), 130, "assay: stopped. Go on.\n"),
        (SystemExit(143), 143, "assay: stopped. Go on.\n"),
        (SystemExit(130), 130, "assay: stopped. Go on.\n"),
        (OSError(errno.ENOSPC, "No space", "a/log"), 2, "assay: a/log: the disk is full ("),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 2, "assay: a: Permission denied. Give"),
    ],
)
def test_what_can_be_mended_is_a_message_and_no_traceback(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert "Traceback" not in err


@pytest.mark.parametrize("has_log", [True, False])
def test_a_fault_of_ours_keeps_its_traceback(has_log: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    if has_log:
        log.write_text('{"line": "before"}\n')
    assert ending(ZeroDivisionError("oh"), tmp_path) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: oh\nassay: this is a fault of the program" in err
    if has_log:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert lines[0] == {"line": "before"}
        assert "ZeroDivisionError: oh" in lines[1]["fault"]
    assert log.exists() == has_log


def test_sigterm_ends_the_block_and_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as left, exit_codes():
        signal.raise_signal(signal.SIGTERM)
    assert left.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("error", [typer.Exit(0), BrokenPipeError(), SystemExit(5)])
def test_the_rest_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), exit_codes():
        raise error


def test_what_libraries_warn_of_goes_to_the_log_of_the_run_once_and_to_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").touch()
    with exit_codes(tmp_path):
        for _ in range(2):
            warnings.warn_explicit("an odd array", RuntimeWarning, "library.py", 7)
            logging.getLogger("library").warning("an old file")
    with exit_codes(tmp_path / "none"):
        logging.getLogger("library").warning("an old file")
    assert capsys.readouterr() == ("", "")
    kept = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(entry["by"], entry["warning"].split("\n")[0]) for entry in kept] == [
        ("py.warnings", "library.py:7: RuntimeWarning: an odd array"), ("library", "an old file")
    ]  # fmt: skip
