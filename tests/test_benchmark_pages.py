"""Pages that measurements write: sections stay where the rest is written anew, and errors are what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.estimates import lines
from benchmarks.harness import Options, replace_section
from benchmarks.schedules import EPOCHS, PER_EPOCH, TOP, table
from benchmarks.startup import HELP, read_log
from benchmarks.startup import lines as startup_lines
from benchmarks.trainings import gap_shares


def test_a_section_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    for name, text in (("one", "a"), ("two", "b"), ("one", "c")):
        replace_section(name, [text], page=page)
    sections = "<!-- one: begin -->\nc\n<!-- one: end -->\n\n<!-- two: begin -->\nb\n<!-- two: end -->\n"
    assert page.read_text() == f"# Page\n\n{sections}"


def test_estimates_are_held_against_the_largest_memory_so_far() -> None:
    foreseen: list[Any] = [
        {"name": "01-probe", "seconds": 2.0, "memory MiB": 900.0},
        {"name": "02-fit", "seconds": 90.0, "memory MiB": 600.0},
    ]
    measured = [
        {"name": "01-probe", "seconds": 4.0, "memory MiB": 1000.0},
        {"name": "02-fit", "seconds": 100.0, "memory MiB": 1000.0},
    ]
    records = [{"name": "a plan", "foreseen": {"steps": foreseen}, "measured": measured}]
    text = lines(Options(command="`a command`"), records)
    assert any("the largest error is 10%" in line for line in text)  # a probe of 4 s does not count
    assert text[-3] == "| a plan | 02-fit | 90 s | 100 s | -10% | 900 MiB | 1,000 MiB | -10% |"


def test_the_start_of_a_command_is_the_median_of_its_runs_beside_the_goal(tmp_path: Path) -> None:
    records = [
        *({"name": HELP, "seconds": seconds} for seconds in (0.2, 0.3, 0.1)),
        *({"name": "eurosat", "line": 0.6, "hashed": seconds, "image": 4.0} for seconds in (1.0, 2.5)),
    ]
    _, _, *rows = startup_lines(Options(command="`a command`", sets=["eurosat"]), records)
    assert rows[2:] == [
        "| `assay --help` | 0.20 (0.10 to 0.30) | 3 | 0.25: **reached** |",
        "| eurosat: first line | 0.60 (0.60 to 0.60) | 2 | 0.5: **missed** |",
        "| eurosat: first image read | 1.75 (1.00 to 2.50) | 2 | 2: **reached** |",
        "| eurosat: first image read by the command itself | 4.00 (4.00 to 4.00) | 2 |  |",
    ]
    (tmp_path / "opened").write_text("7 1.5\n8 2.25\n")
    assert read_log(tmp_path / "opened") == {7: 1.5, 8: 2.25}
    assert read_log(tmp_path / "not there") == {}


def test_every_schedule_is_drawn_over_all_its_steps() -> None:
    rates = table()
    kinds = rates["kind"].unique(maintain_order=True).to_list()
    assert kinds == ["constant", "flat_cos", "one_cycle", "cyclic", "cosine", "reduce_on_plateau"]
    assert rates.group_by("kind").len()["len"].to_list() == [EPOCHS * PER_EPOCH] * len(kinds)
    assert rates["lr"].max() == TOP
    assert rates.filter(kind="reduce_on_plateau")["lr"].n_unique() == 2


def test_the_share_of_the_gap_is_one_of_means_over_seeds() -> None:
    right = {"plain": 40, "repair": 70, "ceiling": 100}
    records = [
        {"name": name, "seed": seed, "correct": [1] * (count + shift) + [0] * (120 - count - shift)}
        for name, count in right.items()
        for seed, shift in ((0, 0), (1, 10))
    ]
    shares = gap_shares(
        records,
        lambda record, weights: np.array(record["correct"]) @ weights / 120,
        images=120,
        base="plain",
        ceiling="ceiling",
    )
    assert [*shares] == ["repair"]
    assert shares["repair"].value == pytest.approx(0.5)
    assert 0.3 < (shares["repair"].low or 0) < 0.5 < (shares["repair"].high or 0) < 0.7
