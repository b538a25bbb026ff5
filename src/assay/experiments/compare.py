"""compare: metrics of finished runs on the same images, with paired differences to the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from assay.arrays import Bools
from assay.errors import DataError, PlanError
from assay.experiments.shared_steps import tested
from assay.files import RunFolder, add_to_log
from assay.labels.space import Codes, Head
from assay.labels.subset import compare_samples, compare_spaces
from assay.messages import SPLITS, plain_lines, text_table
from assay.metrics.intervals import Metric, over_seeds
from assay.metrics.metrics import HeadScore, McNemar, difference, estimate, mcnemar, paired, verdict
from assay.plan.differences import Difference, differences
from assay.plan.plan import Plan
from assay.plan.plan import load as load_plan
from assay.run.contents import LabelledPredictions, validated
from assay.run.train import Run, load

Part = Literal["val", "test"]


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One of the runs compared; its predictions stand in the order of the first one's images."""

    name: str
    run: Run
    plan: Plan
    predicted: LabelledPredictions

    @property
    def scores(self) -> dict[str, HeadScore]:
        """All metrics, with what differences on the same images are computed from."""
        return self.predicted.scores


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

    def to_json(self) -> dict[str, object]:
        return {
            "head": self.head or None,
            "metric": self.metric,
            "values": [value.to_json() for value in self.values],
            "differences to the first": [change.to_json() if change else None for change in self.changes],
            "verdicts": [text or None for text in self.verdicts],
        }


@dataclass(frozen=True, eq=False)
class Overlap:
    """The cells of one head that the first run and another predict rightly.

    `predicted` are the first run's codes and the other's, `codes` those known: each (N,) classes of a multi-class head,
    or (N, K) zeros and ones of a multi-label one.
    """

    head: Head
    index: int  # of the other run
    predicted: tuple[Codes, Codes]
    codes: Codes

    @property
    def known(self) -> Bools:
        return np.asarray(self.codes >= 0)

    @property
    def right(self) -> tuple[Bools, Bools]:
        """Where the first and the other are right."""
        first, other = ((codes == self.codes) & self.known for codes in self.predicted)
        return first, other

    @property
    def differ(self) -> Bools:
        """Where their predictions differ, among the known cells."""
        return np.asarray(self.predicted[0] != self.predicted[1]) & self.known

    @cached_property
    def test(self) -> McNemar | None:
        """Of a multi-class head; the cells of an image are not independent draws."""
        return mcnemar(*self.right) if self.head.multiclass else None

    @property
    def counts(self) -> dict[str, int]:
        first, other = self.right
        cells = {
            "both right": first & other,
            "only first right": first & ~other,
            "only other right": other & ~first,
            "neither right": self.known & ~first & ~other,
        }
        return {name: int(mask.sum()) for name, mask in cells.items()}

    def to_json(self) -> dict[str, object]:
        return {
            "head": self.head.name,
            "kind": self.head.kind,
            "run": self.index,
            "of": "images" if self.head.multiclass else "cells",
            "n": int(self.known.sum()),
            **self.counts,
            "answered differently": int(self.differ.sum()),
            "mcnemar": self.test.to_json() if self.test else None,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """A comparison of runs; differences are to the first."""

    entries: tuple[ComparedRun, ...]
    part: Part
    metric: str  # the headline
    rows: tuple[MetricRow, ...]
    overlaps: tuple[Overlap, ...]
    plans: tuple[Difference, ...]

    def __str__(self) -> str:
        """Return each metric of each run, and by how much it is above the first."""
        names = [entry.name for entry in self.entries]
        rows = [
            (
                row.name,
                *(f"{value}{_change_text(change)}" for value, change in zip(row.values, row.changes, strict=True)),
            )
            for row in self.distinct_rows
        ]
        return "\n".join([*plain_lines(text_table(("metric", *names), rows), width=200), self.basis])

    __repr__ = __str__

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.entries[0].predicted.samples.space.heads

    @property
    def measured(self) -> tuple[Head, ...]:
        """The heads of which any validation label is known."""
        return tuple(_heads(self.entries))

    @property
    def chief(self) -> MetricRow | None:
        """The headline over all heads; None where they share no such metric."""
        return next((row for row in self.rows if not row.head and row.metric == self.metric), None)

    @property
    def distinct_rows(self) -> tuple[MetricRow, ...]:
        """The metrics without the micro F1 of multi-class heads, which is their accuracy."""
        accurate = {row.head for row in self.rows if row.metric == "accuracy"}
        return tuple(row for row in self.rows if row.metric != "micro_f1" or row.head not in accurate)

    @property
    def basis(self) -> str:
        """The sources of chance that the intervals cover."""
        return (
            f"95 % intervals over the {len(self.entries[0].predicted.samples):,} {SPLITS[self.part]} images, "
            "differences paired; of one run each, so not over what another seed would change"
        )

    def to_json(self) -> dict[str, object]:
        return {
            "runs": [
                {
                    "name": entry.name,
                    "folder": str(entry.run.folder),
                    "seconds": round(entry.run.record.step_seconds, 1),
                }
                for entry in self.entries
            ],
            "part": self.part,
            "metric": self.metric,
            "intervals": self.basis,
            "metrics": [row.to_json() for row in self.rows],
            "answers": [overlap.to_json() for overlap in self.overlaps],
            "plans": [row.to_json() for row in self.plans],
        }


def _change_text(change: Metric | None) -> str:
    return "" if change is None else f" ({change.value:+.3f}{change.limits('.3f')})"


def compare(folders: Sequence[str | Path], *, part: Part = "val") -> Comparison:
    """Compare finished runs with the first: metrics, predictions, plans.

    With `part` "test" on the test images, by the predictions that each run made when it opened its test split; each
    run's log records that they were compared.

    Raises PlanError where there are not two or more runs, RunError for one that is not finished or has lost its
    predictions, DataError for one without labelled images of the part, or whose images, labels or classes are others.
    """
    if len(folders) < 2:
        raise PlanError("compare: one run is nothing to compare. Name at least two.")
    runs = [load(folder) for folder in folders]
    _require_different(runs)
    entries = tuple(_entries(runs, part))
    metric = runs[0].record.headline
    if part == "test":
        _record_in_logs(entries)
    return Comparison(
        entries,
        part,
        metric,
        tuple(_rows(entries)),
        tuple(_overlap(entries, head, index) for head in _heads(entries) for index in range(1, len(entries))),
        tuple(differences([entry.plan for entry in entries])),
    )


def _require_different(runs: Sequence[Run]) -> None:
    paths = [run.folder.resolve() for run in runs]
    twice = [run.folder for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1]
    if twice:
        raise PlanError(f"compare: {twice[0]} is named twice, and a run is no different from itself. Name it once.")


def _entries(runs: Sequence[Run], part: Part) -> list[ComparedRun]:
    """Return the runs with their predictions in one order of images. Raises DataError where two cannot be compared."""
    entries: list[ComparedRun] = []
    for name, run in zip(_names(runs), runs, strict=True):
        predicted = validated(RunFolder(run.folder), run.record) if part == "val" else tested(run)
        if entries:
            predicted = _in_order_of(entries[0], predicted, name, part)
        entries.append(ComparedRun(name, run, load_plan(RunFolder(run.folder).plan).plan, predicted))
    return entries


def _in_order_of(first: ComparedRun, predicted: LabelledPredictions, name: str, part: Part) -> LabelledPredictions:
    samples, wanted = predicted.samples, first.predicted.samples
    if mismatch := compare_spaces(samples.space, first.name, wanted.space):
        raise DataError(
            f"compare: {name} {mismatch}. Only answers to the same questions can be compared: train both on the same "
            "data, with its classes declared."
        )
    if other := compare_samples(samples, wanted):
        raise DataError(
            f"compare: {name} was {'validated' if part == 'val' else 'tested'} {other.what} than {first.name}: "
            f"{other}. Metrics are compared on the same {SPLITS[part]} images and labels: give both runs the same "
            "data, split and seed of the split."
        )
    rows = {image: row for row, image in enumerate(samples.ids)}
    order = [rows[image] for image in wanted.ids]
    return predicted.take(order)


def _record_in_logs(entries: Sequence[ComparedRun]) -> None:
    """Record in each run that its test predictions were compared: choosing by them makes the test a validation."""
    for entry in entries:
        others = ", ".join(str(other.run.folder) for other in entries if other is not entry)
        text = f"compare --test: its test metrics were compared with {others}"
        add_to_log(RunFolder(entry.run.folder).log, line=text)


def _names(runs: Sequence[Run]) -> list[str]:
    """The names of the folders, or where these are not all different, the paths as given."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _heads(entries: Sequence[ComparedRun]) -> list[Head]:
    """The heads of which any validation label is known."""
    return [head for head in entries[0].predicted.samples.space if entries[0].scores[head.name].n]


def _rows(entries: Sequence[ComparedRun]) -> list[MetricRow]:
    """Every metric over all heads, then with several heads those of each."""
    measured = {head.name: list(entries[0].scores[head.name].metrics) for head in _heads(entries)}
    shared = [name for name in next(iter(measured.values())) if all(name in names for names in measured.values())]
    rows = [("", name) for name in shared]
    if len(entries[0].predicted.samples.space) > 1:
        rows += [(head, name) for head, names in measured.items() for name in names]
    return [_row(entries, head, name) for head, name in rows]


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


def _overlap(entries: Sequence[ComparedRun], head: Head, index: int) -> Overlap:
    """Compare the predictions of the first run and of another under one head."""
    (codes, *first), (_, *other) = (entries[number].predicted.of(head) for number in (0, index))
    return Overlap(head, index, (head.decide(*first), head.decide(*other)), codes)
