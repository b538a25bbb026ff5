"""repeat: the same steps several times, each round from what the last one left."""

from __future__ import annotations

from dataclasses import replace

from assay.files import fingerprint
from assay.steps.plans import RepeatSettings
from assay.steps.state import Context, State, StepResult


def run(settings: RepeatSettings, state: State, context: Context) -> StepResult:
    """Run the steps `times` times, each round in a folder of its own."""
    for number in range(1, settings.times + 1):
        here = context.for_round(number)
        state = replace(state, key=fingerprint(state.key, f"round {number}"))
        state = context.run_steps(settings.steps, state, here)
    return StepResult(state.model)
