from __future__ import annotations

import io
import re
import time
import warnings

import pytest

from assay.progress import (
    BarProgress,
    NoProgress,
    PlainProgress,
    Progress,
    format_metrics,
    format_seconds,
    progress_for,
    quiet_libraries,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def an_epoch(progress: Progress) -> None:
    progress.begin("02-fit [x]", 64)
    for done in range(8):
        time.sleep(0.002)
        progress.advance(8, {"loss": 1 / (done + 1)})
    progress.line("epoch 1  [bold] :smile: loss 0.125")
    progress.advance(0)
    progress.end()


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def test_a_terminal_gets_a_bar_with_pace_and_metrics_and_the_line_as_it_is(terminal: Terminal) -> None:
    progress = progress_for(terminal)
    an_epoch(progress)
    assert isinstance(progress, BarProgress)
    text = visible(terminal.getvalue())
    assert "epoch 1  [bold] :smile: loss 0.125\n" in text
    assert re.search(r"02-fit \[x\].*100 % [\d,.]+ images/s {2}0:00 left.*loss 0\.125", text)


def test_the_line_is_above_the_bar_and_the_bar_is_gone_at_the_end(terminal: Terminal) -> None:
    an_epoch(progress_for(terminal))
    end = terminal.getvalue()
    assert end.rindex("epoch 1") < end.rindex("02-fit")
    assert end.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, the last line wiped


def test_closing_after_an_error_gives_the_cursor_back_however_many_stages_are_open(
    terminal: Terminal,
) -> None:
    progress = progress_for(terminal)
    progress.begin("02-fit", 10)
    progress.begin("validating", 5)
    progress.close()
    assert terminal.getvalue().count("\x1b[?25l") == 1
    assert "\x1b[?25h" in terminal.getvalue()
    progress.advance(1)  # nothing is under way: nothing to show
    progress.end()
    progress.line("still fine")
    assert terminal.getvalue().endswith("still fine\n")


def test_an_inner_stage_leaves_the_outer_one_going(terminal: Terminal) -> None:
    progress = progress_for(terminal)
    progress.begin("outer", 10)
    progress.begin("inner", 0)  # of unknown length
    progress.advance(3)
    progress.end()
    progress.advance(10, {"accuracy": 0.5})
    progress.end()
    text = visible(terminal.getvalue())
    assert text.rindex("outer") > text.rindex("inner")
    assert "accuracy 0.500" in text


@pytest.mark.parametrize("setting", ["no terminal", "dumb"])
def test_elsewhere_only_the_lines_that_stay(setting: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    if setting == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    file = terminal if setting == "dumb" else io.StringIO()
    progress = progress_for(file)
    an_epoch(progress)
    progress.close()
    assert isinstance(progress, PlainProgress)
    assert file.getvalue() == "epoch 1  [bold] :smile: loss 0.125\n"


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    progress: Progress = NoProgress()
    an_epoch(progress)
    assert capfd.readouterr() == ("", "")


def test_metrics_keep_their_width_and_small_ones_are_not_lost() -> None:
    assert format_metrics({"loss": 1.23456, "lr": 0.00051, "f1": 0.0}) == "loss 1.235  lr 5.1e-04  f1 0.000"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.7, "1:00:00"), (36061, "10:01:01")])
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_warnings_of_libraries_do_not_reach_the_user_and_those_of_others_do() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_libraries():
            for module in ("sklearn.svm._base", "sklearn", "mine.sklearn_like"):
                warnings.warn_explicit("too few iterations", UserWarning, "file.py", 1, module=module)
    assert len(caught) == 1
