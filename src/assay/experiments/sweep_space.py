"""The space of a search: from chosen values to the plan of a trial; values that no plan takes are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from assay.errors import PlanError
from assay.plan.plan import LoadedPlan, parse, to_yaml, without_search
from assay.plan.sweep_settings import CASE, AnyOver, Choices, FloatRange, Grid, SweepSettings, values_of
from assay.plan.yaml_lines import flow

Point = Mapping[str, Any]
"""Key path -> the value that a trial has there; or `case` -> its name."""

MOST_CHECKED = 200  # combinations; a plan is read in some milliseconds
BY_DEFAULT = 20  # trials


@dataclass(frozen=True)
class Space:
    """The plan that is varied, and the values."""

    loaded: LoadedPlan  # without its search
    sweep: SweepSettings
    text: str  # of the plan

    @property
    def grid(self) -> list[Point]:
        """Every point, in order; only for values that have an end."""
        return list(_product({key: values_of(over) or [] for key, over in self.sweep.axes.items()}))

    def trials(self, asked: int | None) -> int:
        """Return the number of trials: as asked for, or as in the plan; of a grid no more than it has points."""
        wanted = asked or self.sweep.trials
        if not isinstance(self.sweep.sampler, Grid):
            return wanted or BY_DEFAULT
        size = prod(len(values_of(over) or []) for over in self.sweep.axes.values())
        return min(size, wanted or size)

    def plan_of(self, point: Point) -> LoadedPlan:
        """Return the plan of a trial. Raises PlanError where a plan cannot have these values."""
        values = self.sweep.cases[point[CASE]] if self.sweep.cases else point
        overrides = [f"{key}={flow(value)}" for key, value in values.items()]
        return replace(self.loaded, plan=parse(self.text, "the plan", overrides=overrides))


def space_of(loaded: LoadedPlan) -> Space:
    """Return the space of a plan's search. Raises PlanError for keys and values that a plan does not take."""
    sweep = loaded.plan.sweep
    if sweep is None:
        raise PlanError(
            f"{loaded.source_name}: the plan has no `sweep:`, so there is nothing to search. Add "
            "`sweep: {over: {steps.0.fit.lr: {low: 1e-4, high: 1e-2, log: true}}}`, or take a recipe whose name begins "
            "with search (`assay recipes`)."
        )
    if not loaded.plan.steps:
        raise PlanError(
            f"{loaded.source_name}: a search needs the steps that it varies, and the plan has none. Add `steps:`, for "
            "example those of plan.yaml in the folder of a run of the same data."
        )
    bare = without_search(loaded.plan)
    space = Space(replace(loaded, plan=bare), sweep, to_yaml(bare))
    _check(space)
    return space


def spelt(over: AnyOver, value: Any) -> str | int | float:
    """Return a value as tables and charts show it: a number of a range, the text of a choice."""
    return flow(value) if isinstance(over, Choices) else value


def changed(mine: SweepSettings, other: SweepSettings) -> list[str]:
    """Return the keys in which two searches differ, apart from the number of trials."""
    names = (name for name in SweepSettings.model_fields if name != "trials")
    return [name for name in names if getattr(mine, name) != getattr(other, name)]


def _check(space: Space) -> None:
    """Refuse keys and values that a plan does not know, before anything is trained.

    Each value is tried with the first of all others, so that a key that another one opens may be searched as well; then
    all combinations, where they are few.
    """
    ends = {key: _ends(over) for key, over in space.sweep.axes.items()}
    first = {key: values[0] for key, values in ends.items()}
    for key, values in ends.items():
        _require(space, [{**first, key: value} for value in values], f"over {key}")
    if prod(len(values) for values in ends.values()) <= MOST_CHECKED:
        _require(space, _product(ends), "over")


def _require(space: Space, points: Sequence[Point] | Iterator[Point], what: str) -> None:
    for point in points:
        try:
            space.plan_of(point)
        except PlanError as error:
            values = ", ".join(f"{key}={flow(value)}" for key, value in point.items())
            raise PlanError(f"sweep: {what}: with {values}: {error}") from error


def _ends(over: AnyOver) -> list[Any]:
    """All choices; of a range its two ends, between which a plan takes all if it takes both."""
    values = values_of(over)
    if values is None:
        assert isinstance(over, FloatRange)
        return [over.low, over.high]
    return values if isinstance(over, Choices) else [values[0], values[-1]]


def _product(values: Mapping[str, Sequence[Any]]) -> Iterator[Point]:
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))
