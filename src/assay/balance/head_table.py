"""Ways to learn a head under one another, by figures of the frequent and of the rare classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from assay.figures.frequency import groups
from assay.figures.tallies import Tally, ratio
from assay.labels.space import Codes, Head
from assay.predictions.cross_fitting import tally

Floats = npt.NDArray[np.floating[Any]]
HEADINGS = {"balanced_accuracy": "balanced", "micro_f1": "micro F1", "nll": "NLL"}


@dataclass(frozen=True, eq=False)
class Row:
    """One way to learn a head: what its figures are read off, with what setting, and the seconds it took."""

    tally: Tally
    setting: str
    seconds: float


@dataclass(frozen=True, eq=False)
class HeadTable:
    """Rows for one head, judged by the same pictures."""

    head: Head
    train: Codes
    codes: Codes
    rows: dict[str, Row] = field(default_factory=dict)

    def tally(self, probabilities: Floats, thresholds: float | Floats = 0.5) -> Tally:
        """What figures of these answers (N, K) are read off."""
        return tally(self.head, self.codes, probabilities, thresholds)

    def add(
        self,
        name: str,
        probabilities: Floats,
        *,
        thresholds: float | Floats = 0.5,
        setting: str = "",
        seconds: float = 0.0,
    ) -> None:
        """One more row."""
        self.rows[name] = Row(self.tally(probabilities, thresholds), setting, seconds)

    def groups(self) -> dict[str, npt.NDArray[np.int64]]:
        """The classes of each third by training pictures, the most frequent first; none where there are no thirds."""
        if self.head.kind == "exclusive":
            counts = np.bincount(self.train[self.train >= 0], minlength=self.head.size)
        else:
            counts = (self.train == 1).sum(axis=0)
        return {group.name: np.array(group.classes) for group in groups(counts) if group.rule == "thirds"}

    def group_names(self) -> dict[str, list[str]]:
        """The same by name."""
        return {group: [self.head.classes[place] for place in places] for group, places in self.groups().items()}

    def figures(self, name: str) -> dict[str, float]:
        """Balanced accuracy, recall by third, accuracy (micro F1 of tags) and loss; what is not defined is left out."""
        own = self.rows[name].tally
        values = own.values()
        hits, _, support = own.counts
        recalls = ratio(hits, support)
        found = {"balanced_accuracy": values.get("balanced_accuracy")}
        for group, places in self.groups().items():
            known = recalls[places][support[places] > 0]
            found[group] = float(known.mean()) if len(known) else None
        chief = "accuracy" if self.head.kind == "exclusive" else "micro_f1"
        found |= {chief: values.get(chief), "nll": values.get("nll")}
        return {figure: value for figure, value in found.items() if value is not None}

    def to_json(self) -> dict[str, dict[str, Any]]:
        """By row: its figures, seconds and setting."""
        return {
            name: {**self.figures(name), "seconds": round(row.seconds, 2), "setting": row.setting}
            for name, row in self.rows.items()
        }

    def lines(self) -> list[str]:
        """The table in plain text, the best of each figure marked."""
        figures = {name: self.figures(name) for name in self.rows}
        columns = list(dict.fromkeys(figure for own in figures.values() for figure in own))
        better = {column: (min if column == "nll" else max) for column in columns}
        best = {column: better[column](own[column] for own in figures.values() if column in own) for column in columns}
        cells = [[self.head.name, *(HEADINGS.get(column, column) for column in columns), "seconds", "setting"]]
        for name, row in self.rows.items():
            own = figures[name]
            shown = [
                "" if column not in own else f"{own[column]:.3f}{'*' if own[column] == best[column] else ' '}"
                for column in columns
            ]
            cells.append([name, *shown, f"{row.seconds:.1f}" if row.setting else "", row.setting])
        widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
        train, judged = (int(self.head.known(codes).sum()) for codes in (self.train, self.codes))
        title = f"{self.head.name}: learnt on {train:,} pictures, judged on {judged:,}, cross-fitted; * is best"
        return [title, *("  " + _spaced(line, widths) for line in cells)]


def _spaced(line: list[str], widths: list[int]) -> str:
    first, *others = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
    return "  ".join([first, *others]).rstrip()
