"""What all benchmarks share: the command line, cells that resume, runs of `assay`, tables, and the sections of a page.

    python -m benchmarks.NAME DATA [--seeds 0 1 2] [--only NAME ...] [--work DIR] [--page PAGE] [--report]

DATA holds the data sets, unpacked. Each cell is measured once by each seed and kept as a line of WORK/measured.jsonl:
a measurement that was broken off goes on from there. The section of the page is written from these lines alone.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from assay.metrics.intervals import student
from assay.plan.yaml_lines import write as to_yaml

Record = dict[str, Any]
"""A measurement, a plan or a part of one, as JSON holds it."""

RESULTS, SPEED = Path("docs/RESULTS.md"), Path("docs/BENCHMARKS.md")
SETS: Mapping[str, Record] = {
    "eurosat": {"folder": "DATA"},
    "seedlings": {"folder": "DATA"},
    "flickr": {"lists": "DATA/annotations", "root": "DATA", "images": "images/im{id}.jpg"},
    "fashion": {
        "rows": "split/train.txt",
        "labels": "split/train_attr.txt",
        "class_names": "split/list_attr_cloth.txt",
        "root": "DATA",
    },
    "cifar10n": {"table": "DATA/train.csv", "image": "image", "heads": {"label": {"column": "worse"}}},
}
"""The `data:` of each set, with DATA for its folder."""


class Options(argparse.Namespace):
    """The options of a benchmark, and `command`, its command line in backticks."""

    def data_of(self, name: str) -> Record:
        """Return the `data:` of one of `SETS`."""
        data: Record = json.loads(json.dumps(SETS[name]).replace("DATA", str(self.data / name)))
        return data

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make an empty folder for the block, beside the records."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            yield Path(folder)

    def section(self, header: str, row: str, records: Iterable[Record], notes: str = "") -> list[str]:
        """Return the command, a table of records by the header and the format of a row, and notes below it."""
        rows = [header, f"|{' --- |' * (header.count('|') - 1)}", *(row.format(**record) for record in records)]
        return [self.command, "", *rows, *(["", notes] if notes else [])]


@dataclass(frozen=True)
class Cell:
    """What is measured once; records are kept by name and seed."""

    name: str
    seed: int
    measure: Callable[[], Record]
    minutes: float = 0.0  # that it takes, where that is known


@dataclass(frozen=True)
class Benchmark:
    """Cells to measure, and the section of a page that is written from their records.

    cells: see `by_seed`. header, row: see `Options.section`; lines: instead of both.
    settings: the further options, name -> default; a work folder holds records of one value of each.
    choices: those that only choose cells.
    resumes: False where all is measured anew each time.
    work: the default of `--work`, where it is no temporary folder.
    """

    section: str
    about: str | None
    cells: Callable[[Options], Iterable[Cell]]
    header: str = ""
    row: str = ""
    lines: Callable[[Options, Sequence[Record]], Sequence[str]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] | None = (0, 1, 2)
    data: bool = True
    page: Path = RESULTS
    resumes: bool = True
    work: Path | None = None

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Measure what is missing, and write the section."""
        options = self.parser().parse_args(arguments, Options())
        options.command = self.command(options)
        settings = {name: getattr(options, name) for name in self.settings}
        records = Records(options.work, settings, fresh=not (self.resumes or options.report))
        cells = list(self.cells(options))
        missing = [] if options.report else [one for one in select(cells, options.only) if records.find(one) is None]
        if minutes := sum(cell.minutes for cell in missing):
            sys.stderr.write(f"missing: {len(missing)}, about {minutes / 60:.1f} h\n")
        for cell in missing:
            sys.stderr.write(f"{cell.name}, seed {cell.seed}\n")
            records.add({"name": cell.name, "seed": cell.seed, **cell.measure()})
        rows = [row for cell in cells if (row := records.find(cell)) is not None]
        lines = self.lines(options, rows) if self.lines else options.section(self.header, self.row, rows)
        sys.stdout.write("\n".join(lines) + "\n")
        other = [options.set] if settings.get("set") != self.settings.get("set") else []  # has a section apart
        replace_section(", ".join([self.section, *other]), lines, page=options.page)

    def parser(self) -> argparse.ArgumentParser:
        """Return the common options and those of `settings`, each of the type of its default."""
        parser = argparse.ArgumentParser(description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter)
        if self.data:
            parser.add_argument("data", type=lambda text: Path(text).resolve(), help="holds the data sets, unpacked")
        if self.seeds is not None:
            parser.add_argument("--seeds", type=int, nargs="+", default=list(self.seeds))
        for name, default in {**self.settings, **self.choices}.items():
            first, count = (default[0], "+") if isinstance(default, tuple) else (default, None)
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=type(first),
                default=default,
                nargs=count,
                help=f"default: {default}",
            )
        parser.add_argument("--only", nargs="+", help="cells by name or pattern, such as 'eurosat*'")
        work = self.work or Path(tempfile.gettempdir()) / f"assay-{slug(self.section)}"
        parser.add_argument(
            "--work",
            type=lambda text: Path(text).resolve(),
            default=str(work),
            help=f"where records are kept; default: {work}",
        )
        parser.add_argument("--page", type=Path, default=self.page)
        parser.add_argument("--report", action="store_true", help="measure nothing, write the section again")
        return parser

    def command(self, options: Options) -> str:
        """Return the command as given, in backticks and without the paths of this machine."""
        words = ["python -m", f"benchmarks.{self.section.replace(' ', '_')}", *(["DATA"] if self.data else [])]
        given = {} if self.seeds is None else {"seeds": options.seeds}
        further = {**self.settings, **self.choices}
        given |= {name: getattr(options, name) for name in further} | {"only": options.only}
        for name, value in given.items():
            if value and (isinstance(value, int | float | list) or (isinstance(value, str) and value != further[name])):
                values = value if isinstance(value, list) else [value]
                texts = (f"{one:g}" if isinstance(one, float) else shlex.quote(str(one)) for one in values)
                words += [f"--{name.replace('_', '-')}", *texts]
        return f"`{' '.join(words)}`"


def machine() -> str:
    """Return the processor, the cores and the system."""
    information = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", information.read_text()) if information.exists() else []
    return f"{[*models, platform.machine()][0]}, {os.cpu_count()} cores, {platform.system()}"


def commit() -> str:
    """Return the short hash of the code that is run, marked where it is changed, or "unknown"."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


one_off = partial(Benchmark, seeds=None, resumes=False)
"""A benchmark that is measured anew each time, once."""


class Records:
    """The lines of `measured.jsonl` in a work folder, which are all of the same settings."""

    def __init__(self, work: Path, settings: object = None, *, fresh: bool = False) -> None:
        """Read them, or with `fresh` begin anew. Raises SystemExit where they are of other settings."""
        work.mkdir(parents=True, exist_ok=True)
        self.path, known, text = work / "measured.jsonl", work / "settings.json", json.dumps(settings, default=str)
        if fresh:
            self.path.unlink(missing_ok=True)
        elif settings is not None and known.exists() and json.loads(known.read_text()) != json.loads(text):
            raise SystemExit(f"--work {work}: measured with other settings ({known}). Give another folder.")
        if settings is not None:
            known.write_text(text)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows: list[Record] = [json.loads(line) for line in lines]

    def find(self, cell: Cell) -> Record | None:
        """Return the record of a cell, or None where it is not measured."""
        return next((row for row in self.rows if (row["name"], row["seed"]) == (cell.name, cell.seed)), None)

    def add(self, row: Record) -> None:
        """Add a record, here and in the file."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def by_seed(
    measure: Callable[[Options, Any, int], Record], cases: Mapping[str, Any]
) -> Callable[[Options], list[Cell]]:
    """Return what makes a cell of each case, name -> case, by each seed, all by one seed before the next."""

    def cells(options: Options) -> list[Cell]:
        seeds = options.seeds if isinstance(getattr(options, "seeds", None), list) else [0]
        return [
            Cell(name, seed, partial(measure, options, case, seed)) for seed in seeds for name, case in cases.items()
        ]

    return cells


def select(cells: Sequence[Cell], only: Sequence[str] | None) -> list[Cell]:
    """Return the cells that `only` names, by the name, its last part after a slash or a pattern; all where it is None.

    Raises SystemExit where there is none.
    """

    def fits(name: str, word: str) -> bool:
        return word in (name, name.rpartition("/")[2]) or fnmatch(name, word)

    chosen = [cell for cell in cells if only is None or any(fits(cell.name, word) for word in only)]
    if not chosen:
        names = "; ".join(dict.fromkeys(cell.name for cell in cells))
        raise SystemExit(f"--only {only}: no such cell. There are: {names}")
    return chosen


def children(pid: int) -> list[int]:
    """Return the processes that a process started itself (Linux). Raises OSError where it has ended."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process and its descendants, shared pages shared out (Linux; 0 elsewhere)."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):  # RssAnon would count the pages of a forked worker twice
                total = int(line.split()[1]) << 10
        total += sum(map(anonymous_bytes, children(pid)))
    except OSError:  # the process ended while it was being read
        return total
    return total


def mean_and_interval(records: Sequence[Record], key: str) -> str:
    """Return the mean over seeds with its 95 % interval, empty where nothing was measured."""
    values = np.array([record[key] for record in records if key in record])
    if not len(values):
        return ""
    half = student(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    limits = "" if np.isnan(half) else f" [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"
    return f"{values.mean():.3f}{limits}"


class Peak:
    """`with Peak(pid) as peak: ...`, then `peak.mib`, the largest sum in MiB."""

    def __init__(self, pid: int | None = None, *, interval: float = 2.0) -> None:  # reading smaps takes 40 ms
        self.pid = os.getpid() if pid is None else pid
        self.interval = interval
        self.mib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.mib = max(self.mib, round(anonymous_bytes(self.pid) / 2**20, 1))
            if self._over.wait(self.interval):
                return


class Finished(NamedTuple):
    """The seconds of a process, its standard output, and the peak of its anonymous memory in MiB."""

    seconds: float
    output: str
    mib: float


def run_process(*command: object, **environment: str) -> Finished:
    """Run a command to its end; its standard error is passed on. Raises SystemExit where it fails."""
    words, began = [*map(str, command)], time.perf_counter()
    with (
        subprocess.Popen(words, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True) as process,
        Peak(process.pid) as peak,
    ):
        output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"This ended with {process.returncode}; its message is above: {shlex.join(words)}")
    return Finished(round(time.perf_counter() - began, 2), output, peak.mib)


def run_assay(*words: object, **environment: str) -> Finished:
    """Run a command of `assay` in a process of its own."""
    return run_process(sys.executable, "-m", "assay", *words, **environment)


def train(plan: Record, folder: Path, *options: object, **environment: str) -> Finished:
    """Train by a plan in `folder`/run, in a process of its own; a run that is there is continued."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.yaml").write_text(to_yaml(plan), encoding="utf-8")
    return run_assay("train", folder / "plan.yaml", "--run", folder / "run", "--json", *options, **environment)


def in_a_process(function: Callable[..., Any], *arguments: object, **environment: str) -> Any:
    """Call a module's function with JSON values in a process of its own, and return what it returns there."""
    spec = sys.modules["__main__"].__spec__
    module = spec.name if function.__module__ == "__main__" and spec else function.__module__
    call = f"module.{function.__name__}(*json.loads(sys.argv[1]))"
    code = f"import json, sys, {module} as module; print(json.dumps({call}))"
    done = run_process(sys.executable, "-c", code, json.dumps(arguments), **environment)
    return json.loads(done.output.splitlines()[-1])


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def steps_of(run: Path) -> list[Record]:
    """Return the records of the finished steps of a run, in order."""
    return [json.loads(path.read_text()) for path in sorted((run / "steps").glob("*/done.json"))]


def slug(name: str) -> str:
    """Return a name as that of a file."""
    return "".join(letter if letter.isalnum() or letter == "_" else "-" for letter in name)


def by_name(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records of each name, in the order of the names."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["name"], []).append(record)
    return groups


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table, a line a row."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in row) + " |" for row in cells]


def replace_section(name: str, lines: Sequence[str], *, page: Path = RESULTS) -> None:
    """Write lines between the marks of a section of a page; a section that is not there yet is added at the end."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    page.write_text("\n".join([before + begin, *lines, end]) + after, encoding="utf-8")
