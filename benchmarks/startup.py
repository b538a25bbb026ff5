"""Seconds from a command to its first line and to the first image that is read, and those of `assay --help`.

    python -m benchmarks.startup DATA [--sets eurosat] [--repeats 5]

A training is ended once its own process has read an image. The process beside it, which hashes images while this one
imports libraries, has read some by then.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from assay.plan.yaml_lines import write as to_yaml
from benchmarks.harness import SPEED, Cell, Options, Record, machine, one_off, seconds_of, table

HELP = "`assay --help`"
ROWS = {"line": "first line", "hashed": "first image read", "image": "first image read by the command itself"}
GOALS = {HELP: 0.25, "line": 0.5, "hashed": 2.0}
HOOK = """
import os, sys, time

def note(event, given, first=[True]):
    path = str(given[0]) if event == "open" and first else ""
    if path.startswith(os.environ["IMAGES"]) and path.lower().endswith((".jpg", ".jpeg", ".png")):
        first.clear()
        with open(os.environ["OPENED"], "a") as log:
            log.write(f"{os.getpid()} {time.monotonic()}\\n")

sys.addaudithook(note)
"""
"""A module that Python imports first: it notes when a process opens its first image."""


def cells(options: Options) -> Iterator[Cell]:
    """Yield the help and the start of a training on each set, as often as asked for."""
    for repeat in range(options.repeats):
        yield Cell(HELP, repeat, lambda: {"seconds": seconds_of(print_help)})
        for name in options.sets:
            yield Cell(name, repeat, partial(start, options, name))


def print_help() -> None:
    """Print the help to nobody. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "assay", "--help"], stdout=subprocess.DEVNULL, check=True)


def start(options: Options, name: str) -> Record:
    """Return the seconds until a training prints its first line, and until an image is read: by it, and by any process.

    Raises SystemExit where it ends before.
    """
    with options.scratch() as folder:
        (folder / "sitecustomize.py").write_text(HOOK)
        (folder / "plan.yaml").write_text(to_yaml({"data": options.data_of(name)}))
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        given = {"PYTHONPATH": os.pathsep.join(paths), "OPENED": f"{folder}/opened", "IMAGES": f"{options.data / name}"}
        words = [sys.executable, "-m", "assay", "train", f"{folder}/plan.yaml", "--run", f"{folder}/run"]
        began = time.monotonic()
        with subprocess.Popen(words, env={**os.environ, **given}, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            record = {"line": time.monotonic() - began}
            while process.pid not in (opened := read_log(Path(given["OPENED"]))):
                if process.poll() is not None:
                    raise SystemExit(f"This ended before it read an image; its message is above: {words}")
                time.sleep(0.02)
            process.kill()
    return {**record, "hashed": min(opened.values()) - began, "image": opened[process.pid] - began}


def read_log(log: Path) -> dict[int, float]:
    """Return when each process opened its first image, on the monotonic clock."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {int(process): float(at) for process, at in map(str.split, lines)}


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a table of the median of each length of time, with its extremes."""
    of_help = [record["seconds"] for record in records if record["name"] == HELP]
    rows = [(HELP, *texts(of_help, HELP))] if of_help else []
    for name in options.sets:
        chosen = [record for record in records if record["name"] == name]
        rows += [(f"{name}: {ROWS[key]}", *texts([one[key] for one in chosen], key)) for key in ROWS if chosen]
    return [f"{options.command}; {machine()}", "", *table(("what", "seconds", "runs", "goal"), rows)]


def texts(seconds: Sequence[float], key: str) -> tuple[str, str, str]:
    """Return the cells of a row: seconds with their extremes, how many there are, and whether the goal is reached."""
    median, goal = statistics.median(seconds), GOALS.get(key)
    verdict = "" if goal is None else f"{goal:g}: **{'reached' if median <= goal else 'missed'}**"
    return f"{median:.2f} ({min(seconds):.2f} to {max(seconds):.2f})", str(len(seconds)), verdict


if __name__ == "__main__":
    settings = {"sets": ("eurosat",), "repeats": 5}
    one_off("startup", __doc__, cells, lines=lines, settings=settings, page=SPEED).main()
