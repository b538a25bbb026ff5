"""Run every contender on the same images and write docs/BENCHMARKS.md.

    python -m benchmarks.run DATA [--sets eurosat seedlings] [--repeats 3] [--only NAME ...]

DATA holds a folder for each set, each with a folder per class. Rates are measured on part of the training
images, end to end on all of them. Every repeat runs all contenders, each second one in the opposite order,
so that a machine that grows warm or busy is unfair to none. What was measured stays in WORK/measured.jsonl:
a run that was broken off goes on from there, and `--report` only writes the page again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, ROOT, Contender, Job, observed
from benchmarks.page import sections
from benchmarks.prepare import prepare
from benchmarks.record import Record, require_same_settings
from benchmarks.table import document

EXPLANATION = """\
Every contender trains `tf_efficientnet_lite0` from the same ImageNet weights, normalised with 0.5, on the
same images of {size} pixels in batches of {batch}, in a process of its own with a thread for each core.
Augmentation is random resized crops of 50 to 100 % and both flips, drawn anew in each epoch, with one exception:
the row `Assay` trains its frozen stage on features of the plain images, computed once; the row below it
uses an augmented view for each epoch. Batch-norm learns in the rows at defaults; in those at best settings
and in Assay's it stays in evaluation mode.

- A rate is the images trained on by the seconds of training, loading included and validation not. Assay's
  frozen rate counts its whole step, decoding and feature passes included. At most {rate_images} training
  images, {frozen_epochs} epochs frozen and {rate_epochs} unfrozen, medians of {repeats}.
- End to end: all training images, one frozen epoch (Assay: `probe`) and {epochs} unfrozen ones, from reading
  the folder to the last validation (Assay: the whole command, imports too), medians of {full_repeats}.
- x is the ratio to fastai at its defaults with the same augmentation.
- bf16 is stopped after {bf16_seconds:.0f} s of training.
- Best settings: memory layout and workers are chosen by trial; the trials are not counted."""


def main() -> None:
    """Measure what is missing, and write the page."""
    given = arguments()
    require_same_settings(given.work, {name: getattr(given, name) for name in SETTINGS})
    record = Record(given.work / "measured.jsonl")
    if not given.report:
        done = {line["key"] for line in record.lines}
        for key, measure in measurements(given):
            if key in done:
                continue
            sys.stderr.write(f"{key}\n")
            record.keep({"key": key, **measure()})
    text = document(record.lines, command=command(given), explanation=EXPLANATION.format(**vars(given)))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    kept = sections(given.out.read_text(encoding="utf-8")) if given.out.exists() else ""  # of other measurements
    given.out.write_text(f"{text}\n{kept}" if kept else text, encoding="utf-8")


STAGES = ["frozen", "unfrozen", "both"]
SETS = ["eurosat", "seedlings"]
SETTINGS = (
    *("repeats", "full_repeats", "rate_images", "rate_epochs", "frozen_epochs"),
    *("epochs", "size", "batch", "seed", "bf16_seconds"),
)


def command(given: argparse.Namespace) -> str:
    """The command as given, without the places of this machine."""
    options = [f"--sets {' '.join(given.sets)}"] if given.sets != SETS else []
    options += [f"--only {' '.join(map(repr, given.only))}"] if given.only else []
    options += [f"--stages {' '.join(given.stages)}"] if given.stages != STAGES else []
    options += [f"--{name.replace('_', '-')} {getattr(given, name)}" for name in SETTINGS]
    return " ".join(["python -m benchmarks.run DATA", *options])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds a folder for each set, each with a folder per class")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--only", nargs="+", help="contenders by name")
    parser.add_argument("--stages", nargs="+", default=STAGES)
    parser.add_argument("--repeats", type=int, default=3, help="of the rates")
    parser.add_argument("--full-repeats", type=int, default=3, help="of the end-to-end runs")
    parser.add_argument("--rate-images", type=int, default=640)
    parser.add_argument("--rate-epochs", type=int, default=2, help="of the unfrozen rate")
    parser.add_argument("--frozen-epochs", type=int, default=5, help="of the frozen rate")
    parser.add_argument("--epochs", type=int, default=5, help="of the end-to-end runs")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16-seconds", type=float, default=45.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "assay-benchmarks")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "BENCHMARKS.md")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page again")
    return parser.parse_args()


class Measurement:
    """One contender's job, ready to be called."""

    def __init__(self, given: argparse.Namespace, contender: Contender, name: str, stage: str) -> None:
        self.given, self.contender, self.name, self.stage = given, contender, name, stage

    def __call__(self) -> dict[str, Any]:
        """Prepare the images, run, and say whose line it is."""
        given, whole = self.given, self.stage == "both"
        data = given.work / (f"{self.name}-whole" if whole else f"{self.name}-{given.rate_images}")
        prepare(given.data / self.name, data, seed=given.seed, limit=None if whole else given.rate_images)
        epochs = {"frozen": given.frozen_epochs, "unfrozen": given.rate_epochs, "both": given.epochs}
        scratch = given.work / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        job = Job(
            data=data.resolve(),
            stage=self.stage,
            epochs=epochs[self.stage],
            size=given.size,
            batch=given.batch,
            seed=given.seed,
            scratch=scratch.resolve(),
            bf16_seconds=given.bf16_seconds,
        )
        line = self.contender.run(job)
        return {**line, "data": self.name, "contender": self.contender.name}


def measurements(given: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Every measurement in order, each with the key under which it is kept."""
    chosen = [contender for contender in CONTENDERS if not given.only or contender.name in given.only]
    if not chosen:
        raise SystemExit(f"--only {given.only}: no such contender. There are: {[c.name for c in CONTENDERS]}")
    for repeat in range(max(given.repeats, given.full_repeats)):
        if repeat < given.repeats:
            yield f"matmul/{repeat}", matmul
        for name in given.sets:
            for stage in given.stages:
                if repeat >= (given.full_repeats if stage == "both" else given.repeats):
                    continue
                for contender in chosen[:: -1 if repeat % 2 else 1]:
                    if stage in contender.stages:
                        key = f"{name}/{stage}/{contender.name}/{repeat}"
                        yield key, Measurement(given, contender, name, stage)


def matmul() -> dict[str, Any]:
    """The machine's matrix-product rates."""
    output, _, _ = observed([sys.executable, "-m", "benchmarks.matmul"])
    line: dict[str, Any] = json.loads(output.splitlines()[-1])
    return line


if __name__ == "__main__":
    main()
