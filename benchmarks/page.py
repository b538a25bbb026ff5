"""Sections of docs/RESULTS.md that measurements write: what stands between two marks is replaced, the rest stays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path("docs/RESULTS.md")


def replace_section(name: str, lines: Sequence[str], *, page: Path = PAGE) -> None:
    """Write lines between the marks of a section; a section that is not there yet is added at the end."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = page.read_text(encoding="utf-8")
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    page.write_text("\n".join([before + begin, *lines, end]) + after, encoding="utf-8")


def sections(text: str) -> str:
    """All that stands between marks on a page, marks and all: what a page that is written anew must keep."""
    marked = re.finditer(r"<!-- (.+?): begin -->\n.*?<!-- \1: end -->\n", text, flags=re.DOTALL)
    return "\n".join(match[0] for match in marked)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table, a line a row."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in row) + " |" for row in cells]
