"""pseudo_label: predictions of the newest model as labels for what is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from assay.arrays import Bools, Floats, Ints
from assay.errors import PlanError
from assay.labels.edits import Edit
from assay.labels.ledger import Ledger
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head, LabelSpace
from assay.labels.subset import partly_unknown
from assay.metrics.metrics import probabilities_of
from assay.models.backbones import feature_widths
from assay.models.ensemble import Model, load_model
from assay.predictions.inference import PLAIN, View
from assay.predictions.tta import Flips, TTASettings, tta_views
from assay.repair.pseudo_labels import (
    Agreement,
    Changes,
    Confidence,
    Keep,
    LabelWeight,
    PseudoLabels,
    choose_pseudo_labels,
    pseudo_label_edits,
    without_labels,
)
from assay.repair.transduction import Mixture, class_mixture, gain_of_mixture
from assay.steps.base import Context, State, Step, StepResult, StepSettings
from assay.steps.foreign_images import (
    MOST_COMPARED,
    Networks,
    foreign_images,
    network_features,
    networks_of,
    unseen_networks,
)
from assay.steps.soft_targets import soft_targets, write_soft_targets
from assay.steps.start import heads_named
from assay.steps.suspect_lists import evidence
from assay.training.semi_supervised import Foreign

LISTED_CLASSES = 12  # with their counts in a line
LEARNT_ODDS = 3.0  # of an answer by features that know the labels: from 2 to 5 as good (docs/RESULTS.md)


class PseudoLabelSettings(StepSettings):
    """Give unknown training labels the answers of the model so far, anew each time."""

    changes_labels = True

    heads: tuple[str, ...] | None = Field(None, min_length=1, description="Heads to label; default: all.")
    teacher: Literal["model", "mixture"] = Field(
        "model",
        description="Whose answers: the newest model's, or the mean of these and of a Gaussian for each class, fitted "
        "to its features of labelled and unlabelled images together, and to those of the weights that the plan begins "
        "with where its own have learnt from the labels; for multi-class heads.",
    )
    foreign: Foreign = "leave"
    keep: Keep = Field(Confidence(), description="Which of the answers become labels.")
    soft: bool = Field(False, description="Let a fit follow the probabilities themselves, not the class alone.")
    tta: TTASettings = Field(
        Flips(),
        description="The views that must agree, where that is what is kept, or whose mean features a mixture takes.",
    )
    weight: LabelWeight = Field(1.0, description="What a pseudo-label counts, or `confidence`: its own probability.")
    only_if_better: bool = Field(
        False,
        description="Give labels only where a mixture predicts more of the labels held out from it, beyond chance, "
        "than a linear model of the labelled images.",
    )

    def require_consistent(self) -> None:
        if self.only_if_better and self.teacher != "mixture":
            raise ValueError(
                "only_if_better compares a mixture with a linear model; drop it, take teacher: mixture, or put the "
                "step into a repeat with only_if_better, which compares validation metrics"
            )
        if self.tta != Flips() and not isinstance(self.keep, Agreement) and self.teacher == "model":
            raise ValueError(f"tta is asked whether they agree, and keep: {self.keep.kind} does not; drop one of them")


def check(settings: PseudoLabelSettings, space: LabelSpace) -> None:
    """Raise PlanError for a head that is not in the data, and for a mixture of tags."""
    for _, head, _ in heads_named(space, settings.heads, step="pseudo_label"):
        if settings.teacher == "mixture" and not head.multiclass:
            raise PlanError(
                f"pseudo_label: teacher: mixture is for multi-class heads, and {head.name!r} is multi-label. "
                "Name others in `heads`, or take teacher: model."
            )


def run(settings: PseudoLabelSettings, state: State, context: Context) -> StepResult:
    """Predict every unknown label of the training part, those given by an earlier round too, and keep some.

    Raises PlanError without a model, DataError for a head of which no training label is known.
    """
    if state.model is None:
        raise PlanError("pseudo_label: there is no model yet to answer. Put a probe or a fit before it.")
    train = state.samples.part("train")
    before = Ledger.read(context.ledger).of(state.done).effective()
    heads = heads_named(state.samples.space, settings.heads, step="pseudo_label")
    known = [without_labels(head, train, before) for _, head, _ in heads]
    unknown = [(codes < 0) & ~closed for codes, closed in known]
    rows = np.any([head.any_cell(cells) for (_, head, _), cells in zip(heads, unknown, strict=True)], axis=0)
    given = np.any([head.known(codes) for (_, head, _), (codes, _) in zip(heads, known, strict=True)], axis=0)
    answers = _answers(settings, state, context, unknown=rows, given=given)
    edits: list[Edit] = []
    details: dict[str, object] = {}
    soft = {name: path for name, path in state.soft.items() if name not in {head.name for _, head, _ in heads}}
    all_codes = train.codes()
    for (index, head, columns), (codes, closed), cells in zip(heads, known, unknown, strict=True):
        probabilities, gain = answers.by_view[0][:, columns], None
        asks = settings.only_if_better and bool(cells.any())
        if settings.teacher == "mixture" and cells.any():
            mixture = _mixture(head, codes, answers, answers.features, context)
            probabilities = np.asarray((probabilities + mixture.probabilities) / 2, np.float32)
            if answers.unseen is not answers.features:
                mixture = _mixture(head, codes, answers, answers.unseen, context)
                share = trust(mixture, codes)
                context.progress.line(f"  {head.name}: those of published features count {share:.0%}")
                probabilities = share * mixture.probabilities + (1 - share) * probabilities
            if asks:
                gain = gain_of_mixture(head, codes, answers.unseen.values, mixture, seed=context.seed)
        chosen = choose_pseudo_labels(
            head,
            codes,
            probabilities,
            keep=settings.keep,
            view_probabilities=[view[:, columns] for view in answers.by_view],
            closed=closed | head.spread(answers.foreign),
            soft=settings.soft,
        )
        if asks and not (better := gain is not None and gain.beyond_chance):
            chosen = replace(chosen, kept=np.zeros_like(chosen.kept), soft=None)
        if asks:
            what = "fits learn from labels of all images" if better else "no image gets a label"
            context.progress.line(f"  {head.name}: {what}: {evidence(gain, 'Gaussians of all images')}")
        targets = _soft_targets(chosen, state.soft, train)
        if (targeted := np.flatnonzero(np.isfinite(targets).any(axis=1))).size:
            soft[head.name] = context.folder.path / f"soft-{index}.parquet"
            write_soft_targets(soft[head.name], head, train, targeted, targets=targets, given=chosen.labels)
        edits += pseudo_label_edits(chosen, train, context.name, weight=settings.weight, before=before)
        chosen = replace(chosen, notes=(*answers.notes, *chosen.notes))
        of_head = _details(chosen, chosen.changed_since(all_codes[index]), int(cells.sum()), context)
        details[head.name] = {**of_head, "gain": None if gain is None else gain.to_json()}
    return StepResult(None, details=details, edits=edits, soft=soft)


STEP = Step(
    PseudoLabelSettings,
    run,
    purpose="labels for images that had none",
    report=("keep", "teacher"),
    needs_model=True,
    repairs=True,
    computes=lambda settings: True,
    check=check,
)


@dataclass(frozen=True, eq=False)
class _Features:
    """Features (N, F) of training images, means over views, NaN where not asked; the widths of their blocks."""

    values: Floats
    widths: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class _Answers:
    """What a model gives of training images: by view probabilities (N, W), NaN where not asked, and which are foreign.

    Features are kept where a mixture is to be fitted to them; those that no label has taught are the same, unless the
    model's have learnt from labels: only they tell what labels held out are worth.
    """

    by_view: list[Floats]
    foreign: Bools
    features: _Features
    unseen: _Features
    notes: tuple[str, ...] = ()


def _answers(
    settings: PseudoLabelSettings, state: State, context: Context, *, unknown: Bools, given: Bools
) -> _Answers:
    """Return the answers for images with `unknown` labels (N,); a mixture needs all. `given` have a label."""
    train, space = state.samples.part("train"), state.samples.space
    none = _Features(np.zeros((len(train), 0), np.float32))
    answers = _Answers([], np.zeros(len(train), np.bool_), none, none)
    mixture = settings.teacher == "mixture"
    if not unknown.any() or state.model is None:
        return replace(answers, by_view=[np.full((len(train), space.width), np.nan, np.float32)])
    model, asked = load_model(state.model), np.flatnonzero(unknown | given if mixture else unknown)
    networks, images = networks_of(model), train.take(asked)
    published = unseen_networks(model, state, context)
    total, total_unseen = (np.zeros((1, 1), np.float32) for _ in range(2))
    for number, view in enumerate(views := _views(settings)):
        of_view = unseen = network_features(networks, images, context, view)
        compares = number == 0 and settings.foreign == "leave"
        if published is not None and (mixture or compares):
            unseen = network_features(published, images, context, view)
        if compares:
            marked, notes = foreign_images(published or networks, unseen, asked, given, state=state, context=context)
            answers = replace(answers, foreign=marked, notes=notes)
        answers.by_view.append(np.full((len(train), space.width), np.nan, np.float32))
        answers.by_view[-1][asked] = probabilities_of(space, model.logits(_raw(model, of_view)))
        if mixture:
            total = total + np.concatenate(of_view, axis=1)
            total_unseen = total if published is None else total_unseen + np.concatenate(unseen, axis=1)
    if mixture:
        features = _mean_features(networks, total, len(views), asked, len(train))
        if published is None:
            return replace(answers, features=features, unseen=features)
        unseen_features = _mean_features(published, total_unseen, len(views), asked, len(train))
        answers = replace(answers, features=features, unseen=unseen_features)
    return answers


def _mean_features(networks: Networks, total: Floats, views: int, asked: Ints, count: int) -> _Features:
    """Return sums (M, F) over views of the images asked as means of all `count`, and the widths of their blocks."""
    values = np.full((count, total.shape[1]), np.nan, np.float32)
    values[asked] = total / views
    widths = (width for classifier, _ in networks for width in feature_widths(classifier.backbone))
    return _Features(values, tuple(widths))


def _raw(model: Model, features: list[Floats]) -> list[Floats]:
    """Return the logits of each network of its features."""
    with torch.inference_mode():
        return [
            network.classifier.classify(torch.from_numpy(np.array(part))).numpy()
            for network, part in zip(model.networks, features, strict=True)
        ]


def _mixture(head: Head, codes: Codes, answers: _Answers, features: _Features, context: Context) -> Mixture:
    """Return a mixture; print what was chosen for it."""
    mixture = class_mixture(
        head, codes, features.values, use=~answers.foreign, seed=context.seed, widths=features.widths
    )
    context.progress.line(
        f"  {head.name}: Gaussians of the classes in {mixture.directions} directions, temperature "
        f"{mixture.temperature:g}"
    )
    return mixture


def trust(mixture: Mixture, codes: Codes) -> np.float32:
    """Return the share of a mixture of published features in the answers, beside features that the labels taught.

    The more of the labels held out from it it names, the more, by their odds. From features that know the labels none
    are held out: they are taken to name three of four.
    """
    held = mixture.folds >= 0
    right = np.count_nonzero(mixture.held_out[held].argmax(axis=1) == codes[held])
    odds = (right + 0.5) / (np.count_nonzero(held) - right + 0.5)
    return np.float32(odds / (odds + LEARNT_ODDS))


def _views(settings: PseudoLabelSettings) -> list[View]:
    """Return the views that are predicted, the plain image first."""
    several = settings.teacher == "mixture" or isinstance(settings.keep, Agreement)
    others = tta_views(settings.tta) if several else ()
    return [PLAIN, *(view for view in others if view != PLAIN)]


def predicted_images(settings: PseudoLabelSettings, samples: Samples, *, learnt: bool) -> int:
    """Return how many images, or views of them, pass through a network; `learnt`: the newest knows the labels."""
    train, validation = samples.part("train"), samples.part("val")
    is_mixture, leaves = settings.teacher == "mixture", settings.foreign == "leave"
    asked, views = len(train if is_mixture else partly_unknown(train)), len(_views(settings))
    compared = [int(train.labelled().sum()), len(validation)] if leaves else []
    unseen = (views if is_mixture else int(leaves)) * asked if learnt else 0
    return views * asked + unseen + sum(min(count, MOST_COMPARED) for count in compared)


def _details(chosen: PseudoLabels, changes: Changes, unknown: int, context: Context) -> dict[str, object]:
    """Return how many labels of one head were kept and changed, for done.json; print them."""
    head, kept = chosen.head, int(chosen.kept.sum())
    by_class = chosen.counts if head.multiclass else chosen.counts[:, 1]
    counts = {name: int(number) for name, number in zip(head.classes, by_class, strict=True)}
    for note in chosen.notes:
        context.progress.line(f"  note: {note}")
    listed = [f"{name} {number:,}" for name, number in counts.items() if number]
    more = f" and {len(listed) - LISTED_CLASSES} more" if len(listed) > LISTED_CLASSES else ""
    of_class = f": {', '.join(listed[:LISTED_CLASSES])}{more}" if listed else ""
    what = "" if head.multiclass else " (counted below: present)"
    context.progress.line(
        f"  {head.name}: {kept:,} of {unknown:,} unknown labels kept{what}{of_class}; since the round before "
        f"{changes.new:,} new, {changes.different:,} others, {changes.gone:,} gone"
    )
    return {
        "unknown": unknown,
        "kept": kept,
        "kept by class": counts,
        "changed": changes._asdict(),
        "mean confidence": float(chosen.confidence[chosen.kept].mean()) if kept else None,
        "notes": list(chosen.notes),
    }


def _soft_targets(chosen: PseudoLabels, before: Mapping[str, Path], train: Samples) -> Floats:
    """Return the soft targets (N, K) of the pseudo-labels kept, and of given labels as before; NaN elsewhere."""
    head = chosen.head
    targets = np.full((len(train), head.size), np.nan, np.float32)
    if (earlier := soft_targets(before, train)[train.space.heads.index(head)]) is not None:
        known = head.decided(chosen.given)
        targets[known] = earlier[known]
    return targets if chosen.soft is None else np.where(np.isnan(chosen.soft), targets, chosen.soft)
