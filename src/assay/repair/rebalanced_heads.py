"""Heads learnt again on the features of a representation that stays (Kang et al. 2020, Decoupling).

Every fit is a function from the features and labels of one head to candidate layers, one for each setting; validation
chooses among them (head_choice). All are learnt as if classes were more frequent by their weights: with inverse
frequencies, equally frequent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from assay.arrays import Bools, Doubles, Floats, Ints, Reals
from assay.errors import DataError
from assay.labels.space import Codes, Head, LabelSpace
from assay.models.heads import KernelMachine, NearestMean, linear_layer, widened
from assay.predictions.calibration import rescaled, temperature
from assay.repair.head_kinds import (
    LINEAR_COSTS,
    RBF_COSTS,
    AnyKind,
    Crt,
    Levels,
    LogitAdjust,
    Lws,
    Ncm,
    Svm,
    TauNorm,
    kind_name,
    learnable,
)
from assay.repair.support_vectors import FOLDS, Machines, against_rest, fit_machines
from assay.training.feature_blocks import moments
from assay.training.linear import fit_cells, targets_of

IMPOSSIBLE = -1e4  # the logit of a class that no training image shows
CONSTANT = 20.0  # that of a tag which all training images have, or, below 0, none


@dataclass(frozen=True, eq=False)
class Task:
    """One head to learn: features (N, F), codes, label weights (shaped like the codes), class weights (K,).

    `before` gives the logits of the head as it was, calibrated; None where it is not linear.
    """

    head: Head
    features: Floats
    codes: Codes
    weights: Reals
    class_weights: Reals
    before: nn.Linear | None
    seed: int

    @staticmethod
    def of(
        head: Head,
        features: Floats,
        codes: Codes,
        weights: Reals,
        class_weights: Reals,
        *,
        before: nn.Linear | None,
        seed: int,
    ) -> Task:
        """Return a task by weights (N,) of images; an image of weight 0 counts as unknown."""
        codes = np.where(head.spread(weights > 0), codes, -1)
        by_label = label_weights(head, codes, weights, class_weights)
        return Task(head, features, codes, by_label, class_weights, before, seed)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer, and the setting that it was learnt with."""

    kind: str
    setting: str
    layer: nn.Module


def label_weights(head: Head, codes: Codes, weights: Reals, class_weights: Reals) -> Reals:
    """Return label weights, shaped like the codes: the weight of the image (N,) times that of the class (K,).

    Under a multi-label head that of a tag counts where it is there; 0 where unknown.
    """
    if head.multiclass:
        return np.where(codes >= 0, weights * class_weights[codes], 0.0)
    return np.where(codes >= 0, weights[:, None] * np.where(codes == 1, class_weights, 1.0), 0.0)


def fit_heads(kind: AnyKind, task: Task) -> list[Candidate]:
    """Return the layers of one kind for a head, one a setting. A class without a training image is never predicted.

    Raises DataError where fewer than two classes, or no tag, can be learnt.
    """
    able = learnable(task.head, task.codes)
    _require_labels(task.head, able)
    classes = np.flatnonzero(able)
    candidates = FITS[kind.kind](kind, _of_classes(task, classes))
    if able.all():
        return candidates
    levels = torch.from_numpy(_fixed_levels(task.head, task.codes))
    return [replace(one, layer=widened(one.layer, classes.tolist(), levels)) for one in candidates]


def _svm(kind: Svm, task: Task) -> list[Candidate]:
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.svm import SVC, LinearSVC

    mean, spread = (part.astype(np.float64) for part in moments(task.features))
    inputs = (task.features - mean) / spread
    positive, weights = against_rest(task.head, task.codes, task.weights, task.class_weights)
    rbf = kind.kernel == "rbf"
    gamma = kind.gamma or 1 / inputs.shape[1]
    if rbf:
        inputs = rbf_kernel(inputs, gamma=gamma)  # once for all classes, folds and costs
    candidates = []
    for cost in kind.costs or (RBF_COSTS if rbf else LINEAR_COSTS):
        machine = SVC(C=cost, kernel="precomputed") if rbf else LinearSVC(C=cost, dual=False)
        fitted = fit_machines(machine, inputs, positive, weights, seed=task.seed)
        slopes, levels = _platt(task, fitted.out_of_fold)
        layer = (
            _kernel_layer(task, fitted, mean, spread, gamma=gamma, scaling=(slopes, levels))
            if rbf
            else _linear(slopes[:, None] * fitted.vectors / spread, slopes * fitted.intercepts + levels, centre=mean)
        )
        candidates.append(Candidate(kind_name(kind), f"C {cost:g}", layer))
    return candidates


def _platt(task: Task, decisions: Doubles) -> tuple[Doubles, Doubles]:
    """Return slopes and levels (K,) of Platt scaling from out-of-fold decision values (N, K).

    Classes get one slope, tags one each. A class of one image has no such values, and gets the medians.
    """
    scored = np.flatnonzero(np.isfinite(decisions).any(axis=0))
    slopes, levels = np.ones(task.head.size), np.zeros(task.head.size)
    multiclass = task.head.multiclass
    if len(scored) < (2 if multiclass else 1):
        return slopes, levels
    head, codes = _narrowed(task.head, task.codes, scored)
    weights = task.weights if multiclass else task.weights[:, scored]
    each: Literal["one", "each"] = "one" if multiclass else "each"
    scales = rescaled(head, codes, decisions[:, scored], weights, slopes=each, levels=True)
    for values, known in zip((slopes, levels), scales, strict=True):
        values[:] = np.median(known)
        values[scored] = known
    return slopes, levels


def _kernel_layer(
    task: Task, machines: Machines, mean: Doubles, spread: Doubles, *, gamma: float, scaling: tuple[Doubles, Doubles]
) -> KernelMachine:
    rows = np.flatnonzero((machines.vectors != 0).any(axis=0))
    layer = KernelMachine(len(mean), len(machines.vectors), support=len(rows))
    slopes, levels = scaling
    arrays = {
        "centre": mean,
        "spread": spread,
        "support": task.features[rows],
        "dual": machines.vectors[:, rows],
        "gamma": np.float64(gamma),
        "intercepts": machines.intercepts,
        "slopes": slopes,
        "levels": levels,
    }
    layer.load_state_dict({name: torch.as_tensor(value) for name, value in arrays.items()})
    return layer


def _crt(kind: Crt, task: Task) -> list[Candidate]:
    head, space = task.head, LabelSpace((task.head,))
    targets, known = targets_of(space, [task.codes])
    weights = (head.columns(task.weights) * known).astype(np.float32)
    weights /= np.maximum(weights.sum(axis=0), 1e-12) / np.maximum(known.sum(axis=0), 1)  # 1 in the mean
    candidates = []
    for strength in kind.strengths:
        linear = fit_cells(space, task.features, targets, weights, {head.name: (strength,) * head.cells})
        layer = _linear(linear.coefficients, linear.intercepts, centre=np.zeros(task.features.shape[1], np.float32))
        candidates.append(Candidate(kind.kind, f"strength {strength:g}", layer))
    return candidates


def _tau_norm(kind: TauNorm, task: Task) -> list[Candidate]:
    """Intercepts are those at the middle of the class means, where no class is favoured; the paper drops its own."""
    weight, _ = _before(task)
    _, spread = moments(task.features)
    lengths = np.linalg.norm(weight * spread, axis=1)  # on standardised features
    lengths = np.maximum(lengths / np.exp(np.log(np.maximum(lengths, 1e-12)).mean()), 1e-6)
    middle = _class_means(task, np.ones(len(task.codes), dtype=bool)).mean(axis=0)  # (F,), or (K, F) for tags
    return [
        Candidate(
            kind.kind, f"tau {tau:g}", _linear(weight / lengths[:, None] ** tau, np.zeros(len(weight)), centre=middle)
        )
        for tau in kind.tau
    ]


def _lws(kind: Lws, task: Task) -> list[Candidate]:
    weight, bias = _before(task)
    scores = task.features @ weight.T + bias
    slopes, _ = rescaled(task.head, task.codes, scores, task.weights, slopes="each", levels=False)
    layer = _linear(slopes[:, None] * weight, slopes * bias, centre=np.zeros(weight.shape[1]))
    return [Candidate(kind.kind, f"factors {slopes.min():.2g} to {slopes.max():.2g}", layer)]


def _logit_adjust(kind: LogitAdjust | Levels, task: Task) -> list[Candidate]:
    weight, bias = _before(task)
    raised = np.log(task.class_weights)
    return [
        Candidate(kind.kind, f"tau {tau:g}", _linear(weight, bias + tau * raised, centre=np.zeros(weight.shape[1])))
        for tau in kind.tau
    ]


def folds_by_label(head: Head, codes: Codes, *, seed: int) -> Ints:
    """Return a fold for each image (N,), every label spread over all of them as far as its images go.

    A label is a class, or the rarest tag of an image. The only image of a class has fold -1: it is always
    trained on, and never scored.
    """
    if head.multiclass:
        labels = codes
    else:
        rarity = np.where(codes == 1, (codes == 1).sum(axis=0), len(codes) + 1)
        labels = np.where((codes == 1).any(axis=1), rarity.argmin(axis=1), head.size)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(labels)), labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS  # neighbours in this order lie in different folds
    if head.multiclass:
        fold[np.bincount(labels, minlength=head.size)[labels] == 1] = -1
    return fold


def _ncm(kind: Ncm, task: Task) -> list[Candidate]:
    """The slope is that of the lowest loss on similarities to means that leave each image out."""
    fold = folds_by_label(task.head, task.codes, seed=task.seed)
    scores = np.full((len(task.codes), task.head.size), np.nan)
    for number in np.unique(fold[fold >= 0]):
        held = fold == number
        layer = _mean_layer(task, ~held)
        scores[held] = layer.similarities(torch.from_numpy(task.features[held])).numpy()
    usable = np.isfinite(scores)
    scored = usable.all(axis=1) if task.head.multiclass else usable
    counted = np.where(scored, task.weights, 0.0)
    sharp = 10 * np.where(usable, scores, 0.0)  # near the slope that is looked for
    layer = _mean_layer(task, np.ones(len(fold), dtype=bool))
    layer.slope.fill_(10 / temperature(task.head, task.codes, sharp, counted))
    return [Candidate(kind.kind, f"slope {float(layer.slope):.1f}", layer)]


def _mean_layer(task: Task, among: Bools) -> NearestMean:
    paired = not task.head.multiclass
    means = _class_means(task, among)  # (K, F), or (2, K, F)
    centre, spread = moments(task.features)
    if not paired:
        centre = np.nanmean(means, axis=0)
    layer = NearestMean(len(centre), task.head.size, paired=paired)
    layer.centre.copy_(torch.from_numpy(centre))
    layer.spread.copy_(torch.from_numpy(spread))
    away = torch.from_numpy(((means - centre) / spread).reshape(-1, len(centre)).astype(np.float32))
    layer.means.copy_(nn.functional.normalize(away, dim=1))
    return layer


def _class_means(task: Task, among: Bools) -> Doubles:
    """Return mean features of each class (K, F), or without and with each tag (2, K, F), of the rows `among`.

    NaN where no row has the label.
    """
    codes = task.codes[among]
    if task.head.multiclass:
        sides = [task.head.present(codes)]
        weights = np.repeat(task.weights[among][:, None], task.head.size, axis=1)
    else:
        sides, weights = [codes == 0, codes == 1], task.weights[among]
    means = []
    for side in sides:
        counts = np.where(side, weights, 0.0).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append(counts.T @ task.features[among] / counts.sum(axis=0)[:, None])
    return means[0] if len(means) == 1 else np.stack(means)


FITS: dict[str, Callable[[Any, Task], list[Candidate]]] = {
    "svm": _svm,
    "crt": _crt,
    "tau_norm": _tau_norm,
    "lws": _lws,
    "ncm": _ncm,
    "logit_adjust": _logit_adjust,
    "levels": _logit_adjust,
}


def _linear(weight: Reals, level: Reals, *, centre: Reals) -> nn.Linear:
    """Return the layer with `weight` (K, F) and, for features at the centre, (F,) or (K, F), logits `level` (K,)."""
    bias = level - (weight * centre).sum(axis=1)
    return linear_layer(torch.from_numpy(np.asarray(weight)), torch.from_numpy(np.asarray(bias)))


def _before(task: Task) -> tuple[Doubles, Doubles]:
    assert task.before is not None
    return tuple(part.detach().numpy().astype(np.float64) for part in (task.before.weight, task.before.bias))  # type: ignore[return-value]


def _of_classes(task: Task, classes: Ints) -> Task:
    """Return the task of these classes alone, with the images that are known under one of them."""
    head, codes = _narrowed(task.head, task.codes, classes)
    before = task.before and linear_layer(task.before.weight[classes].detach(), task.before.bias[classes].detach())
    weights = task.weights if head.multiclass else task.weights[:, classes]
    known = head.known(codes)
    return replace(
        task,
        head=head,
        features=task.features if known.all() else task.features[known],
        codes=codes[known],
        weights=weights[known],
        class_weights=task.class_weights[classes],
        before=before,
    )


def _narrowed(head: Head, codes: Codes, classes: Ints) -> tuple[Head, Codes]:
    """Return the head with these classes alone, and its codes; a multi-class label of another class is unknown."""
    narrow = replace(head, classes=tuple(head.classes[index] for index in classes))
    if not head.multiclass:
        return narrow, codes[:, classes]
    numbers = np.full(head.size + 1, -1)  # the last one is that of code -1
    numbers[classes] = np.arange(len(classes))
    return narrow, numbers[codes]


def _fixed_levels(head: Head, codes: Codes) -> Floats:
    """Return the logits (K,) of classes and tags that cannot be learnt."""
    if head.multiclass:
        return np.full(head.size, IMPOSSIBLE, np.float32)
    always = (codes == 1).any(axis=0) & ~(codes == 0).any(axis=0)
    return np.where(always, CONSTANT, -CONSTANT).astype(np.float32)


def _require_labels(head: Head, able: Bools) -> None:
    if able.sum() >= (2 if head.multiclass else 1):
        return
    classes = "one class" if head.multiclass else "no tag that some have and some have not"
    raise DataError(
        f"{head.name}: the labelled training images show {classes}, so there is no head to learn. "
        "Label others, or name the other heads under heads."
    )
