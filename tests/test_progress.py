from __future__ import annotations

import io
import re
import time

import pytest

from assay.progress import Bar, Plain, Silent, Watch, format_figures, format_seconds, watch_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def an_epoch(watch: Watch) -> None:
    watch.begin("02-fit [x]", 64)
    for done in range(8):
        time.sleep(0.002)
        watch.advance(8, {"loss": 1 / (done + 1)})
    watch.line("epoch 1  [bold] :smile: loss 0.125")
    watch.advance(0)
    watch.end()


def seen(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def test_a_terminal_gets_a_bar_with_pace_and_figures_and_the_line_as_it_is(terminal: Terminal) -> None:
    watch = watch_for(terminal)
    an_epoch(watch)
    assert isinstance(watch, Bar)
    text = seen(terminal.getvalue())
    assert "epoch 1  [bold] :smile: loss 0.125\n" in text
    assert re.search(r"02-fit \[x\].*100 % [\d,.]+ pictures/s {2}0:00 left.*loss 0\.125", text)


def test_the_line_is_above_the_bar_and_the_bar_is_gone_at_the_end(terminal: Terminal) -> None:
    an_epoch(watch_for(terminal))
    end = terminal.getvalue()
    assert end.rindex("epoch 1") < end.rindex("02-fit")
    assert end.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, the last line wiped


def test_closing_after_an_error_gives_the_cursor_back_however_many_stages_are_open(
    terminal: Terminal,
) -> None:
    watch = watch_for(terminal)
    watch.begin("02-fit", 10)
    watch.begin("validating", 5)
    watch.close()
    assert terminal.getvalue().count("\x1b[?25l") == 1
    assert "\x1b[?25h" in terminal.getvalue()
    watch.advance(1)  # nothing is under way: nothing to show
    watch.end()
    watch.line("still fine")
    assert terminal.getvalue().endswith("still fine\n")


def test_an_inner_stage_leaves_the_outer_one_going(terminal: Terminal) -> None:
    watch = watch_for(terminal)
    watch.begin("outer", 10)
    watch.begin("inner", 0)  # of unknown length
    watch.advance(3)
    watch.end()
    watch.advance(10, {"accuracy": 0.5})
    watch.end()
    text = seen(terminal.getvalue())
    assert text.rindex("outer") > text.rindex("inner")
    assert "accuracy 0.500" in text


@pytest.mark.parametrize("setting", ["no terminal", "dumb"])
def test_elsewhere_only_the_lines_that_stay(setting: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    if setting == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    file = terminal if setting == "dumb" else io.StringIO()
    watch = watch_for(file)
    an_epoch(watch)
    watch.close()
    assert isinstance(watch, Plain)
    assert file.getvalue() == "epoch 1  [bold] :smile: loss 0.125\n"


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    watch: Watch = Silent()
    an_epoch(watch)
    assert capfd.readouterr() == ("", "")


def test_figures_keep_their_width_and_small_ones_are_not_lost() -> None:
    assert format_figures({"loss": 1.23456, "lr": 0.00051, "f1": 0.0}) == "loss 1.235  lr 5.1e-04  f1 0.000"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.7, "1:00:00"), (36061, "10:01:01")])
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
