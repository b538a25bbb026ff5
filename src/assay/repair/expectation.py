"""What training can be expected to reach: a cross-validated linear model, its learning curve, and twice the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from assay.arrays import Bools, Doubles, Floats, Ints
from assay.labels.space import Codes, LabelSpace
from assay.metrics.intervals import Estimate, Metric, mean, with_interval
from assay.metrics.metrics import probabilities_of, score
from assay.training.fold_linear import Components, fit_folds, fold_logits
from assay.training.linear import log_loss, targets_of

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
            space,
            components,
            targets,
            cells,
            fold,
            penalty=penalty * int((fold >= 0).sum()),
            start=start,
            iterations=ITERATIONS,
        )
        logits = fold_logits(components, start, fold)
        loss = log_loss(space, logits, targets, cells)
        if loss >= lowest:
            break  # a still weaker pull fits worse, and takes longest
        best, lowest = LinearJudge(probabilities_of(space, logits), penalty), loss
    return best


class Point(NamedTuple):
    """The metric of models that so many labelled images taught, on images of another fold."""

    images: int
    metric: Metric


@dataclass(frozen=True)
class Curve:
    """What a linear model on features reaches under one head, by a quarter, half and all of the labels.

    Of these, all folds but one teach. `twice` is what is expected of twice the labels, with a 95 % interval; None where
    the curve cannot tell.
    """

    head: str
    metric: str
    points: tuple[Point, ...]
    twice: Point | None


def learning_curves(
    space: LabelSpace,
    components: Components,
    codes: Sequence[Codes],
    weights: Floats,
    fold: Ints,
    *,
    judge: LinearJudge,
    seed: int,
) -> list[Curve]:
    """Return the curve of each head with a known label, by linear models at the penalty of the judge of all labels."""
    targets, cells = targets_of(space, codes, weights)
    by_share: list[list[Floats]] = []
    for share in SHARES[:-1]:
        by_share.append([])
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
            by_share[-1].append(probabilities_of(space, fold_logits(components, fitted, fold)))
    scores = [[score(space, codes, one) for one in of_share] for of_share in (*by_share, [judge.probabilities])]
    others, curves = 1 - 1 / len(np.unique(fold[fold >= 0])), []
    for head, known in zip(space, codes, strict=True):
        labelled = int(head.known(known).sum()) * others
        if labelled and head.size > 1:
            terms = [mean([one[head.name].estimates[head.headline] for one in of_share]) for of_share in scores]
            counts = [round(share * labelled) for share in SHARES]
            points = tuple(Point(count, with_interval(one)) for count, one in zip(counts, terms, strict=True))
            curves.append(Curve(head.name, head.headline, points, at_twice(counts[-1], terms, seed=seed)))
    return curves


def part_of(fold: Ints, share: float, chance: np.random.Generator) -> Bools:
    """Return a random part (N,) of the images, the same share of every fold; a smaller share is within a larger one.

    Images of fold -1 are in none.
    """
    order, part = chance.permutation(len(fold)), np.zeros(len(fold), np.bool_)
    for number in range(int(fold.max()) + 1):
        members = order[fold[order] == number]
        part[members[: int(np.ceil(share * len(members)))]] = True
    return part


def at_twice(images: int, points: Sequence[Estimate], *, seed: int) -> Point | None:
    """Return what twice as many labels reach, from a metric at a quarter, half and all of them, over the same images.

    On a power law with a limit (Cortes et al. 1993) each doubling gains the same share of what the one before did: the
    share is measured, and lies between 0 and 1. The interval is that of a bootstrap over images, by the first-order
    influence of each on the metrics.
    """
    values = np.array([[point.value for point in points]])
    influence = np.stack([point.influence for point in points], axis=1)
    if len(influence) < 2:
        return None
    chance = np.random.default_rng(seed)
    drawn = np.stack([(chance.poisson(1.0, len(influence)) - 1) @ influence for _ in range(RESAMPLES)])
    value = float(_next(values)[0])
    low, high = np.quantile(_next(values + drawn), [0.025, 0.975])
    return Point(2 * images, Metric(value, points[-1].n, min(float(low), value), max(float(high), value)))


def _next(values: Doubles) -> Doubles:
    """Return the metric (B,) at twice the labels, at most 1, by metrics (B, 3) at a quarter, half and all."""
    return np.minimum(values[:, 2] + next_gain(values), 1)


def next_gain(values: Doubles) -> Doubles:
    """Return the gain (B,) that the next doubling brings, by metrics (B, 3) at a quarter, half and all."""
    before, last = values[:, 1] - values[:, 0], values[:, 2] - values[:, 1]
    ratio = np.clip(last / np.where(before > 0, before, np.inf), 0, 1)
    return np.asarray(np.where(last > 0, last * np.where(before > 0, ratio, 1.0), 0.0))
