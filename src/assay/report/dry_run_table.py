"""The estimate of `assay plan`, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from assay.experiments.dry_run import DryRun, StepEstimate
from assay.files import StepName
from assay.messages import text_table

LAYERS = ("layer", "kind", "gives", "parameters")
AT_MOST = "≤ "


def blocks(estimate: DryRun, images: Sequence[Path]) -> Iterator[Table | str]:
    """Yield what the terminal shows: layers where they were asked for, a row a step, notes, files."""
    if estimate.layers:
        yield text_table(LAYERS, layer_rows(estimate), right=("parameters",))
    headings = columns(estimate)
    yield text_table(headings, rows(estimate), right=headings[1:])
    if any(step.at_most for step in _all(estimate)):
        yield f"{AT_MOST.strip()}: as if no fit or round ended early, and all unknown labels were answered."
    yield (
        "Estimated on this machine from one optimiser step of each fit, and from a batch of images for the other "
        "steps. The metrics and the report at the end of a run are not in it."
    )
    for path in images:
        yield f"written: {path}"


def columns(estimate: DryRun) -> tuple[str, ...]:
    """Return the headings of `rows`."""
    batch = ("largest batch",) if any(step.largest_batch for step in _all(estimate)) else ()
    return ("step", "time", "memory", "parameters", "that learn", "epochs", "optimiser steps", *batch)


def rows(estimate: DryRun) -> list[list[str]]:
    """Return a row for reading the images, one a step, those within others below them, and one for all."""
    wide = len(columns(estimate))
    table = [_padded(["reading images", _time(estimate.preparing)], wide)]
    for step in estimate.steps:
        table += [_row(one, depth, wide) for one, depth in _nested(step)]
    total = [
        _time(estimate.seconds, any(step.at_most for step in estimate.steps)),
        _memory(max(step.memory for step in estimate.steps)),
    ]
    return [*table, _padded(["all", *total], wide)]


def layer_rows(estimate: DryRun) -> list[list[str]]:
    """Return a row a layer, as `LAYERS` says, and one for all."""
    table = [
        [layer.name or "(itself)", layer.kind, " x ".join(map(str, layer.shape or ())), f"{layer.parameters:,}"]
        for layer in estimate.layers
    ]
    return [*table, ["all", "", "", f"{sum(layer.parameters for layer in estimate.layers):,}"]]


def _row(step: StepEstimate, depth: int, wide: int) -> list[str]:
    length = step.length
    times = f" x {step.rounds}" if step.rounds > 1 else ""
    cells = [
        "  " * depth + (StepName(step.name).last if depth else step.name) + times,
        _time(step.seconds, step.at_most),
        _memory(step.memory),
        "" if step.parameters is None else f"{step.parameters:,}",
        "" if step.trainable is None else f"{step.trainable:,}",
        "" if length is None else f"{length.epochs:,}",
        "" if length is None else f"{length.steps:,}",
        "" if step.largest_batch is None else f"{step.largest_batch:,}",
    ]
    return cells[:wide]


def _nested(step: StepEstimate, depth: int = 0) -> Iterator[tuple[StepEstimate, int]]:
    yield step, depth
    for one in step.inner:
        yield from _nested(one, depth + 1)


def _all(estimate: DryRun) -> list[StepEstimate]:
    return [one for step in estimate.steps for one, _ in _nested(step)]


def _padded(cells: list[str], wide: int) -> list[str]:
    return cells + [""] * (wide - len(cells))


def _time(seconds: float, at_most: bool = False) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{round(seconds)} s" if seconds < 100 else f"{minutes} min {rest:02d} s"
    return (AT_MOST if at_most else "about ") + (f"{hours} h {minutes:02d} min" if hours else text)


def _memory(mib: float) -> str:
    return f"{mib:,.0f} MiB"
