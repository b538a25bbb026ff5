"""What training can be expected to reach: a cross-validated linear model, its learning curve, and twice the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from assay.arrays import Bools, Doubles, Floats, Ints
from assay.labels.space import Codes, LabelSpace
from assay.metrics.intervals import Estimate, Metric, mean, metric
from assay.metrics.metrics import estimates, headline, overall, probabilities_of, score
from assay.training.fold_linear import Components, fit_folds, fold_logits, log_loss, targets_of

SHARES = (0.25, 0.5, 1.0)
"""Parts of the labels that a learning curve is measured at."""

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""Strengths of the pull to zero that are compared, for each label: 1 / C over the number of labels, strongest first."""

ITERATIONS = 30
DRAWS = 2  # random parts of the labels, whose metrics are averaged
RESAMPLES = 1000


class LinearJudge(NamedTuple):
    """Probabilities (N, W) of images by linear models of the other folds, and the penalty a label that they have."""

    probabilities: Floats
    penalty: float


def judge_by_folds(
    space: LabelSpace, components: Components, codes: Sequence[Codes], weights: Floats, fold: Ints
) -> LinearJudge:
    """Return out-of-fold probabilities at the penalty of the lowest out-of-fold loss.

    `weights` are (N, H). Images of fold -1 teach nothing and are judged by the models of all folds.
    """
    targets, cells = targets_of(space, codes, weights)
    start, best, lowest = None, LinearJudge(np.zeros((0, 0), np.float32), 0.0), np.inf
    for penalty in PENALTIES:
        start = fit_folds(
            space, components, targets, cells, fold, penalty=penalty * int((fold >= 0).sum()), start=start, iterations=ITERATIONS
        )
        logits = fold_logits(components, start, fold)
        loss = log_loss(space, logits, targets, cells)
        if loss >= lowest:
            break  # a still weaker pull fits worse, and takes longest
        best, lowest = LinearJudge(probabilities_of(space, logits), penalty), loss
    return best


@dataclass(frozen=True)
class CurvePoint:
    """The metric of models that were taught `labelled` images (the mean over folds), on images of another fold."""

    share: float
    labelled: int
    metric: Metric


@dataclass(frozen=True)
class Expectation:
    """What a linear model on features reaches out of fold, and how that grows with the number of labels.

    `curve` is that of a quarter, half and all of the labels, of which four folds in five teach. `twice` is the gain
    expected of twice the labels, with a 95 % interval; None where the curve cannot tell.
    """

    metric: str
    curve: tuple[CurvePoint, ...]
    twice: Metric | None

    def to_json(self) -> dict[str, object]:
        """Return the expectation as audit.json has it."""
        return {
            "metric": self.metric,
            "curve": [
                {"share": point.share, "labelled": point.labelled, **point.metric.to_json()} for point in self.curve
            ],
            "twice": None if self.twice is None else self.twice.to_json(),
        }


def expectation(
    space: LabelSpace,
    components: Components,
    codes: Sequence[Codes],
    weights: Floats,
    fold: Ints,
    *,
    judge: LinearJudge,
    seed: int,
) -> Expectation:
    """Return the expectation by linear models on components of features, at the penalty of the judge of all labels."""
    targets, cells = targets_of(space, codes, weights)
    folds = int(fold.max()) + 1
    by_share: dict[float, list[Floats]] = {1.0: [judge.probabilities]}
    for share in SHARES[:-1]:
        for draw in range(DRAWS):
            taught = part_of(fold, share, np.random.default_rng((seed, draw)))
            fitted = fit_folds(
                space,
                components,
                targets,
                cells,
                np.where(taught, fold, -1),
                penalty=judge.penalty * int(taught.sum()),
                iterations=ITERATIONS,
            )
            by_share.setdefault(share, []).append(probabilities_of(space, fold_logits(components, fitted, fold)))
    scores = {share: [score(space, codes, one) for one in of_share] for share, of_share in by_share.items()}
    name = headline(overall(scores[1.0][0])) or "accuracy"
    terms = {share: mean([estimates(one)[name] for one in of_share]) for share, of_share in scores.items()}
    labelled = int((fold >= 0).sum()) * (folds - 1) / folds
    curve = tuple(CurvePoint(share, round(share * labelled), metric(terms[share])) for share in SHARES)
    return Expectation(name, curve, gain_of_twice([terms[share] for share in SHARES], seed=seed))


def part_of(fold: Ints, share: float, chance: np.random.Generator) -> Bools:
    """Return a random part (N,) of the images, the same share of every fold; a smaller share is within a larger one.

    Images of fold -1 are in none.
    """
    order, part = chance.permutation(len(fold)), np.zeros(len(fold), np.bool_)
    for number in range(int(fold.max()) + 1):
        members = order[fold[order] == number]
        part[members[: int(np.ceil(share * len(members)))]] = True
    return part


def gain_of_twice(points: Sequence[Estimate], *, seed: int) -> Metric | None:
    """Return the gain of twice the labels, from a metric at a quarter, half and all of them, over the same images.

    On a power law with a limit (Cortes et al. 1993) each doubling gains the same share of what the one before did: the
    share is measured, and lies between 0 and 1. The interval is that of a bootstrap over images, by the first-order
    influence of each.
    """
    values = np.array([point.value for point in points])
    influence = np.stack([point.influence for point in points], axis=1)
    if len(influence) < 2:
        return None
    chance = np.random.default_rng(seed)
    changes = np.stack([chance.poisson(1.0, len(influence)) @ influence for _ in range(RESAMPLES)])
    gains = next_gain(values + changes - influence.sum(axis=0))
    low, high = np.quantile(gains, [0.025, 0.975])
    value = float(next_gain(values[None])[0])
    return Metric(value, len(influence), min(float(low), value), max(float(high), value))


def next_gain(values: Doubles) -> Doubles:
    """Return the gain (B,) that the next doubling brings, by metrics (B, 3) at a quarter, half and all."""
    before, last = values[:, 1] - values[:, 0], values[:, 2] - values[:, 1]
    ratio = np.clip(last / np.where(before > 0, before, np.inf), 0, 1)
    return np.asarray(np.where(last > 0, last * np.where(before > 0, ratio, 1.0), 0.0))
