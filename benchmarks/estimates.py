"""How far off `assay plan` is: time and memory of every step as estimated, and as a run then has them.

python -m benchmarks.estimates DATA [--only NAME ...] [--page PAGE]
"""

import json
import re
import threading
import time
from collections.abc import Sequence
from itertools import accumulate

import assay
from assay.experiments.peak import held
from assay.plan.yaml_lines import write
from assay.progress import NoProgress
from benchmarks.harness import SPEED, Benchmark, Options, Record, by_seed, in_a_process, run_assay

LEAST = 5.0  # seconds: steps that take less are shown, but their error does not count
HEADER = "| plan | step | time foreseen | taken | off by | memory foreseen | held | off by |"
ROW = (
    "| {plan} | {name} | {seconds:.0f} s | {taken:.0f} s | {time error:+.0%} | {peak:,.0f} MiB | {held:,.0f} MiB "
    "| {memory error:+.0%} |"
)
CASES = {
    "multi-label-fast, flickr": ("flickr", "multi-label-fast"),
    "attributes-fast, fashion": ("fashion", "attributes-fast"),
    "default plan, eurosat": ("eurosat", None),
    "noisy-labels-fast, eurosat": ("eurosat", "noisy-labels-fast"),
}
"""The set and the recipe; without a recipe the default plan."""


def measure(options: Options, case: tuple[str, str | None], seed: int) -> Record:
    """Return what is foreseen of a plan, and what its run took."""
    data, recipe = case
    with options.scratch() as folder:
        source = options.data / data
        if recipe in ("multi-label-fast", "attributes-fast"):
            source = folder / "plan.yaml"
            source.write_text(write({"data": options.data_of(data)}), encoding="utf-8")
        by_recipe = ["--recipe", recipe] if recipe else []
        foreseen = run_assay("plan", source, *by_recipe, "--out", folder / "images", "--json").output
        measured = in_a_process(train, str(source), recipe, str(folder / "run"))
    return {"foreseen": json.loads(foreseen), "measured": measured}


def train(source: str, recipe: str | None, run: str) -> list[Record]:
    """Train here; return the name, the seconds and the peak in MiB of every step."""
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
        while True:
            time.sleep(0.05)
            self.peaks[self.name] = max(self.peaks.get(self.name, 0.0), held())


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return the table, and how far off the steps are at the most."""
    rows = []
    for record in records:
        steps = record["foreseen"]["steps"]
        peaks = accumulate((step["memory MiB"] or 0.0 for step in steps), max)
        for step, peak, measured in zip(steps, peaks, record["measured"], strict=True):
            taken, memory = measured["seconds"], measured["memory MiB"]
            errors = {"time error": step["seconds"] / taken - 1, "memory error": peak / memory - 1}
            rows.append({**step, "plan": record["name"], "peak": peak, "taken": taken, "held": memory, **errors})
    sizes = [abs(row["memory error"]) for row in rows]
    sizes += [abs(row["time error"]) for row in rows if row["taken"] >= LEAST]
    note = f"Of steps of {LEAST:g} s and more, and of all memory, the largest error is {max(sizes):.0%}."
    return options.section(HEADER, ROW, rows, note)


if __name__ == "__main__":
    Benchmark("estimates", __doc__, by_seed(measure, CASES), lines=lines, seeds=None, page=SPEED).main()
