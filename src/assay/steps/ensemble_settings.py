"""What a combination may be told: its members, and how they become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from assay.labels.samples import Samples
from assay.metrics.metrics import overall
from assay.metrics.paired import gains
from assay.models.classifier import ModelSettings
from assay.models.combiners import MeanOf
from assay.models.tree import Branches
from assay.predictions.predict import Predictions, score_predictions
from assay.settings import Settings, Source
from assay.steps.base import Context, StepPlan, steps_below

Kind = Literal["average", "tree", "soup"]

OF_KIND: dict[Kind, frozenset[str]] = {
    "average": frozenset({"mean", "weights", "folds"}),
    "tree": frozenset({"tree", "one", "head"}),
    "soup": frozenset({"pick", "monitor", "folds"}),
}
"""The settings that belong to one kind or two."""


class MemberPlan(Settings):
    """One of the models: trained here by steps of its own, or there already."""

    model: ModelSettings | None = Field(None, description="Its backbone and head; default: those of the plan.")
    steps: tuple[StepPlan, ...] = Field((), description="How it is trained, from the labels as this step gets them.")
    run: Annotated[str | None, Source("member")] = Field(
        None, description="Instead, a finished run, or the folder of a model in one."
    )
    step: str | None = Field(None, description="Instead, an earlier step of this run, such as 02-fit, or 02-fit/last.")

    @model_validator(mode="after")
    def _one_source(self) -> MemberPlan:
        given = [name for name in ("steps", "run", "step") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"a member has steps, run or step; {' and '.join(given) or 'none'} is given")
        if self.model is not None and not self.steps:
            raise ValueError(f"model is for a member that is trained here; {given[0]} has a model already")
        return self

    @model_validator(mode="after")
    def _no_repair(self) -> MemberPlan:
        for step in steps_below(self):
            if _changes_labels(step):
                raise ValueError(
                    f"{step.kind} changes labels, and members only learn from them; put it before this step"
                )
        return self


class EnsembleSettings(Settings):
    """Several models answer as one: their mean, a tree of questions, or one network with the mean of their weights."""

    kind: Kind = Field("average", description="average, tree or soup.")
    members: tuple[MemberPlan, ...] = Field(min_length=1, description="The models; of a tree, one that all nodes take.")
    mean: MeanOf = Field("probabilities", description="average: what the mean is taken of.")
    weights: Literal["equal", "validation"] = Field(
        "equal", description="average: equal ones, or those at which validation loses least."
    )
    folds: int = Field(5, ge=2, description="Parts of validation, each judged by a choice made on the others.")
    tree: Branches | None = Field(None, description="tree: classes in nested lists or mappings.")
    one: str | None = Field(None, description="tree: the class that is told from the rest; else the most frequent.")
    head: str | None = Field(None, description="tree: the multi-class head; needed where there are several.")
    pick: Literal["all", "greedy"] = Field("all", description="soup: all members, or those that validation gains by.")
    monitor: str = Field("nll", description="soup: the validation metric of a greedy pick.")

    @model_validator(mode="after")
    def _of_one_kind(self) -> EnsembleSettings:
        for name in sorted(self.model_fields_set & frozenset().union(*OF_KIND.values())):
            if name not in OF_KIND[self.kind]:
                kinds = " or ".join(kind for kind, names in OF_KIND.items() if name in names)
                raise ValueError(f"{name} belongs to kind: {kinds}; this is kind: {self.kind}")
        return self

    @model_validator(mode="after")
    def _enough(self) -> EnsembleSettings:
        count = len(self.members)
        if self.kind != "tree" and count < 2:
            raise ValueError(f"kind: {self.kind} needs at least two members; give another, or leave the step out")
        if self.kind == "tree" and (count > 1 or not self.members[0].steps):
            raise ValueError("a tree has one member, whose steps are carried out for every node; give its steps alone")
        if self.tree is not None and self.one is not None:
            raise ValueError("tree and one both say which classes are told apart first; drop one of them")
        return self


def _changes_labels(step: StepPlan) -> bool:
    from assay.steps import STEPS  # which knows this step's settings, and so cannot be there before them

    return step.kind in STEPS and STEPS[step.kind].relabels


# What a combination is worth beside its members, for done.json and in lines.

GAIN_METRIC = "macro_f1"  # of multi-class heads and multi-label ones alike
GAIN_METRICS = ("accuracy", "macro_f1", "nll")

Told = dict[str, Any]


def ensemble_gain(
    members: Sequence[Predictions], answers: Predictions, validation: Samples, context: Context
) -> tuple[Told, Told]:
    """The metrics of each member, and the gain of the combination over the best of them, by macro F1, then by loss.

    The best was chosen on these images, which flatters it; the gain is over that.
    """
    scores = {one.model: overall(score_predictions(one, validation)) for one in members}
    best = max(members, key=lambda one: (scores[one.model][GAIN_METRIC].value, -scores[one.model]["nll"].value))
    metrics = {name: {metric: found.to_json() for metric, found in own.items()} for name, own in scores.items()}
    return metrics, gain_lines(best, answers, validation, f"the best member, {best.model}", context)


def gain_lines(before: Predictions, after: Predictions, validation: Samples, what: str, context: Context) -> Told:
    """The paired gain in every metric, for done.json; of the chief ones said in lines."""
    found = gains(score_predictions(before, validation), score_predictions(after, validation))
    for name, metric in found.items():
        if name in GAIN_METRICS:
            context.progress.line(
                f"  {name}: better than {what} by {metric.value:.4f}{metric.limits()}, n = {metric.n}"
            )
    return {"over": what, **{name: metric.to_json() for name, metric in found.items()}}
