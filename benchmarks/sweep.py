"""What a search costs: 20 short trials on the features of a frozen network, as a user's command carries them out.

    python -m benchmarks.sweep DATA [--trials 20] [--work DIR] [--pages DIR]

DATA holds eurosat, unpacked. The search is started as a command, in a folder that holds nothing, so that starting,
reading, decoding and the features count too. It is then killed half-way in another folder (SIGKILL) and given again:
the table must be the same. With --pages, screenshots of its page are kept there. Writes the section "sweep" of
docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.browser import chromium, complaints, show
from benchmarks.page import replace_section, table

GOAL = 180  # seconds on two cores
PLAN = """data: {{folder: "{data}"}}
steps:
  - fit: {{size: 64, freeze: backbone, epochs: 8, schedule: one_cycle, monitor: accuracy, keep: best}}
sweep:
  sampler: tpe
  trials: {trials}
  pruning: {{kind: median, startup: 5, warm_up: 2}}
  over:
    steps.0.fit.lr: {{low: 3e-4, high: 3e-1, log: true}}
    steps.0.fit.batch: [16, 32, 64, 128]
    steps.0.fit.optimizer.weight_decay: {{low: 1e-4, high: 1.0, log: true}}
    model.head.dropout: {{low: 0.0, high: 0.5}}
"""
LOOKS = {"desk": (1200, False), "dark": (1200, True), "phone": (390, False)}
HEADER = ["what", "seconds", "trials", "best", "of the best trial"]


def main() -> None:
    """Search, search again with a kill in between, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-sweep")
    parser.add_argument("--pages", type=Path, help="a folder for screenshots")
    given = parser.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)  # seconds of a search that is there already are worth nothing
    given.work.mkdir(parents=True)
    plan = given.work / "plan.yaml"
    plan.write_text(PLAN.format(data=(given.data / "eurosat").resolve(), trials=given.trials), encoding="utf-8")
    seconds, whole = searched(plan, given.work / "whole")
    broken = given.work / "broken"
    killed(plan, broken, after=given.trials // 2)
    rest, again = searched(plan, broken)
    same = told(again) == told(whole)
    if given.pages:
        photographed(given.work / "whole" / "sweep.html", given.pages)
    rows = [row("the whole command", seconds, whole), row("killed half-way, the rest of it", rest, again)]
    asked = "" if given.trials == 20 else f" --trials {given.trials}"
    lines = [
        f"`python -m benchmarks.sweep DATA{asked}`: eurosat, features at 64 pixels, a head for at most 8 epochs; goal "
        f"for 20 trials: under {GOAL} s on 2 cores. A metric chosen among trials flatters.",
        "",
        *table(HEADER, rows),
        "",
        f"Killed in a trial (SIGKILL) and continued, it ended in {'the same' if same else 'ANOTHER'} table.",
    ]
    sys.stderr.write("\n".join(lines) + "\n")
    replace_section("sweep", ["## A search", "", *lines])


def command(plan: Path, run: Path) -> list[str]:
    """The command that a user gives."""
    return [sys.executable, "-m", "assay", "sweep", str(plan), "--run", str(run), "--json"]


def searched(plan: Path, run: Path) -> tuple[float, dict[str, Any]]:
    """The seconds of the command, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command(plan, run), stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - began, json.loads(done.stdout)


def killed(plan: Path, run: Path, *, after: int) -> None:
    """Start the command, and kill it within the trial of this number."""
    with subprocess.Popen(command(plan, run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        begun = False
        for line in process.stderr:
            sys.stderr.write(line)
            begun = begun or line.startswith(f"-- trial {after} ")
            if begun and line.strip().startswith("epoch 1/"):
                process.kill()
                return
    raise SystemExit(f"the search came to its end before trial {after} could be killed")


def told(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The table without its seconds."""
    return [{**row, "seconds": None} for row in found["trials"]]


def row(what: str, seconds: float, found: dict[str, Any]) -> list[str]:
    """A row of the table in docs/RESULTS.md."""
    states = [trial["state"] for trial in found["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    metric, values = found["best"]["metric"], found["best"]["values"]
    best = f"{found['metric']} {metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}], n = {metric['n']}"
    texts = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in values.items()}
    said = ", ".join(f"`{key}` {text}" for key, text in texts.items())
    return [what, f"{seconds:.0f}", counts, best, said]


def photographed(page: Path, folder: Path) -> None:
    """Screenshots of the page: a desk, the dark, a phone."""
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as opened:
        for look, (width, dark) in LOOKS.items():
            show(opened, page, width=width, dark=dark)
            if bad := complaints(opened):
                raise SystemExit(f"{look}: {bad[0]}")
            opened.screenshot(path=folder / f"sweep-{look}.png", full_page=True)


if __name__ == "__main__":
    main()
