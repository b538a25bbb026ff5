"""The story that the demo tells: what faulty labels cost, and what repairing them gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay.demo import FAULTY, TRUTH
from assay.figures.intervals import Figure
from assay.figures.paired import difference, over_seeds
from assay.plan import LoadedPlan, anchored, from_source
from assay.progress import Silent, Watch
from assay.run import Run, train
from assay.studies.scored import estimate_of, headline, seconds
from assay.studies.sharing import share
from assay.studies.variants import without_repairs


@dataclass(frozen=True)
class Chapter:
    """One training of the story: on which labels, what it came to, and how far that is from the first."""

    name: str
    run: Run
    figure: Figure
    change: Figure | None

    @property
    def cells(self) -> list[str]:
        """A row of the table: name, figure, difference, seconds."""
        change = "" if self.change is None else _signed(self.change)
        return [self.name, str(self.figure), change, f"{seconds(self.run):.0f}"]

    def to_json(self) -> dict[str, Any]:
        """The same as values."""
        change = self.change.to_json() if self.change else None
        return {
            "trained on": self.name,
            "run": str(self.run.folder),
            "figure": self.figure.to_json(),
            "difference to the first": change,
            "seconds": round(seconds(self.run), 1),
        }


def story(pictures: Path, folder: Path, *, recipe: str, watch: Watch | None = None) -> list[Chapter]:
    """Train by a recipe on faulty labels without its repairs, on the same with them, and on the true labels.

    `pictures` holds the tables of `assay.demo.write_labels`. The repaired run is in `folder`, the others beside it.
    All three are scored on the same validation pictures, whose labels are true.
    """
    told = watch or Silent()
    whole = from_source(pictures / FAULTY, recipe=recipe)
    bare = _without_repairs(whole)
    truth = _without_repairs(from_source(pictures / TRUTH, recipe=recipe))
    parts = [
        ("faulty labels as they are", bare, folder.with_name(f"{folder.name}-as-they-are")),
        ("faulty labels, repaired", whole, folder),
        ("all true labels", truth, folder.with_name(f"{folder.name}-true-labels")),
    ]
    places = [place for _, _, place in parts]
    runs = []
    for name, plan, place in parts:
        told.line(f"-- {name} --")
        share(place, anchored(plan), [other for other in places if other != place])
        # Only the repaired run is looked at: the others need no page.
        runs.append(train(plan, run=place, watch=told, open_test=place == folder))
    return _chapters([name for name, _, _ in parts], runs)


def _without_repairs(loaded: LoadedPlan) -> LoadedPlan:
    kept = without_repairs(loaded.plan.steps)
    return replace(loaded, plan=loaded.plan.model_copy(update={"steps": kept}))


def _chapters(names: Sequence[str], runs: Sequence[Run]) -> list[Chapter]:
    figure = headline(runs[0])
    found = [estimate_of(run, figure) for run in runs]
    return [
        Chapter(name, run, over_seeds([one]), None if place == 0 else difference([found[0]], [one]))
        for place, (name, run, one) in enumerate(zip(names, runs, found, strict=True))
    ]


def _signed(change: Figure) -> str:
    bounds = "" if change.low is None else f" [{change.low:+.3f} to {change.high:+.3f}]"
    return f"{change.value:+.3f}{bounds}"
