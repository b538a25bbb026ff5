"""Pages that measurements write: sections stay where the rest is written anew, and errors are what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.estimates import lines
from benchmarks.harness import Options, replace_section
from benchmarks.schedules import EPOCHS, PER_EPOCH, TOP, table
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
