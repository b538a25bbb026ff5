"""The kinds of steps a plan may name, one file each. A new kind is a file with a `STEP`, and a line in `STEPS`."""

from collections.abc import Sequence

from assay.labels.space import LabelSpace
from assay.steps import (
    calibrate,
    clean_labels,
    ensemble,
    fit,
    probe,
    pseudo_label,
    rebalance_head,
    repeat,
    synthesize,
    tune_thresholds,
    tune_views,
)
from assay.steps.base import Step, StepPlan

STEPS: dict[str, Step] = {
    "probe": probe.STEP,
    "fit": fit.STEP,
    "clean_labels": clean_labels.STEP,
    "pseudo_label": pseudo_label.STEP,
    "rebalance_head": rebalance_head.STEP,
    "tune_thresholds": tune_thresholds.STEP,
    "tune_views": tune_views.STEP,
    "calibrate": calibrate.STEP,
    "synthesize": synthesize.STEP,
    "ensemble": ensemble.STEP,
    "repeat": repeat.STEP,
}


def check_steps(steps: Sequence[StepPlan], space: LabelSpace) -> None:
    """Check the settings of steps, and of those within them, before any is run. Raises PlanError."""
    for step in steps:
        kind = STEPS[step.kind]
        if kind.check:
            kind.check(step.settings, space)
        check_steps(kind.checked_within(step.settings), space)
