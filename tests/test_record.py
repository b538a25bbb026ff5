"""What a measurement keeps, so that it goes on where it was broken off."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.record import Record, require_same_settings


def test_lines_are_there_when_it_is_read_again(tmp_path: Path) -> None:
    record = Record(tmp_path / "work" / "measured.jsonl")
    assert record.lines == []
    record.keep({"key": "a/0", "seconds": 1.5})
    record.keep({"key": "b/0", "right": [1, 0]})
    assert (
        record.lines == Record(record.path).lines == [{"key": "a/0", "seconds": 1.5}, {"key": "b/0", "right": [1, 0]}]
    )


def test_other_settings_are_refused_and_those_of_before_stay(tmp_path: Path) -> None:
    require_same_settings(tmp_path / "work", {"size": 64, "members": ("a", "b")})
    require_same_settings(tmp_path / "work", {"size": 64, "members": ["a", "b"]})
    with pytest.raises(SystemExit, match=r"measured with other settings .* Give another folder"):
        require_same_settings(tmp_path / "work", {"size": 96, "members": ["a", "b"]})
    assert '"size": 64' in (tmp_path / "work" / "settings.json").read_text()
