"""Settings of a search: the values of the plan it goes over, the sampler, and when a trial is pruned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from assay.metrics.metrics import higher_is_better
from assay.settings import Choice, Settings, by_name

OF_AN_EPOCH = "loss"  # has no interval over images, and is not among the metrics of a run
FIXED = ("data", "seed", "sweep")
CASE = "case"  # the one key that a search over named cases goes over


class IntRange(Choice):
    """Whole numbers from low to high."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    step: int = Field(1, ge=1, description="From low on, every so many.")
    log: bool = Field(False, description="Orders of magnitude count alike.")

    def require_consistent(self) -> None:
        _require_range(self.low, self.high, self.step, log=self.log and self.step != 1, positive=self.log)


class FloatRange(Choice):
    """Numbers from low to high."""

    kind: Literal["float"] = "float"
    low: float
    high: float
    step: float | None = Field(None, gt=0, description="From low on, every so much.")
    log: bool = Field(False, description="Orders of magnitude count alike.")

    def require_consistent(self) -> None:
        _require_range(self.low, self.high, self.step, log=self.log and self.step is not None, positive=self.log)


class Choices(Choice):
    """Any values that the plan may hold there: numbers, names, lists, mappings."""

    kind: Literal["choices"] = "choices"
    choices: tuple[Any, ...]

    def require_consistent(self) -> None:
        spelt = [json.dumps(value, sort_keys=True) for value in self.choices]
        if len(spelt) < 2:
            raise ValueError(f"{len(spelt)} value{'' if spelt else 's'} to choose from; list at least two")
        if twice := sorted({text for text in spelt if spelt.count(text) > 1}):
            raise ValueError(f"{twice[0]} is listed twice; list it once")


AnyOver = IntRange | FloatRange | Choices


def _by_form(value: object) -> object:
    """Name the kind: a list is of choices, a range is of whole numbers where all that bounds it is whole."""
    if isinstance(value, list | tuple):
        return {"kind": "choices", "choices": value}
    if isinstance(value, dict) and "kind" not in value:
        bounds = [value[name] for name in ("low", "high", "step") if value.get(name) is not None]
        numbers = "int" if all(isinstance(bound, int) for bound in bounds) else "float"
        return {"kind": "choices" if "choices" in value else numbers, **value}
    return value


Over = Annotated[
    AnyOver,
    Field(discriminator="kind"),
    BeforeValidator(_by_form, json_schema_input_type=list[Any] | AnyOver),
]
"""The values of one key of the plan: `[0.2, 0.3]`, or `{low: 1e-4, high: 1e-2, log: true}`."""


class Tpe(Choice):
    """Tree-structured Parzen estimator (Bergstra et al. 2011): more of what went well, after some trials at random."""

    kind: Literal["tpe"] = "tpe"
    startup: int = Field(10, ge=1, description="Trials at random before it.")


class Random(Choice):
    """Each value drawn by itself."""

    kind: Literal["random"] = "random"


class Grid(Choice):
    """Every combination once, the last value changing fastest."""

    kind: Literal["grid"] = "grid"


AnySampler = Tpe | Random | Grid
Sampler = Annotated[AnySampler, Field(discriminator="kind"), by_name(AnySampler)]


class NoPruning(Choice):
    """Every trial to its end."""

    kind: Literal["none"] = "none"


class Median(Choice):
    """A trial ends early whose best so far is below the median of the trials before, after as many epochs."""

    kind: Literal["median"] = "median"
    startup: int = Field(5, ge=1, description="Trials that go to their end before any is given up.")
    warm_up: int = Field(0, ge=0, description="Epochs that every trial has.")


class Hyperband(Choice):
    """Hyperband (Li et al. 2018): of each group of trials a share goes on to several times as many epochs."""

    kind: Literal["hyperband"] = "hyperband"
    least: int = Field(1, ge=1, description="Epochs that every trial has.")
    factor: int = Field(3, ge=2, description="One in so many goes on, to so many times the epochs.")


AnyPruning = NoPruning | Median | Hyperband
Pruning = Annotated[AnyPruning, Field(discriminator="kind"), by_name(AnyPruning)]


class SweepSettings(Settings):
    """A search for values of the plan by a validation metric; each trial is a run."""

    over: dict[str, Over] = Field({}, description="Values of the plan by their key path, as for --set.")
    cases: dict[str, dict[str, Any]] = Field(
        {},
        description="Instead, named variants of the plan, each some values by key path ({}: as it is); a trial each.",
    )
    sampler: Sampler = Tpe()
    trials: int | None = Field(None, ge=1, description="Runs; by default 20, of a grid all.")
    pruning: Pruning = NoPruning()
    metric: str | None = Field(
        None, description="The validation metric sought; default: accuracy, or micro F1 where all heads are tags."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Of the choice of values; each trial has the seed of the plan.")

    @property
    def axes(self) -> Mapping[str, AnyOver]:
        """What the search goes over, with its values: keys of the plan, or the name of the case."""
        return {CASE: Choices(choices=tuple(self.cases))} if self.cases else self.over

    @model_validator(mode="before")
    @classmethod
    def _cases_are_a_grid(cls, given: Any) -> Any:
        return {"sampler": "grid", **given} if isinstance(given, dict) and given.get("cases") else given

    def require_consistent(self) -> None:
        if bool(self.over) == bool(self.cases):
            raise ValueError("give either `over`, values by their key, or `cases`, named variants of the plan")
        if self.cases and not isinstance(self.sampler, Grid):
            raise ValueError(f"sampler: {self.sampler.kind} draws values, and every case is run once; drop it")
        if len(self.cases) == 1:
            raise ValueError("cases: a single one has none to be compared with; list at least two")
        if self.metric is not None:
            higher_is_better(self.metric)
            if self.metric.rpartition("/")[2] == OF_AN_EPOCH:
                raise ValueError(f"metric: {self.metric} is measured of epochs, not of runs; take nll")
        keys = [(f"over {key}", key) for key in self.over]
        keys += [(f"cases, {name}: {key}", key) for name, values in self.cases.items() for key in values]
        for where, key in keys:
            if key.split(".")[0] in FIXED:
                raise ValueError(
                    f"{where}: trials are compared on the same images under the same seed, so a search goes over "
                    "neither data nor seed; take it out"
                )
        for key, over in self.over.items():
            if isinstance(self.sampler, Grid) and isinstance(over, FloatRange) and over.step is None:
                raise ValueError(f"over {key}: a grid of all numbers of a range has no end; give step, or list choices")


def values_of(over: AnyOver) -> list[Any] | None:
    """All values in order; None where there is no end of them."""
    if isinstance(over, Choices):
        return list(over.choices)
    if isinstance(over, IntRange):
        return list(range(over.low, over.high + 1, over.step))
    if over.step is None:
        return None
    count = math.floor((over.high - over.low) / over.step + 1e-9) + 1
    return [over.low + number * over.step for number in range(count)]


def _require_range(low: float, high: float, step: float | None, *, log: bool, positive: bool) -> None:
    """Raise ValueError where a range holds fewer than two values, or cannot be spaced as it says."""
    if not low < high:
        raise ValueError(f"the range from {low:g} to {high:g} is empty; low must be below high")
    if step is not None and step > high - low:
        raise ValueError(f"step {step:g} leads from {low:g} beyond {high:g} at once; take a smaller one")
    if log:
        raise ValueError("log spaces the values, and so does step; drop one of them")
    if positive and low <= 0:
        raise ValueError(f"log needs a low above 0, and it is {low:g}")
