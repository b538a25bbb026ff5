"""What answers for one metric cost in the others: the same network under other assumed class frequencies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from assay.arrays import Floats
from assay.files import RunFolder, StepName
from assay.labels.samples import Samples
from assay.labels.space import LabelSpace
from assay.labels.subset import labelled
from assay.metrics.metrics import gains, overall, probabilities_of, score
from assay.metrics.tallies import row_blocks
from assay.models.decision_rule import DecisionRule
from assay.models.trained_model import read_description
from assay.plan.checks import RULES
from assay.predictions.predict import Predictions
from assay.predictions.thresholds import HALF
from assay.run.contents import LabelledPredictions
from assay.run.records import Alternative, DoneRecord
from assay.settings import Settings
from assay.steps.base import StepPlan
from assay.steps.fit_settings import PRIORS, FitSettings, Prior, rule_for, sampling_plan, taught_prior
from assay.steps.probe import ProbeSettings

TEXTS: Mapping[Prior, str] = {
    "data": "the frequencies of the data",
    "square_root": "their square root",
    "uniform": "equal frequencies",
}
PRICED = ("accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "nll")


def prices(
    name: StepName,
    steps: Mapping[StepName, DoneRecord],
    plan: Sequence[StepPlan],
    samples: Samples,
    run: RunFolder,
    now: LabelledPredictions,
) -> list[Alternative] | None:
    """Return what the model of a step would measure under other assumed class frequencies, tags given from one half up.

    Frequencies under which the answers are the same are left out. None where it is not known which ones the model
    assumes: it is of several networks, or its head was learnt again.
    """
    learnt = _learning_step(name, steps)
    settings = _settings(learnt, plan) if learnt else None
    if not isinstance(settings, FitSettings | ProbeSettings):
        return None
    train = labelled(samples.part("train"))
    equal = -rule_for("uniform", train).shift
    if isinstance(settings, ProbeSettings):
        assumed = PRIORS[settings.prior] * equal
    else:
        taught = taught_prior(settings, train, sampling_plan(settings, train, seed=0))
        assumed = taught - rule_for(settings.prior, train, taught).shift
    del train  # of a million images 200 MB
    described = read_description(run.path / (steps[name].model or ""))["deciding"]
    temperature = DecisionRule.from_json(samples.space, described).temperature
    return list(_alternatives(now, equal=equal / temperature, assumed=assumed / temperature))


def _alternatives(now: LabelledPredictions, *, equal: Floats, assumed: Floats) -> Iterator[Alternative]:
    """Yield the metrics under each prior whose answers are others; `equal` and `assumed` (W,) are added to logits."""
    space, known = now.samples.space, now.predictions
    probabilities = np.empty_like(known.probabilities)  # of each prior in turn
    for prior, share in PRIORS.items():
        same = _halves(known, space)
        for rows in row_blocks(probabilities):
            logits = known.logits[rows] + share * equal - assumed
            probabilities[rows] = probabilities_of(space, logits.astype(np.float32, copy=False))
            same = same and np.allclose(probabilities[rows], known.probabilities[rows], atol=1e-4)
        if same:
            continue
        scores = score(space, now.codes, probabilities)
        better = gains(now.scores, scores)
        names = [metric for metric in PRICED if metric in better]
        names = [metric for metric in names if metric != "micro_f1" or "accuracy" not in names]  # which it then is
        measured = overall(scores)
        yield Alternative(
            prior=TEXTS[prior],
            metrics={metric: measured[metric].to_json() for metric in names},
            gains={metric: better[metric].to_json() for metric in names},
        )


def _halves(predictions: Predictions, space: LabelSpace) -> bool:
    """Return whether every tag is given from one half up."""
    return all(head.multiclass or bool((predictions.cuts[:, columns] == HALF).all()) for head, columns in space.each())


def _learning_step(name: StepName, steps: Mapping[StepName, DoneRecord]) -> StepName | None:
    """Return the step that trained the model of a step; one that only chose a rule has it from the step before."""
    model = steps[name].model
    while model is not None:
        made = StepName("/".join(Path(model).parts[1:-1]))  # steps/02-fit/best
        if made.kind not in RULES:
            return made
        earlier = [one for one in steps if one.outer == made.outer and one.number < made.number and steps[one].model]
        model = steps[earlier[-1]].model if earlier else None
    return None


def _settings(name: StepName, plan: Sequence[StepPlan]) -> Settings | None:
    """Return the settings of a step on the plan's list, or of one that a repeat holds."""
    held = plan if name.outer is None else getattr(_settings(name.outer, plan), "steps", ())
    return held[name.number - 1].settings if name.number <= len(held) else None
