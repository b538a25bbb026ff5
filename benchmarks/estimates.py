"""How far off `assay plan` is: time and memory of every step as foreseen, and as a run then has them.

    python -m benchmarks.estimates DATA [--only NAME ...] [--page PAGE]

DATA holds the unpacked data sets. Each plan is looked at and then trained, from nothing, each in a process of its own.
A process keeps what memory an earlier step had: its peak is held against the largest foreseen so far. Writes the
section "estimates" of docs/BENCHMARKS.md from what was measured, which stays in WORK/measured.jsonl: a measurement that
was broken off goes on from there.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import assay
from assay.experiments.peak import held
from assay.progress import NoProgress
from benchmarks.page import replace_section, table
from benchmarks.record import Line, Record, require_same_settings
from benchmarks.results import ATTRIBUTES, TAGS

PAGE = Path("docs/BENCHMARKS.md")
SEVERAL = 0.05  # seconds between two looks at memory
LEAST = 5.0  # seconds: steps that take less are told, and not judged
HEADER = ["plan", "step", "time foreseen", "taken", "off by", "memory foreseen", "held", "off by"]


@dataclass(frozen=True)
class Case:
    """A recipe on a data set; without a recipe the default plan."""

    data: str
    recipe: str | None = None
    text: str | None = None  # of the plan's data, with DATA for the folder


CASES = {
    "multi-label-fast, flickr": Case("flickr", "multi-label-fast", TAGS),
    "attributes-fast, fashion": Case("fashion", "attributes-fast", ATTRIBUTES),
    "default plan, eurosat": Case("eurosat"),
    "noisy-labels-fast, eurosat": Case("eurosat", "noisy-labels-fast"),
}


def main() -> None:
    """Measure what is missing, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-estimates")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--train", nargs=3, metavar=("SOURCE", "RECIPE", "RUN"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        source, recipe, run = given.train
        sys.stdout.write(json.dumps(trained(source, recipe or None, run)))
        return
    require_same_settings(given.work, 1)
    record = Record(given.work / "measured.jsonl")
    for name in given.only:
        if name not in {line["name"] for line in record.lines}:
            sys.stderr.write(f"{name}\n")
            record.keep({"name": name, **measured(CASES[name], given.data)})
    replace_section("estimates", section(record.lines), page=given.page)


def measured(case: Case, data: Path) -> Line:
    """What is foreseen of a plan, and what its run took."""
    with tempfile.TemporaryDirectory() as scratch:
        source = data / case.data
        if case.text is not None:
            source = Path(scratch) / "plan.yaml"
            source.write_text(case.text.replace("DATA", str((data / case.data).resolve())))
        recipe = ["--recipe", case.recipe] if case.recipe else []
        images = ["--out", str(Path(scratch) / "images")]
        plan = [sys.executable, "-m", "assay", "plan", str(source), *recipe, *images, "--json"]
        foreseen = json.loads(subprocess.run(plan, check=True, stdout=subprocess.PIPE).stdout)
        worker = [sys.executable, "-m", "benchmarks.estimates", str(data), "--train"]
        train = [*worker, str(source), case.recipe or "", str(Path(scratch) / "run")]
        found = json.loads(subprocess.run(train, check=True, stdout=subprocess.PIPE).stdout)
    return {"foreseen": foreseen, "found": found}


def trained(source: str, recipe: str | None, run: str) -> list[dict[str, Any]]:
    """Train here; the name, the seconds and the peak in MiB of every step."""
    progress = _Held()
    finished = assay.train(source, run=run, recipe=recipe, progress=progress)
    steps = [step for step in finished.metrics["steps"] if "/" not in step["name"]]
    return [
        {"name": step["name"], "seconds": step["seconds"], "memory MiB": progress.peaks.get(step["name"])}
        for step in steps
    ]


class _Held(NoProgress):
    """The most memory that the process held in each step."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self.name = ""
        threading.Thread(target=self._look, daemon=True).start()

    def line(self, text: str) -> None:
        if re.fullmatch(r"\d\d-\w+", text):
            self.name = text
        elif text == "baselines":
            self.name = ""

    def _look(self) -> None:
        over = threading.Event()
        while not over.wait(SEVERAL):
            self.peaks[self.name] = max(self.peaks.get(self.name, 0.0), held())


def section(lines: list[Line]) -> list[str]:
    """The table, and how far off the steps are at the most."""
    rows, off = [], []
    for line in lines:
        steps = line["foreseen"]["steps"]
        peaks = accumulate((step["memory MiB"] or 0.0 for step in steps), max)
        for step, peak, found in zip(steps, peaks, line["found"], strict=True):
            time, memory = _off(step["seconds"], found["seconds"]), _off(peak, found["memory MiB"])
            judged = found["seconds"] >= LEAST
            off += [abs(time), abs(memory)] if judged else [abs(memory)]
            rows.append(
                [
                    line["name"], step["name"], f"{step['seconds']:.0f} s", f"{found['seconds']:.0f} s", f"{time:+.0%}",
                    f"{peak:,.0f} MiB", f"{found['memory MiB']:,.0f} MiB", f"{memory:+.0%}",
                ]
            )  # fmt: skip
    return [
        "## What `assay plan` foresees, and what a run takes",
        "",
        "Written by `python -m benchmarks.estimates DATA`: each plan is looked at, then trained from nothing, one",
        "after the other. Memory is that of the process, which keeps what an earlier step had.",
        f"Of steps of {LEAST:g} s and more, and of all memory, the largest error is {max(off):.0%}.",
        "",
        *table(HEADER, rows),
    ]


def _off(foreseen: float, found: float) -> float:
    return foreseen / found - 1


if __name__ == "__main__":
    main()
