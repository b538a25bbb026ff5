"""Who is compared, and how each is run and read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory import Peak

ROOT = Path(__file__).parents[1]
Line = dict[str, Any]  # as contest.Result prints it


@dataclass(frozen=True)
class Job:
    """One measurement: prepared images, a stage, and how long."""

    data: Path
    stage: str  # frozen | unfrozen | both
    epochs: int
    size: int
    batch: int
    seed: int
    scratch: Path  # an empty folder for what the contender writes
    bf16_seconds: float


@dataclass(frozen=True)
class Contender:
    """A row of the table. `run` gives the line of one job; `stages` are those it takes part in."""

    name: str
    run: Callable[[Job], Line]
    stages: tuple[str, ...] = ("frozen", "unfrozen", "both")


@dataclass(frozen=True)
class Peer:
    """A module of this folder that prints its line."""

    module: str
    arguments: tuple[str, ...] = field(default=())

    def __call__(self, job: Job) -> Line:
        """Run it in a process of its own."""
        command = [sys.executable, "-m", f"benchmarks.{self.module}", "--data", str(job.data)]
        for name in ("stage", "epochs", "size", "batch", "seed"):
            command += [f"--{name}", str(getattr(job, name))]
        if "bf16" in self.arguments:
            command += ["--max-seconds", str(job.bf16_seconds)]
        output, _, _ = observed([*command, *self.arguments])
        line: Line = json.loads(output.splitlines()[-1])
        return line


def assay(job: Job, *, views: bool = False) -> Line:
    """Assay from its command line: a plan with the steps of the stage, in a run folder of its own.

    The frozen stage counts the whole step: decoding, the feature passes and the fit of the head. It trains on
    plain images; with `views` on as many augmented views as there are epochs, as the peers do.
    """
    plan, run = job.scratch / "plan.yaml", job.scratch / "run"
    plan.write_text(json.dumps(assay_plan(job, views=views)))  # JSON is YAML
    command = [sys.executable, "-c", "import sys; from assay.cli import main; sys.exit(main())"]
    _, seconds, peak = observed([*command, "train", str(plan), "--run", str(run), "--json"])
    steps = [json.loads(path.read_text()) for path in sorted(run.glob("steps/*/done.json"))]
    last = steps[-1]
    images = sum(1 for _ in (job.data / "train").glob("*/*"))
    whole = images * job.epochs / last["seconds"]
    frozen_setting = f"frozen: {job.epochs} augmented views" if views else "frozen: plain images, one pass"
    accuracy = last["scores"]["metrics"]["accuracy"]
    return {
        "name": "assay",
        "setting": frozen_setting if job.stage == "frozen" else json.dumps(last["details"]["hardware"]),
        "stage": job.stage,
        "images_per_second": round(whole if job.stage == "frozen" else last["details"]["images_per_second"], 2),
        "seconds": round(seconds, 2),
        "epochs": job.epochs,
        "accuracy": accuracy["value"],
        "n_val": accuracy["n"],
        "peak_memory_mb": peak,
        "complete": True,
        "versions": {},
    }


def assay_plan(job: Job, *, views: bool = False) -> dict[str, Any]:
    """The plan of a stage, with the optimiser settings of the plain loop."""
    shared = {"size": job.size, "batch": job.batch, "epochs": job.epochs, "take": "last"}
    augment = {"crop": [0.5, 1.0], "flip": "both"}
    drawn = {"views": job.epochs, "augment": augment} if views else {}
    head = {**shared, **drawn, "freeze": "backbone", "lr": 3e-3, "loss": {"smoothing": 0.1}}
    whole = {
        **shared,
        "lr": 5e-4,
        "optimizer": {"kind": "adamw", "weight_decay": 0.02},
        "schedule": "one_cycle",
        "loss": {"smoothing": 0.1},
        "augment": augment,
    }
    steps: dict[str, list[dict[str, Any]]] = {
        "frozen": [{"fit": head}],
        "unfrozen": [{"fit": whole}],
        "both": [{"probe": {"size": job.size}}, {"fit": whole}],
    }
    return {"data": {"folder": str(job.data)}, "seed": job.seed, "steps": steps[job.stage]}


def observed(command: list[str]) -> tuple[str, float, float]:
    """Run a command: its standard output, its seconds, its peak of anonymous memory in MiB."""
    # torch may start with fewer threads than there are cores; all contenders get the same number.
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    began = time.perf_counter()
    with (
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **threads, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
        Peak(process.pid) as peak,
    ):
        output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"This ended with {process.returncode}; its own words are above: {' '.join(command)}")
    return output, time.perf_counter() - began, peak.mib


CONTENDERS = (
    Contender("Assay", assay),
    Contender("Assay, a view for each frozen epoch", partial(assay, views=True), ("frozen",)),
    Contender("fastai, defaults", Peer("peers.fastai_peer")),
    Contender("fastai, defaults, its own augmentation too", Peer("peers.fastai_peer", ("--augment", "own"))),
    Contender("fastai, best settings", Peer("peers.fastai_peer", ("--mode", "best"))),
    Contender(
        "fastai, best settings, bf16",
        Peer("peers.fastai_peer", ("--mode", "best", "--precision", "bf16")),
        ("frozen", "unfrozen"),
    ),
    Contender("timm + torchvision loop", Peer("peers.timm_loop")),
    Contender("timm + torchvision loop, best settings", Peer("peers.timm_loop", ("--mode", "best"))),
    Contender("synthetic batch", Peer("synthetic"), ("unfrozen",)),
    Contender("synthetic batch, best settings", Peer("synthetic", ("--mode", "best")), ("unfrozen",)),
    Contender(
        "synthetic batch, Assay's folded model",
        Peer("synthetic", ("--mode", "best", "--fold")),
        ("unfrozen",),
    ),
    Contender(
        "synthetic batch, best settings, bf16",
        Peer("synthetic", ("--mode", "best", "--precision", "bf16")),
        ("unfrozen",),
    ),
)
BASE = "fastai, defaults"  # the ratios are to this row
BOUND = "synthetic batch, Assay's folded model"
