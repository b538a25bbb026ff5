"""Where the program runs: without a home or a name, with closed streams; and that it is never silent for long."""

from __future__ import annotations

import getpass
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer

from assay import progress
from assay.commands.output import command, require_home
from assay.progress import PlainProgress, stage


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=own, check=False, timeout=120)


def nobody(*given: object) -> str:
    raise KeyError("getpwuid(): uid not found")


def test_libraries_find_a_home_and_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    require_home()
    assert Path.home().is_dir()
    assert os.access(os.environ["MPLCONFIGDIR"], os.W_OK)
    assert getpass.getuser() == "unknown"


def test_a_home_that_is_there_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    require_home()
    assert (os.environ["HOME"], os.environ.get("MPLCONFIGDIR")) == (str(tmp_path), None)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_fault(closed: str) -> None:
    done = run(f"{sys.executable} -m assay recipes noisy-labels {closed}", LC_ALL="C")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert run(f"{sys.executable} -m assay recipes nothing {closed}").returncode == 2


def test_a_reader_that_has_left_is_no_fault() -> None:
    done = run(f"{sys.executable} -m assay recipes noisy-labels | head -1")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_a_folder_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(typer.Exit), command():
        pass
    assert "the folder this was started in is gone" in capsys.readouterr().err


def test_no_folder_for_temporary_files_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left, command():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
    assert left.value.exit_code == 2
    assert "TMPDIR=/a/folder assay" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "stream"), [("", "stdout"), ("--json", "stderr")])
def test_the_first_line_comes_before_anything_heavy_is_imported(option: str, stream: str) -> None:
    watch = "import sys; sys.modules['torch'] = None; from assay.cli import main; main()"  # importing it would fail
    arguments = [sys.executable, "-c", watch, "train", "nothing-there/", *option.split()]
    with subprocess.Popen(arguments, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        lines = getattr(process, stream)
        assert lines.readline() == "reading nothing-there\n"
        process.kill()


def test_what_takes_long_to_import_waits_until_it_is_used() -> None:
    modules = "assay.commands.api, assay.run.train, assay.report.tables, assay.predictions.predictor"
    late = (
        "{'altair', 'vl_convert', 'matplotlib', 'sklearn', 'cleanlab', 'torch._dynamo.utils', 'torchvision.transforms'}"
    )
    begin = "from assay.postponed import postpone; postpone(); "
    done = run(f'{sys.executable} -c "{begin}import {modules}, sys; print({late} & set(sys.modules))"')
    assert done.stdout == "set()\n"


def until(terminal: io.StringIO, text: str) -> str:
    deadline = time.monotonic() + 10
    while text not in terminal.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    return terminal.getvalue()


def test_what_is_read_is_named_once_with_or_without_its_path() -> None:
    terminal = io.StringIO()
    plain = PlainProgress(terminal)
    plain.loading("/data/photos")
    for text in ("reading photos", "reading photos", "reading others"):
        plain.line(text)
    assert terminal.getvalue() == "reading /data/photos\nreading photos\nreading others\n"


def test_what_is_being_done_is_said_ever_more_rarely() -> None:
    said = [0.0]
    for now in np.arange(0, 60, 0.25).tolist():
        if progress.pulse_due(now, now - said[-1]):
            said.append(now)
    assert said == [0, 2.5, 5, 7.5, 11.25, 17, 25.5, 38.25, 57.5]


def test_silence_is_broken_by_what_is_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENCE", 0.05)
    terminal = io.StringIO()
    plain = PlainProgress(terminal, pulse=True)
    plain.loading("photos/")
    assert "reading photos/\n  ... loading libraries, 0 s\n" in until(terminal, "loading")
    with stage(plain, "images at 64", 90):
        plain.advance(30)
        assert "  ... images at 64: 30 of 90, 0 s\n" in until(terminal, "30 of 90")
    with stage(plain, "timing the hardware"):
        assert "  ... timing the hardware, 0 s\n" in until(terminal, "timing")
    plain.close()
    time.sleep(0.1)
    length = len(terminal.getvalue())
    time.sleep(0.2)
    assert len(terminal.getvalue()) == length
