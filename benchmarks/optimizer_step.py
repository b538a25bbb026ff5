"""Where an optimiser step of the whole network goes: CPU time of its parts, and the operations that take most of it.

    python -m benchmarks.optimizer_step DATA [--set eurosat] [--steps 10] [--profiled 6] [--threads 1]

The fit is that of the default plan, in fp32 and channels_last. CPU time is of the process, so that a busy machine
counts little; the shares of operations are of self times by `torch.profiler` over further optimiser steps.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from assay.plan.fit_stages import fit_settings
from assay.plan.plan import from_source
from assay.plan.stages import Facts
from assay.plan.yaml_lines import write as to_yaml
from assay.progress import NoProgress
from assay.run.prepare import prepare_run
from assay.steps.fit import PreparedFit, prepared_fit
from assay.training.checkpoint import Average
from assay.training.devices import keep_freed_memory
from assay.training.fit_task import EpochLogits, FitState
from assay.training.loop import optimizer_step
from assay.training.processes import SingleProcess
from assay.training.sampling import split_batches
from benchmarks.harness import SPEED, Cell, Options, Record, machine, one_off, table

WARM = 6  # optimiser steps before the first that counts
LARGEST = 5  # operations that are named
OPERATIONS = {
    "aten::convolution_backward": "gradients of convolutions (oneDNN)",
    "aten::mkldnn_convolution": "convolutions forward (oneDNN)",
    "aten::hardtanh_backward": "gradient of ReLU6",
    "aten::clamp_": "ReLU6 forward, in place",
    "aten::copy_": "copies of tensors",
    "aten::fill_": "zeros around maps, for convolutions of stride 2",
}
FORWARD, AVERAGE = "forward pass, the rest of the step", "weight average"


def cells(options: Options) -> Iterator[Cell]:
    """Yield the one measurement."""
    yield Cell(options.set, 0, partial(measure, options))


def measure(options: Options) -> Record:
    """Return the CPU milliseconds of each part of an optimiser step, and the shares of the largest operations."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    settings = {**fit_settings(Facts(labelled=1, unlabelled=0, validation=1, flip="both")), "epochs": 8}
    plan = {
        "data": options.data_of(options.set),
        "model": {"features": "all_stages"},
        "hardware": {"precision": "fp32", "layout": "channels_last"},
        "steps": [{"fit": settings}],
    }
    with options.scratch() as folder:
        (folder / "plan.yaml").write_text(to_yaml(plan))
        loaded = from_source(folder / "plan.yaml")
        about: Any = {"together": SingleProcess(), "device": "cpu", "progress": NoProgress()}
        prepared = prepare_run(loaded, folder / "run", **about)
        settings = prepared.plan.steps[0].settings
        with prepared_fit(settings, prepared.state, prepared.context.for_step(1, "fit")) as fit:
            return profile(fit, steps=options.steps, profiled=options.profiled)


def profile(fit: PreparedFit, *, steps: int, profiled: int) -> Record:
    """Return what `measure` does of a fit that may begin, over `steps` optimiser steps and `profiled` further ones."""
    task, config, machine = fit.task, fit.config, fit.machine
    state, logits = FitState.of(len(task.objective.losses)), EpochLogits.empty(len(task.source.ids), config.width)
    average, seconds = Average(task.network, config.ema or 0.99), Counter[str]()
    batches = (
        part for epoch in range(config.epochs) for part in split_batches(task.order.rows(epoch), config.step_size)
    )
    numbered = enumerate(batches)
    parts = {
        "backward pass": (machine, "backward"),
        "images: gathered, augmented, labels": (task.source, "batch"),
        "AdamW": (machine, "optimizer_step"),
        AVERAGE: (average, "update"),
    }
    for name, (owner, method) in parts.items():
        vars(owner)[method] = timed(getattr(owner, method), name, seconds)
    task.to_training_mode()
    task = replace(task, objective=timed(task.objective, "loss and counts", seconds))

    def take(count: int) -> float:
        began = time.process_time()
        for number, rows in islice(numbered, count):
            optimizer_step(task, config, state, machine, task.network, rows, logits)
            average.update(task.network, number)
        return time.process_time() - began

    take(WARM)
    seconds.clear()
    whole = take(steps) - seconds[AVERAGE]  # which belongs to the loop
    seconds[FORWARD] = whole - sum(seconds[name] for name in seconds if name != AVERAGE)
    milliseconds = {name: 1000 * taken / steps for name, taken in seconds.items()}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        take(profiled)
    operations = {one.key: one.self_cpu_time_total for one in profiler.key_averages()}
    largest = Counter(operations).most_common(LARGEST)
    return {
        "milliseconds": 1000 * whole / steps,
        "parts": milliseconds,
        "operations": {name: taken / sum(operations.values()) for name, taken in largest},
    }


def timed(function: Callable[..., Any], name: str, seconds: Counter[str]) -> Callable[..., Any]:
    """Return the function, whose CPU time is added to `seconds` under a name."""

    def call(*given: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return function(*given, **options)
        finally:
            seconds[name] += time.process_time() - began

    return call


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a table of the parts of a step, and one of the largest operations."""
    (record,) = records
    whole, parts = record["milliseconds"], Counter(record["parts"])
    rows = [
        (name, f"{taken:.1f}", f"{taken / whole:.1%}" + (" (outside of the step)" if name == AVERAGE else ""))
        for name, taken in parts.most_common()
    ]
    shares = [(OPERATIONS.get(name, f"`{name}`"), f"{share:.1%}") for name, share in record["operations"].items()]
    about = f"{options.command}; {machine()}, {whole:.0f} ms of CPU time a step"
    tables = [*table(("part of a step", "CPU ms", "share"), rows), ""]
    return [about, "", *tables, *table((f"the {LARGEST} largest costs", "share"), shares)]


if __name__ == "__main__":
    settings = {"set": "eurosat", "steps": 10, "profiled": 6, "threads": 1}
    one_off("optimizer step", __doc__, cells, lines=lines, settings=settings, page=SPEED).main()
