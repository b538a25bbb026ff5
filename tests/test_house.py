"""The measurements of the source tree, on a tree small enough to count by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import house

FILES = {
    "src/assay/__init__.py": "from assay.run.train import train\n",
    "src/assay/errors.py": "class AssayError(Exception): ...\n",
    "src/assay/labels/__init__.py": "",
    "src/assay/labels/space.py": "from assay.errors import AssayError\nfrom assay.labels import split\n" + "\n" * 60,
    "src/assay/labels/split.py": "def share():\n    from assay.labels.space import few_rows\n",
    "src/assay/metrics/__init__.py": "",
    "src/assay/metrics/metrics.py": "import assay.run.train\nhead.kind == 'multiclass'  # not kind == 'x'\n"
    "FewShot: dict[str, Any] = {}  # of 'dict[str, Any]'\n",
    "src/assay/run/__init__.py": "",
    "src/assay/run/train.py": "from assay.labels import split as found\ndef train(figures, fewer): self.told = 1\n",
    "src/assay/cli.py": "from assay.run.train import train\n",
    "tests/test_a.py": "a = 1\nb = 2\n",
    "benchmarks/run.py": "a = 1\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_row_of_the_table(tree: Path) -> None:
    assert house.measure(tree) == {
        "lines in src": 1 + 1 + 62 + 2 + 3 + 2 + 1,
        "modules with exactly one importer": 2,  # errors and labels.space
        "files under 60 lines in src": 5,  # all but labels.space
        "modules in import cycles": 2,  # labels.space and labels.split
        "imports against the direction": 1,  # metrics.metrics -> run.train
        "`kind ==` tests of heads": 1,
        "`dict[str, Any]`": 1,
        "lines in benchmarks": 1,
        "lines in tests": 2,
        "avoided words in names": 4,  # FewShot, found, figures, told
    }


def test_it_is_printed_as_a_table_and_as_json(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["house", str(tree)])
    house.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[2] == "| lines in src | 72 | at most 26,500 |"
    assert len(printed) == 2 + len(house.WANTED)
    monkeypatch.setattr(sys, "argv", ["house", str(tree), "--json"])
    house.main()
    assert json.loads(capsys.readouterr().out) == house.measure(tree)


@pytest.mark.parametrize(
    ("name", "words"),
    [("LastFew_row", ["last", "few", "row"]), ("HTTPFigure2", ["http", "figure"]), ("_SHOWN", ["shown"])],
)
def test_parts_of_a_name(name: str, words: list[str]) -> None:
    assert house.parts(name) == words


@pytest.mark.parametrize("name", ["fewer", "placement", "known", "replace", "aimed"])
def test_words_that_contain_an_avoided_one_are_others(name: str) -> None:
    assert house.avoided([name]) == []


def test_the_package_has_no_cycle_and_no_name_made_of_a_word_to_avoid() -> None:
    values = house.measure(Path(__file__).parents[1])
    zero = ("modules in import cycles", "imports against the direction", "avoided words in names")
    assert {name: values[name] for name in zero} == dict.fromkeys(zero, 0)
