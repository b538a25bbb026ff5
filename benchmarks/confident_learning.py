"""Time and memory of confident learning, beside cleanlab called directly, on made-up probabilities.

    python -m benchmarks.confident_learning [--repeats 3]

Each measurement is a process of its own, and the peak is that of the whole process: imports, labels and probabilities
included. A fifth of the labels are wrong. Writes a section of docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.memory import Peak
from benchmarks.page import replace_section, table

CASES = (("assay", 50_000), ("cleanlab", 50_000), ("assay", 200_000), ("cleanlab", 200_000))
CLASSES = 100
GOAL = {("assay", 200_000): "within 2 GB"}


def main() -> None:
    """Measure every case, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, help="instead of the sizes of the table, to try it")
    parser.add_argument("--one", nargs=2, metavar=("WHO", "IMAGES"), help="measure in this process, print JSON")
    given = parser.parse_args()
    if given.one:
        sys.stdout.write(json.dumps(measure(given.one[0], int(given.one[1]))) + "\n")
        return
    cases = CASES if given.images is None else [(who, given.images) for who in ("assay", "cleanlab")]
    rows = [row(who, count, [observed(who, count) for _ in range(given.repeats)]) for who, count in cases]
    lines = table(["what", "labels", "suspects", "seconds (median)", "peak memory", "of it before", "goal"], rows)
    command = f"python -m benchmarks.confident_learning --repeats {given.repeats}"
    if given.images is None:
        heading = f"Confident learning on {CLASSES} classes, a fifth of the labels wrong: `{command}`."
        replace_section("confident learning", ["", heading, "", *lines, ""])
    sys.stdout.write("\n".join(lines) + "\n")


def observed(who: str, count: int) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.confident_learning", "--one", who, str(count)]
    found: dict[str, Any] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return found


def measure(who: str, count: int) -> dict[str, Any]:
    """Seconds and peak of judging so many labels, and how many are suspect."""
    from assay.labels.space import Head
    from assay.repair.confident_learning import suspects

    labels, probabilities = made_up(count)
    head = Head("label", tuple(f"{number:03}" for number in range(CLASSES)))
    with Peak(interval=0.05) as before:
        time.sleep(0.2)
    with Peak(interval=0.02) as peak:
        began = time.perf_counter()
        if who == "assay":
            found = suspects(head, labels, probabilities).table.height
        else:
            from cleanlab.filter import find_label_issues

            found = int(find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate").sum())
        seconds = time.perf_counter() - began
    return {"suspects": found, "seconds": seconds, "peak": peak.mib, "before": before.mib}


def made_up(count: int, *, wrong: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,), and probabilities (N, K) float32 of a model that is right about five times in six."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, CLASSES, count)
    flipped = generator.random(count) < wrong
    labels = np.where(flipped, (truth + generator.integers(1, CLASSES, count)) % CLASSES, truth)
    logits = generator.standard_normal((count, CLASSES), dtype=np.float32)
    logits[np.arange(count), truth] += 3.5
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return labels, logits


def row(who: str, count: int, found: list[dict[str, Any]]) -> list[object]:
    """A line of the table."""
    seconds, peak = (float(np.median([one[name] for one in found])) for name in ("seconds", "peak"))
    before = float(np.median([one["before"] for one in found]))
    goal = GOAL.get((who, count), "")
    met = f"{goal}: {'met' if peak * 2**20 < 2e9 else '**missed**'}" if goal else ""
    name = "Assay" if who == "assay" else "cleanlab directly"
    return [
        name,
        f"{count:,}",
        f"{found[0]['suspects']:,}",
        f"{seconds:.1f}",
        f"{peak:,.0f} MiB",
        f"{before:,.0f} MiB",
        met,
    ]


if __name__ == "__main__":
    main()
