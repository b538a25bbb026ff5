"""compare: finished runs held against the first of them, on the same validation pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from assay.errors import DataError, PlanError
from assay.evidence.page.folder import Judged
from assay.figures.intervals import Figure
from assay.figures.metrics import HeadScore
from assay.figures.paired import McNemar, difference, estimate, mcnemar, over_seeds, paired, verdict
from assay.labels.differences import of_pictures, of_spaces
from assay.labels.space import Codes, Head
from assay.plan import Plan
from assay.plan import load as load_plan
from assay.run import Run, load
from assay.studies.plan_differences import Difference, differences
from assay.studies.scored import headline, seconds, validated, validation_score

Cells = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Entry:
    """One of the runs compared; its answers stand in the order of the first one's pictures."""

    name: str
    run: Run
    plan: Plan
    judged: Judged

    @cached_property
    def scores(self) -> dict[str, HeadScore]:
        """All figures, with what differences on the same pictures are computed from."""
        return validation_score(self.judged)


@dataclass(frozen=True)
class Row:
    """A figure of each run, and by how much each is above the first; None for the first, and where it is not drawn."""

    head: str  # empty: over all heads
    figure: str
    values: tuple[Figure, ...]
    changes: tuple[Figure | None, ...]
    verdicts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.head}/{self.figure}" if self.head else self.figure

    def to_json(self) -> dict[str, Any]:
        return {
            "head": self.head or None,
            "figure": self.figure,
            "values": [value.to_json() for value in self.values],
            "differences to the first": [change.to_json() if change else None for change in self.changes],
            "verdicts": [said or None for said in self.verdicts],
        }


@dataclass(frozen=True, eq=False)
class Overlap:
    """Where the first run and another answer rightly under one head.

    Of an exclusive head pictures are counted, of an independent one cells, a picture and a tag. `answers` are the
    first run's and the other's, (N,) classes or (N, K) zeros and ones; `codes` what is known of the same.
    """

    head: Head
    place: int  # of the other run
    answers: tuple[Codes, Codes]
    codes: Codes

    @property
    def known(self) -> Cells:
        """Where anything is known to judge by."""
        known: Cells = self.codes >= 0
        return known

    @property
    def right(self) -> tuple[Cells, Cells]:
        """Where the first and the other are right."""
        first, other = ((said == self.codes) & self.known for said in self.answers)
        return first, other

    @property
    def differ(self) -> Cells:
        """Where their answers differ, among what is known."""
        apart: Cells = self.answers[0] != self.answers[1]
        return apart & self.known

    @cached_property
    def test(self) -> McNemar | None:
        """Of an exclusive head; the cells of a picture are not independent draws."""
        return mcnemar(*self.right) if self.head.kind == "exclusive" else None

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
            "of": "pictures" if self.head.kind == "exclusive" else "cells",
            "n": int(self.known.sum()),
            **self.counts,
            "answered differently": int(self.differ.sum()),
            "mcnemar": self.test.to_json() if self.test else None,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs beside one another; differences are to the first."""

    entries: tuple[Entry, ...]
    figure: str  # the headline
    rows: tuple[Row, ...]
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
    def chief(self) -> Row | None:
        """The headline over all heads; None where they share no such figure."""
        return next((row for row in self.rows if not row.head and row.figure == self.figure), None)

    @property
    def told(self) -> tuple[Row, ...]:
        """The figures without the micro F1 of exclusive heads, which is their accuracy."""
        accurate = {row.head for row in self.rows if row.figure == "accuracy"}
        return tuple(row for row in self.rows if row.figure != "micro_f1" or row.head not in accurate)

    @property
    def basis(self) -> str:
        """What the intervals are over."""
        return (
            f"95 % intervals over the {len(self.entries[0].judged.samples):,} validation pictures, differences paired; "
            "of one run each, so not over what another seed would change"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": [
                {"name": entry.name, "folder": str(entry.run.folder), "seconds": round(seconds(entry.run), 1)}
                for entry in self.entries
            ],
            "figure": self.figure,
            "intervals": self.basis,
            "figures": [row.to_json() for row in self.rows],
            "answers": [overlap.to_json() for overlap in self.overlaps],
            "plans": [apart.to_json() for apart in self.plans],
        }


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Hold finished runs against the first: figures, answers, plans. Test splits stay closed.

    Raises PlanError where there are not two or more runs, RunError for one that is not finished or has lost its
    answers, DataError for one without validation, or whose validation pictures, labels or classes are others.
    """
    if len(folders) < 2:
        raise PlanError("compare: one run is nothing to compare. Name at least two.")
    runs = [load(folder) for folder in folders]
    _require_different(runs)
    entries = tuple(_entries(runs))
    figure = headline(runs[0])
    return Comparison(
        entries,
        figure,
        tuple(_rows(entries)),
        tuple(_overlap(entries, head, place) for head in _heads(entries) for place in range(1, len(entries))),
        tuple(differences([entry.plan for entry in entries])),
    )


def _require_different(runs: Sequence[Run]) -> None:
    places = [run.folder.resolve() for run in runs]
    twice = [run.folder for run, place in zip(runs, places, strict=True) if places.count(place) > 1]
    if twice:
        raise PlanError(f"compare: {twice[0]} is named twice, and a run is no different from itself. Name it once.")


def _entries(runs: Sequence[Run]) -> list[Entry]:
    """The runs, their answers in one order of pictures. Raises DataError that says what parts two of them."""
    found: list[Entry] = []
    for name, run in zip(_names(runs), runs, strict=True):
        judged = validated(run)
        if found:
            judged = _in_order_of(found[0], judged, name)
        found.append(Entry(name, run, load_plan(run.folder / "plan.yaml").plan, judged))
    return found


def _in_order_of(first: Entry, judged: Judged, name: str) -> Judged:
    samples, wanted = judged.samples, first.judged.samples
    if said := of_spaces(samples.space, first.name, wanted.space):
        raise DataError(
            f"compare: {name} {said}. Only answers to the same questions can be compared: train both on the same data, "
            "with its classes declared."
        )
    if apart := of_pictures(samples, wanted):
        raise DataError(
            f"compare: {name} was validated {apart.what} than {first.name}: {apart}. Figures are compared on the same "
            "validation pictures and labels: give both runs the same data, split and seed of the split."
        )
    rows = {picture: row for row, picture in enumerate(samples.ids)}
    order = [rows[picture] for picture in wanted.ids]
    return replace(judged, samples=samples.take(order), predictions=judged.predictions.take(order))


def _names(runs: Sequence[Run]) -> list[str]:
    """The names of the folders, or where these are not all different, the paths as given."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _heads(entries: Sequence[Entry]) -> list[Head]:
    """The heads of which any validation label is known."""
    return [head for head in entries[0].judged.samples.space if entries[0].scores[head.name].n]


def _rows(entries: Sequence[Entry]) -> list[Row]:
    """Every figure over all heads, then with several heads those of each."""
    measured = {head.name: list(entries[0].scores[head.name].figures) for head in _heads(entries)}
    shared = [name for name in next(iter(measured.values())) if all(name in own for own in measured.values())]
    places = [("", name) for name in shared]
    if len(entries[0].judged.samples.space) > 1:
        places += [(head, name) for head, own in measured.items() for name in own]
    return [_row(entries, head, name) for head, name in places]


def _row(entries: Sequence[Entry], head: str, figure: str) -> Row:
    named = f"{head}/{figure}" if head else figure
    first, *others = [estimate(entry.scores, named) for entry in entries]
    changes = [difference([first], [other]) if paired(figure) else None for other in others]
    return Row(
        head,
        figure,
        tuple(over_seeds([one]) for one in (first, *others)),
        (None, *changes),
        ("", *("" if change is None else verdict(change, figure) for change in changes)),
    )


def _overlap(entries: Sequence[Entry], head: Head, place: int) -> Overlap:
    """What the first run and the one at `place` answer under one head."""
    codes, first = _answers(entries[0], head)
    _, other = _answers(entries[place], head)
    return Overlap(head, place, (first, other), codes)


def _answers(entry: Entry, head: Head) -> tuple[Codes, Codes]:
    """What is known under a head, and what a run answers."""
    codes, probabilities, cuts = entry.judged.of(head)
    said = probabilities.argmax(axis=1) if head.kind == "exclusive" else probabilities >= cuts
    return codes, said.astype(np.int64)
