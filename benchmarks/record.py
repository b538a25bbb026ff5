"""What was measured, a line of JSON each, in a file: a measurement that was broken off goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Record:
    """The lines kept in a file so far, and those to come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines: list[Line] = [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []

    def keep(self, line: Line) -> None:
        """Add a line, here and in the file."""
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def require_same_settings(work: Path, settings: Any) -> None:
    """Refuse to mix measurements of different settings, as JSON holds them, in one table. Raises SystemExit."""
    work.mkdir(parents=True, exist_ok=True)
    path, text = work / "settings.json", json.dumps(settings)
    if path.exists() and json.loads(path.read_text()) != json.loads(text):
        raise SystemExit(f"--work {work}: measured with other settings ({path}). Give another folder.")
    path.write_text(text)
