"""Pages that measurements write: sections stay where the rest is written anew, and errors are what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.estimates import section
from benchmarks.page import replace_section, sections
from benchmarks.schedules import EPOCHS, PER_EPOCH, TOP, table


def test_sections_are_found_whole(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    for name, text in (("one", "a"), ("two", "b"), ("one", "c")):
        replace_section(name, [text], page=page)
    assert (
        sections(page.read_text())
        == "<!-- one: begin -->\nc\n<!-- one: end -->\n\n<!-- two: begin -->\nb\n<!-- two: end -->\n"
    )
    assert sections("# Page\n") == ""


def test_estimates_are_held_against_the_largest_memory_so_far() -> None:
    foreseen: list[Any] = [
        {"name": "01-probe", "seconds": 2.0, "memory MiB": 900.0},
        {"name": "02-fit", "seconds": 90.0, "memory MiB": 600.0},
    ]
    found = [
        {"name": "01-probe", "seconds": 4.0, "memory MiB": 1000.0},
        {"name": "02-fit", "seconds": 100.0, "memory MiB": 1000.0},
    ]
    lines = section([{"name": "a plan", "foreseen": {"steps": foreseen}, "found": found}])
    assert any("the largest error is 10%" in line for line in lines)  # a probe of 4 s is not judged
    assert lines[-1] == "| a plan | 02-fit | 90 s | 100 s | -10% | 900 MiB | 1,000 MiB | -10% |"


def test_every_schedule_is_drawn_over_all_its_steps() -> None:
    rates = table()
    kinds = rates["kind"].unique(maintain_order=True).to_list()
    assert kinds == ["constant", "flat_cos", "one_cycle", "cyclic", "cosine", "reduce_on_plateau"]
    assert rates.group_by("kind").len()["len"].to_list() == [EPOCHS * PER_EPOCH] * len(kinds)
    assert rates["lr"].max() == TOP
    assert rates.filter(kind="reduce_on_plateau")["lr"].n_unique() == 2
