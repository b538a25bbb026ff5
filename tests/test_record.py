"""What a benchmark keeps, so that it goes on where it was broken off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.harness import Benchmark, Cell, Options, Record, Records, by_seed


def test_records_are_there_when_they_are_read_again(tmp_path: Path) -> None:
    records = Records(tmp_path / "work")
    assert records.rows == []
    records.add({"name": "a", "seed": 0, "seconds": 1.5})
    records.add({"name": "b", "seed": 0, "right": [1, 0]})
    again = Records(tmp_path / "work")
    assert records.rows == again.rows
    assert again.rows == [{"name": "a", "seed": 0, "seconds": 1.5}, {"name": "b", "seed": 0, "right": [1, 0]}]
    assert again.find(Cell("b", 0, dict)) == again.rows[1]
    assert again.find(Cell("b", 1, dict)) is None


def test_other_settings_are_refused_and_those_of_before_stay(tmp_path: Path) -> None:
    Records(tmp_path / "work", {"size": 64, "members": ("a", "b")})
    Records(tmp_path / "work", {"size": 64, "members": ["a", "b"]})
    with pytest.raises(SystemExit, match=r"measured with other settings .* Give another folder"):
        Records(tmp_path / "work", {"size": 96, "members": ["a", "b"]})
    assert '"size": 64' in (tmp_path / "work" / "settings.json").read_text()


@pytest.fixture
def measured() -> list[tuple[int, int]]:
    """Collect the case and seed of each measurement."""
    return []


@pytest.fixture
def run(tmp_path: Path, measured: list[tuple[int, int]]) -> Callable[..., str]:
    """Run a benchmark of two cases, and return its page."""

    def measure(options: Options, case: int, seed: int) -> Record:
        measured.append((case, seed))
        return {"value": case * options.size + seed}

    cases, header, row = {"a one": 1, "b two": 2}, "| name | value |", "| {name} | {value} |"
    benchmark = Benchmark("some values", "", by_seed(measure, cases), header, row, settings={"size": 10}, data=False)

    def page(*arguments: str, resumes: bool = True) -> str:
        path = tmp_path / "page.md"
        replace(benchmark, resumes=resumes).main([*arguments, "--work", str(tmp_path / "work"), "--page", str(path)])
        return path.read_text()

    return page


def test_a_section_is_written_from_what_was_measured(run: Callable[..., str], measured: list[tuple[int, int]]) -> None:
    page = run("--seeds", "0", "3")
    assert measured == [(1, 0), (2, 0), (1, 3), (2, 3)]
    assert page.splitlines()[2:] == [
        "<!-- some values: begin -->",
        "`python -m benchmarks.some_values --seeds 0 3 --size 10`",
        "",
        "| name | value |",
        "| --- | --- |",
        "| a one | 10 |",
        "| b two | 20 |",
        "| a one | 13 |",
        "| b two | 23 |",
        "<!-- some values: end -->",
    ]
    assert run("--seeds", "0", "3") == page == run("--seeds", "0", "3", "--report")
    assert len(measured) == 4


def test_cells_are_chosen_by_name_and_pattern(run: Callable[..., str], measured: list[tuple[int, int]]) -> None:
    assert "--only 'b*'" in run("--seeds", "0", "--only", "b*")
    run("--seeds", "0", "--only", "a one")
    assert measured == [(2, 0), (1, 0)]
    with pytest.raises(SystemExit, match=r"no such cell\. There are: a one; b two"):
        run("--only", "c")


def test_what_does_not_resume_is_measured_anew(run: Callable[..., str], measured: list[tuple[int, int]]) -> None:
    for size in ("10", "20"):
        run("--seeds", "0", "--size", size, resumes=False)
    assert measured == [(1, 0), (2, 0), (1, 0), (2, 0)]


def test_options_that_only_choose_cells_share_their_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cells(options: Options) -> list[Cell]:
        return [Cell(name, 0, lambda: {"value": 1}, 30.0) for name in options.sets]

    benchmark = Benchmark("hours", "", cells, "| name |", "| {name} |", choices={"sets": ("a", "b")}, data=False)
    where = ["--work", str(tmp_path / "work"), "--page", str(tmp_path / "page.md")]
    benchmark.main(["--sets", "a", *where])
    benchmark.main(where)
    assert len(Records(tmp_path / "work").rows) == 2
    assert capsys.readouterr().err.count("missing: 1, about 0.5 h\n") == 2
    assert "--sets a" not in (tmp_path / "page.md").read_text()
