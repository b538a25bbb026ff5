"""compare: finished runs held against the first of them, on the same validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from assay.arrays import Bools
from assay.errors import DataError, PlanError
from assay.experiments.shared_steps import headline, seconds, validated, validation_score
from assay.labels.space import Codes, Head
from assay.labels.subset import compare_samples, compare_spaces
from assay.metrics.intervals import Metric
from assay.metrics.metrics import HeadScore
from assay.metrics.paired import McNemar, difference, estimate, mcnemar, over_seeds, paired, verdict
from assay.plan.differences import Difference, differences
from assay.plan.plan import Plan
from assay.plan.plan import load as load_plan
from assay.run.folder import LabelledPredictions
from assay.run.train import Run, load


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One of the runs compared; its answers stand in the order of the first one's images."""

    name: str
    run: Run
    plan: Plan
    judged: LabelledPredictions

    @cached_property
    def scores(self) -> dict[str, HeadScore]:
        """All metrics, with what differences on the same images are computed from."""
        return validation_score(self.judged)


@dataclass(frozen=True)
class MetricRow:
    """A metric of each run, and by how much each is above the first; None for the first, and where it is not drawn."""

    head: str  # empty: over all heads
    metric: str
    values: tuple[Metric, ...]
    changes: tuple[Metric | None, ...]
    verdicts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.head}/{self.metric}" if self.head else self.metric

    def to_json(self) -> dict[str, Any]:
        return {
            "head": self.head or None,
            "metric": self.metric,
            "values": [value.to_json() for value in self.values],
            "differences to the first": [change.to_json() if change else None for change in self.changes],
            "verdicts": [said or None for said in self.verdicts],
        }


@dataclass(frozen=True, eq=False)
class Overlap:
    """Where the first run and another answer rightly under one head.

    Of a multi-class head images are counted, of a multi-label one cells, an image and a tag. `answers` are the
    first run's and the other's, (N,) classes or (N, K) zeros and ones; `codes` what is known of the same.
    """

    head: Head
    place: int  # of the other run
    answers: tuple[Codes, Codes]
    codes: Codes

    @property
    def known(self) -> Bools:
        """Where anything is known to judge by."""
        known: Bools = self.codes >= 0
        return known

    @property
    def right(self) -> tuple[Bools, Bools]:
        """Where the first and the other are right."""
        first, other = ((said == self.codes) & self.known for said in self.answers)
        return first, other

    @property
    def differ(self) -> Bools:
        """Where their answers differ, among what is known."""
        apart: Bools = self.answers[0] != self.answers[1]
        return apart & self.known

    @cached_property
    def test(self) -> McNemar | None:
        """Of a multi-class head; the cells of an image are not independent draws."""
        return mcnemar(*self.right) if self.head.kind == "multiclass" else None

    @property
    def counts(self) -> dict[str, int]:
        first, other = self.right
        found = {"both right": first & other, "only first right": first & ~other, "only other right": other & ~first}
        return {name: int(cells.sum()) for name, cells in found.items()} | {
            "neither right": int((self.known & ~first & ~other).sum())
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "head": self.head.name,
            "kind": self.head.kind,
            "run": self.place,
            "of": "images" if self.head.kind == "multiclass" else "cells",
            "n": int(self.known.sum()),
            **self.counts,
            "answered differently": int(self.differ.sum()),
            "mcnemar": self.test.to_json() if self.test else None,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs beside one another; differences are to the first."""

    entries: tuple[ComparedRun, ...]
    metric: str  # the headline
    rows: tuple[MetricRow, ...]
    overlaps: tuple[Overlap, ...]
    plans: tuple[Difference, ...]

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.entries[0].judged.samples.space.heads

    @property
    def measured(self) -> tuple[Head, ...]:
        """The heads of which any validation label is known."""
        return tuple(_heads(self.entries))

    @property
    def chief(self) -> MetricRow | None:
        """The headline over all heads; None where they share no such metric."""
        return next((row for row in self.rows if not row.head and row.metric == self.metric), None)

    @property
    def told(self) -> tuple[MetricRow, ...]:
        """The metrics without the micro F1 of multi-class heads, which is their accuracy."""
        accurate = {row.head for row in self.rows if row.metric == "accuracy"}
        return tuple(row for row in self.rows if row.metric != "micro_f1" or row.head not in accurate)

    @property
    def basis(self) -> str:
        """What the intervals are over."""
        return (
            f"95 % intervals over the {len(self.entries[0].judged.samples):,} validation images, differences paired; "
            "of one run each, so not over what another seed would change"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": [
                {"name": entry.name, "folder": str(entry.run.folder), "seconds": round(seconds(entry.run), 1)}
                for entry in self.entries
            ],
            "metric": self.metric,
            "intervals": self.basis,
            "metrics": [row.to_json() for row in self.rows],
            "answers": [overlap.to_json() for overlap in self.overlaps],
            "plans": [apart.to_json() for apart in self.plans],
        }


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Hold finished runs against the first: metrics, answers, plans. Test splits stay closed.

    Raises PlanError where there are not two or more runs, RunError for one that is not finished or has lost its
    answers, DataError for one without validation, or whose validation images, labels or classes are others.
    """
    if len(folders) < 2:
        raise PlanError("compare: one run is nothing to compare. Name at least two.")
    runs = [load(folder) for folder in folders]
    _require_different(runs)
    entries = tuple(_entries(runs))
    metric = headline(runs[0])
    return Comparison(
        entries,
        metric,
        tuple(_rows(entries)),
        tuple(_overlap(entries, head, place) for head in _heads(entries) for place in range(1, len(entries))),
        tuple(differences([entry.plan for entry in entries])),
    )


def _require_different(runs: Sequence[Run]) -> None:
    places = [run.folder.resolve() for run in runs]
    twice = [run.folder for run, place in zip(runs, places, strict=True) if places.count(place) > 1]
    if twice:
        raise PlanError(f"compare: {twice[0]} is named twice, and a run is no different from itself. Name it once.")


def _entries(runs: Sequence[Run]) -> list[ComparedRun]:
    """The runs, their answers in one order of images. Raises DataError that says what parts two of them."""
    found: list[ComparedRun] = []
    for name, run in zip(_names(runs), runs, strict=True):
        judged = validated(run)
        if found:
            judged = _in_order_of(found[0], judged, name)
        found.append(ComparedRun(name, run, load_plan(run.folder / "plan.yaml").plan, judged))
    return found


def _in_order_of(first: ComparedRun, judged: LabelledPredictions, name: str) -> LabelledPredictions:
    samples, wanted = judged.samples, first.judged.samples
    if said := compare_spaces(samples.space, first.name, wanted.space):
        raise DataError(
            f"compare: {name} {said}. Only answers to the same questions can be compared: train both on the same data, "
            "with its classes declared."
        )
    if apart := compare_samples(samples, wanted):
        raise DataError(
            f"compare: {name} was validated {apart.what} than {first.name}: {apart}. Metrics are compared on the same "
            "validation images and labels: give both runs the same data, split and seed of the split."
        )
    rows = {image: row for row, image in enumerate(samples.ids)}
    order = [rows[image] for image in wanted.ids]
    return replace(judged, samples=samples.take(order), predictions=judged.predictions.take(order))


def _names(runs: Sequence[Run]) -> list[str]:
    """The names of the folders, or where these are not all different, the paths as given."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _heads(entries: Sequence[ComparedRun]) -> list[Head]:
    """The heads of which any validation label is known."""
    return [head for head in entries[0].judged.samples.space if entries[0].scores[head.name].n]


def _rows(entries: Sequence[ComparedRun]) -> list[MetricRow]:
    """Every metric over all heads, then with several heads those of each."""
    measured = {head.name: list(entries[0].scores[head.name].metrics) for head in _heads(entries)}
    shared = [name for name in next(iter(measured.values())) if all(name in own for own in measured.values())]
    places = [("", name) for name in shared]
    if len(entries[0].judged.samples.space) > 1:
        places += [(head, name) for head, own in measured.items() for name in own]
    return [_row(entries, head, name) for head, name in places]


def _row(entries: Sequence[ComparedRun], head: str, metric: str) -> MetricRow:
    named = f"{head}/{metric}" if head else metric
    first, *others = [estimate(entry.scores, named) for entry in entries]
    changes = [difference([first], [other]) if paired(metric) else None for other in others]
    return MetricRow(
        head,
        metric,
        tuple(over_seeds([one]) for one in (first, *others)),
        (None, *changes),
        ("", *("" if change is None else verdict(change, metric) for change in changes)),
    )


def _overlap(entries: Sequence[ComparedRun], head: Head, place: int) -> Overlap:
    """What the first run and the one at `place` answer under one head."""
    codes, first = _answers(entries[0], head)
    _, other = _answers(entries[place], head)
    return Overlap(head, place, (first, other), codes)


def _answers(entry: ComparedRun, head: Head) -> tuple[Codes, Codes]:
    """What is known under a head, and what a run answers."""
    codes, probabilities, cuts = entry.judged.of(head)
    said = probabilities.argmax(axis=1) if head.kind == "multiclass" else probabilities >= cuts
    return codes, said.astype(np.int64)
