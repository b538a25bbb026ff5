"""Trains on the data sets from the command line and writes the metrics into docs/RESULTS.md.

    python -m benchmarks.results DATA [--only NAME ...]

DATA holds the unpacked data sets. What stands between the two marks in docs/RESULTS.md is replaced; the rest stays.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.page import replace_section

PROBE = 'data: {folder: "DATA"}\nsteps:\n  - probe: {size: 128}\n'
TAGS = 'data: {lists: "DATA/annotations", images: "images/im{id}.jpg"}\n'
ATTRIBUTES = """\
data:
  rows: split/train.txt
  labels: split/train_attr.txt
  class_names: split/list_attr_cloth.txt
  root: "DATA"
"""


@dataclass(frozen=True)
class Measurement:
    """One command, on one data set."""

    name: str
    data: str
    plan: str | None  # the text of a plan, with DATA for the folder; None: the folder alone, by the default plan
    goal: str
    recipe: str | None = None
    metric: str = "accuracy"


MEASUREMENTS = (
    Measurement("eurosat, probe at 128", "eurosat", PROBE, "0.90 within 20 s"),
    Measurement("eurosat, default plan", "eurosat", None, "0.96 within 4 min"),
    Measurement("seedlings, default plan", "seedlings", None, "0.96 within 9 min"),
    Measurement("flickr, tags", "flickr", TAGS, "micro F1 0.83 within 8 min", "multi-label-fast", "micro_f1"),
    Measurement("fashion, six attributes", "fashion", ATTRIBUTES, "0.795 within 10 min", "attributes-fast"),
)


def main() -> None:
    """Measure, one after the other, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", default=None, help="names of measurements")
    options = parser.parse_args()
    rows = []
    for measurement in MEASUREMENTS:
        if options.only is None or measurement.name in options.only:
            rows.append(row(measurement, measure(measurement, options.data)))
            sys.stderr.write(rows[-1] + "\n")
    write(rows)


def measure(measurement: Measurement, data: Path) -> dict[str, Any]:
    """Run the command in an empty folder, cold, and read what it left."""
    with tempfile.TemporaryDirectory() as scratch:
        source = data / measurement.data
        if measurement.plan is not None:
            source = Path(scratch) / "plan.yaml"
            source.write_text(measurement.plan.replace("DATA", str((data / measurement.data).resolve())))
        run = Path(scratch) / "run"
        began = time.perf_counter()
        command = [sys.executable, "-m", "assay", "train", str(source), "--run", str(run), "--json"]
        recipe = ["--recipe", measurement.recipe] if measurement.recipe else []
        subprocess.run([*command, *recipe], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
        plan = (run / "plan.yaml").read_text()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"metrics": metrics, "seconds": seconds, "plan": plan, "resident": peak}


def row(measurement: Measurement, found: dict[str, Any]) -> str:
    """One line of the table."""
    metrics = found["metrics"]
    metric = metrics["scores"]["metrics"][measurement.metric]
    rates = [step["details"].get("images_per_second") for step in metrics["steps"]]
    until = sum(step["seconds"] for step in metrics["steps"])
    command = f"assay train {measurement.data}/" if measurement.plan is None else "probe: {size: 128}"
    if measurement.recipe:
        command = f"assay train {measurement.data}.yaml --recipe {measurement.recipe}"
    named = "" if measurement.metric == "accuracy" else f"{measurement.metric.replace('_', ' ')} "
    memory = metrics["memory MiB"]
    cells = [
        measurement.name,
        f"{named}{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]",
        str(metric["n"]),
        "0",
        f"{until:.0f} s",
        f"{found['seconds']:.0f} s",
        f"{next((rate for rate in reversed(rates) if rate), '')}",
        f"{memory.get('anonymous', memory['resident']):,.0f} MiB",
        measurement.goal,
        f"`{command}`",
    ]
    return "| " + " | ".join(cells) + " |"


def write(rows: list[str]) -> None:
    """Replace what stands between the marks."""
    head = [
        "| what | accuracy on validation, 95 % interval | n | seed | steps | whole command | images/s of the fit "
        "| peak memory | goal | command |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    replace_section("measured", [*head, *rows])


if __name__ == "__main__":
    main()
