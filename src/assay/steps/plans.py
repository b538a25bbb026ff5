"""A step as a plan says it, and the step that holds others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, SerializationInfo, SerializeAsAny, model_serializer, model_validator

from assay.figures.metrics import higher_is_better
from assay.settings import Settings


class StepPlan(Settings):
    """One entry of `steps`: the kind of step, and its settings. Written as one key: `fit: {epochs: 8}`."""

    kind: str
    settings: SerializeAsAny[Settings]

    @model_serializer
    def _as_one_key(self, info: SerializationInfo) -> dict[str, Any]:
        mode = "json" if info.mode_is_json() else "python"
        return {self.kind: self.settings.model_dump(mode=mode)}


class RepeatSettings(Settings):
    """Carry out the same steps several times, each round from what the last one left."""

    times: int = Field(ge=1, description="Rounds.")
    steps: tuple[StepPlan, ...] = Field(min_length=1, description="The steps of a round, in order.")
    only_if_better: bool = Field(
        False, description="End with the first round that does not better validation, and hand on what was before it."
    )
    figure: str | None = Field(
        None, description="The validation figure that tells; default: accuracy, or micro F1 where all heads are tags."
    )

    @model_validator(mode="after")
    def _comparable(self) -> RepeatSettings:
        if self.figure is not None:
            if not self.only_if_better:
                raise ValueError("figure tells whether a round is better; set only_if_better: true, or drop figure")
            higher_is_better(self.figure)
        return self


def steps_within(settings: Settings) -> tuple[StepPlan, ...]:
    """The steps that a step holds: its own list, and those of its members."""
    own: tuple[StepPlan, ...] = getattr(settings, "steps", ())
    members: tuple[Settings, ...] = getattr(settings, "members", ())
    return (*own, *(step for member in members for step in steps_within(member)))


def steps_below(settings: Settings) -> Iterator[StepPlan]:
    """All steps that a step holds, at any depth, in order."""
    for step in steps_within(settings):
        yield step
        yield from steps_below(step.settings)
