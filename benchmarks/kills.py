"""Whether `kill -9` of work on shards costs anything but time: killed at random, repeated, and its bytes compared.

    python -m benchmarks.kills [--kills 50] [--only index predictions features audit fit] [--by local ray]
        [--images 2000] [--shards 10] [--seed 0] [--work DIR]

Each trial deletes what there is, starts a command, kills the process that drives it or one that works for it, at a
moment drawn from the time that it takes, and repeats the command until it ends. What it leaves has to be that of a
command that nobody killed, byte for byte. The commands: an index of shards, features and predictions of shards (their
index with them), an audit, and a fit that decodes its images as it needs them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.progress import NoProgress
from assay.scale.executors import pick_executor
from assay.scale.indexing import index_shards
from benchmarks.harness import children, table
from benchmarks.scale import CLASSES, TRAINING, write_model, write_shards

SIDE = 64
INDEXED = 20  # shards of 1,000 images: an index of fewer bytes is made in one process
SERVERS = ("raylet", "gcs_server", "log_monitor", "agent", "resource_tracker", "ray::IDLE", "default_worker")
REPEATS = 5
"""How often a command is repeated before a trial has failed: one kill needs one."""


@dataclass(frozen=True)
class Work:
    """A command on shards, what it leaves (patterns of files that are compared), and what is deleted before a trial.

    What a killed process has left unfinished is none of it: a later command removes that, ten minutes after.
    """

    arguments: tuple[str, ...]
    leaves: tuple[str, ...]
    deleted: tuple[str, ...]
    executors: tuple[str, ...] = ("local", "ray")
    module: str = "assay"


WORKS = {
    "index": Work(
        ("--index", "indexed"), ("indexed/.assay/shards/*.parquet",), ("indexed/.assay",), module="benchmarks.kills"
    ),
    "predictions": Work(
        ("predict", "model", "shards", "--out", "out.parquet", "--workers", "2"),
        ("out.parquet", "shards/.assay/shards/*.parquet"),
        ("out.parquet", "out.parts", "shards/.assay"),
    ),
    "features": Work(
        ("predict", "model", "shards", "--out", "out.parquet", "--features", "--workers", "2"),
        ("out.parquet", "shards/.assay/shards/*.parquet"),
        ("out.parquet", "out.parts", "shards/.assay"),
    ),
    "audit": Work(
        ("audit", "shards", "--out", "audit", "--workers", "2"),
        ("audit/audit.json", "audit/samples.parquet", "audit/groups.csv", "audit/shards/*.parquet"),
        ("audit", "shards/.assay"),
    ),
    "fit": Work(
        ("train", "plan.yaml", "--run", "run", "--device", "cpu"),
        ("run/model/*.safetensors", "run/steps/*/best/predictions.parquet", "run/samples.parquet"),
        ("run",),
        ("local",),
    ),
}


def command_of(work: Work, executor: str) -> list[str]:
    """Return the command line of a piece of work."""
    given = ["--executor", executor] if executor != "local" else []
    return [sys.executable, "-m", work.module, *work.arguments, *given]


def descendants(process: int) -> list[int]:
    """Return the processes below one, as far as they work for it: no server of Ray's, and of its processes actors."""
    found: list[int] = []
    try:
        started = children(process)
    except OSError:
        return []  # it has ended
    for child in started:
        name = command_line(child)
        if not any(part in name for part in SERVERS):
            found.append(child)
        found += descendants(child)
    return found


def command_line(process: int) -> str:
    """Return what a process was started with, or an empty text where it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def start(work: Work, executor: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start the command of a trial, with what it says in `log`."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path])),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command_of(work, executor), cwd=folder, env=environment, stdout=log, stderr=log)


def left(work: Work, folder: Path) -> dict[str, str]:
    """Return a hash of every file that a command leaves."""
    paths = sorted(path for pattern in work.leaves for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def clear(work: Work, folder: Path) -> None:
    """Delete what a former trial left."""
    for name in work.deleted:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def trial(
    work: Work, by: str, folder: Path, expected: dict[str, str], *, seconds: float, worker: bool, chance: random.Random
) -> tuple[str, str]:
    """Kill once and repeat; return what was killed, and `same`, `not killed` (it had ended), or what went wrong.

    A worker is killed at a moment drawn from the time that is left once there is one.
    """
    clear(work, folder)
    process, share, began = start(work, by, folder), chance.uniform(0.05, 0.98), time.monotonic()
    while worker and process.poll() is None and not descendants(process.pid):
        time.sleep(0.05)
    time.sleep(max(0.0, share * (seconds - (time.monotonic() - began))))
    workers = descendants(process.pid) if worker else []
    kind = "actor" if by == "ray" else "worker"
    target, victim = (chance.choice(workers), kind) if workers else (process.pid, "driver")
    if process.poll() is not None:
        return victim, "not killed"
    try:
        os.kill(target, signal.SIGKILL)
    except ProcessLookupError:
        process.wait()
        return victim, "not killed"
    code = process.wait()
    for _ in range(REPEATS):
        if code == 0:
            return victim, "same" if left(work, folder) == expected else "other bytes"
        code = start(work, by, folder).wait()
    return victim, f"exit code {code} after {REPEATS} repeats"


def measure(
    folder: Path, kills: int, names: Sequence[str], executors: Sequence[str], seed: int
) -> Counter[tuple[str, str, str, str]]:
    """Return how often each combination of work, executor and victim ended in what."""
    chance, counts = random.Random(seed), Counter[tuple[str, str, str, str]]()
    seconds: dict[tuple[str, str], float] = {}
    unbroken: dict[str, dict[str, str]] = {}
    cells = [(name, by) for name in names for by in executors if by in WORKS[name].executors]
    for name, by in cells:
        work = WORKS[name]
        clear(work, folder)
        began = time.monotonic()
        if code := start(work, by, folder).wait():
            raise SystemExit(f"{name} by {by} ends with {code} unbroken: see {folder / 'log'}")
        seconds[name, by] = time.monotonic() - began
        if unbroken.setdefault(name, left(work, folder)) != left(work, folder):
            raise SystemExit(f"{name} by {by} leaves other bytes than by {executors[0]}")
    number = 0
    while sum(count for (*_, end), count in counts.items() if end != "not killed") < kills:
        name, by = cells[number % len(cells)]
        worker, length = bool(number // len(cells) % 2), seconds[name, by]
        victim, end = trial(WORKS[name], by, folder, unbroken[name], seconds=length, worker=worker, chance=chance)
        counts[name, by, victim, end] += 1
        sys.stderr.write(f"{name} by {by}, {victim} killed: {end}\n")
        number += 1
    return counts


def index(shards: str, executor: str) -> None:
    """Index shards by two processes: what other commands begin with."""
    run, _ = pick_executor(executor, workers=2, device="cpu", progress=NoProgress())
    index_shards([shards], executor=run, progress=NoProgress())


def main() -> None:
    """Print a row a command, executor, victim and end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=tuple(WORKS), default=list(WORKS))
    parser.add_argument("--by", nargs="+", choices=("local", "ray"), default=["local"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder to keep everything in")
    parser.add_argument("--index", help=argparse.SUPPRESS)
    parser.add_argument("--executor", default="local", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.index:
        index(given.index, given.executor)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.work or Path(scratch)).absolute()
        write_shards(folder / "shards", images=given.images, shards=given.shards, side=SIDE, classes=CLASSES)
        write_shards(folder / "indexed", images=1000 * INDEXED, shards=INDEXED, side=SIDE, classes=CLASSES)
        write_model(folder / "model", SIDE, CLASSES)
        (folder / "plan.yaml").write_text(TRAINING, encoding="utf-8")
        counts = measure(folder, given.kills, given.only, given.by, given.seed)
    rows = [(*key, str(count)) for key, count in sorted(counts.items())]
    sys.stdout.write("\n".join(table(("command", "executor", "killed", "afterwards", "times"), rows)) + "\n")
    if any(end not in {"same", "not killed"} for *_, end in counts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
