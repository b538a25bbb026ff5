"""What a search costs: 20 short trials on the features of a frozen network, as a user's command carries them out.

    python -m benchmarks.sweep DATA [--trials 20] [--work DIR] [--pages DIR]

The search is started as a command, in an empty folder; then killed half-way in another (SIGKILL) and given again: the
table must be the same. With --pages, screenshots of its page are kept there.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from assay.plan.yaml_lines import write
from benchmarks.browser import check_looks, chromium
from benchmarks.harness import Options, Record, by_seed, one_off, run_process
from benchmarks.trainings import bounds_text

FIT: Record = {
    "size": 64, "freeze": "backbone", "epochs": 8, "schedule": "one_cycle", "monitor": "accuracy", "keep": "best",
}  # fmt: skip
OVER: Record = {
    "steps.0.fit.lr": {"low": 3e-4, "high": 3e-1, "log": True},
    "steps.0.fit.batch": [16, 32, 64, 128],
    "steps.0.fit.optimizer.weight_decay": {"low": 1e-4, "high": 1.0, "log": True},
    "model.head.dropout": {"low": 0.0, "high": 0.5},
}
PRUNING: Record = {"kind": "median", "startup": 5, "warm_up": 2}
CASES = {"the whole command": False, "killed half-way, the rest of it": True}
HEADER = "| what | seconds | trials | best | of the best trial |"
ROW = "| {name} | {seconds:.0f} | {counts} | {metric} {interval}, n = {best[metric][n]} | {settings} |"


def measure(options: Options, kill: bool, seed: int) -> Record:
    """Search in an empty folder; with `kill` start the command and kill it half-way before."""
    folder = options.work / ("killed" if kill else "whole")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sweep = {"sampler": "tpe", "trials": options.trials, "pruning": PRUNING, "over": OVER}
    plan = {"data": options.data_of("eurosat"), "steps": [{"fit": FIT}], "sweep": sweep}
    (folder / "plan.yaml").write_text(write(plan), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "assay",
        "sweep",
        str(folder / "plan.yaml"),
        "--run",
        str(folder / "run"),
        "--json",
    ]
    if kill:
        kill_in_trial(command, options.trials // 2)
    done = run_process(*command)
    if options.pages != Path() and not kill:
        with chromium() as page:
            if complaint := check_looks(page, folder / "run" / "sweep.html", pages=options.pages, name="sweep"):
                raise SystemExit(complaint)
    return {"seconds": done.seconds, **json.loads(done.output)}


def kill_in_trial(command: Sequence[str], trial: int) -> None:
    """Start the command, and kill it within the trial of this number."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        begun = False
        for line in process.stderr:
            sys.stderr.write(line)
            begun = begun or line.startswith(f"-- trial {trial} ")
            if begun and line.strip().startswith("epoch 1/"):
                process.kill()
                return
    raise SystemExit(f"the search came to its end before trial {trial} could be killed")


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return both searches, and whether their tables are the same but for the seconds."""
    rows = []
    for record in records:
        states = Counter(trial["state"] for trial in record["trials"])
        values = {name: f"{x:.3g}" if isinstance(x, float) else x for name, x in record["best"]["values"].items()}
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        settings = ", ".join(f"`{name}` {value}" for name, value in values.items())
        interval = bounds_text(record["best"]["metric"])
        rows.append({**record, "counts": counts, "interval": interval, "settings": settings})
    first, *others = [[{**trial, "seconds": None} for trial in record["trials"]] for record in records]
    same = "the same" if all(other == first for other in others) else "ANOTHER"
    return options.section(HEADER, ROW, rows, f"Killed in a trial (SIGKILL) and continued, it ended in {same} table.")


if __name__ == "__main__":
    one_off("sweep", __doc__, by_seed(measure, CASES), lines=lines, settings={"trials": 20, "pages": Path()}).main()
