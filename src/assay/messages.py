"""Text for people: printable names and plain tables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

MAX_CLASSES_LISTED = 30  # classes of a table; a run's metrics.json holds them all


def printable(name: str | Path) -> str:
    r"""Return a name that can be printed and stored, with bytes that are not UTF-8 as \xff."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def quoted(names: Iterable[str], limit: int = 5) -> str:
    """Return the first few names, for a message: `'a', 'b' and 3 more`."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(printable(name)) for name in names[:limit]) + rest


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the question after the known name that is nearest to an unknown one; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"Did you mean {near[0]!r}?" if near else ""


SPLITS = {"train": "training", "val": "validation", "test": "test"}
"""The parts of the data, in words."""


def plain(name: str) -> str:
    """Return a name with unprintable characters escaped, so that it cannot control a terminal or a page."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in printable(name))


def yaml_text(text: str) -> str:
    """Return a text in double quotes as YAML and JSON read it, with escapes for what cannot be seen."""
    return f'"{"".join(_escaped(letter) for letter in text)}"'


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


def yaml_word(text: str) -> str:
    """Return a text as a YAML 1.2 scalar that may stand within braces: plain where it can be, else in quotes."""
    is_plain = re.fullmatch(r"[A-Za-z_]\w*( \w+)*", text, re.ASCII)
    return text if is_plain and text.casefold() not in YAML_WORDS else yaml_text(text)


YAML_WORDS = frozenset({"true", "false", "null", "nan", "yes", "no", "on", "off"})
"""Plain words that some reader of YAML takes for something else than text."""


FORMULA = re.compile(r"[=+\-@\t\r](?!\d*[.,]?\d+$)")
"""The beginning of a cell that a spreadsheet takes for a formula; a number is none."""


def formulas(cells: Iterable[str]) -> list[str]:
    """Return the cells that a spreadsheet would run as formulas."""
    return [cell for cell in cells if FORMULA.match(cell)]


def safe_cell(cell: str) -> str:
    """Return a cell that a spreadsheet takes for text: an apostrophe before what would be a formula."""
    return f"'{cell}" if FORMULA.match(cell) else cell


def formula_note(cells: Iterable[str], way_out: str) -> list[str]:
    """Return a line on cells that a spreadsheet would run, and what to do; none where there are no such cells."""
    risky = formulas(dict.fromkeys(cells))
    text = f"{len(risky):,} names begin as formulas do (=, +, -, @, tab), and a spreadsheet would run them: "
    return [f"{text}{quoted(map(plain, risky), 3)}. {way_out}"] if risky else []


def shortened(name: str, longest: int) -> str:
    """Return a long name without its middle: names mostly differ at an end."""
    return name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 + 1 :]}"


def either(names: Sequence[str]) -> str:
    """Return the classes of a question as text."""
    return " / ".join(map(plain, names))


def text_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = (), title: str | None = None
) -> Table:
    """Return a table of text; the columns named in `right` are flush right."""
    table = bare_table(title)
    for name in columns:
        table.add_column(Text(plain(name)), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table


def plain_lines(table: Table, *, width: int = 110) -> list[str]:
    """Return a table as lines of plain text, for a log; lines without a letter are dropped."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = (line.rstrip() for line in capture.get().splitlines())
    return [line for line in lines if line]


def bare_table(title: str | None) -> Table:
    """Return an empty table under a title."""
    heading = Text(plain(title)) if title else None
    return Table(
        title=heading,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        pad_edge=False,
    )


def number_text(value: float | None) -> str:
    """Return a metric with three digits, or a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def metric_text(metric: Mapping[str, float | None]) -> str:
    """Return a metric of metrics.json with its interval, where it has one."""
    return f"{number_text(metric['value'])}{limits_text(metric['low'], metric['high'])}"


def limits_text(low: float | None, high: float | None, form: str = ".3f") -> str:
    """Return an interval in brackets, ` [0.951, 0.974]`, nothing where there is none."""
    return "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
