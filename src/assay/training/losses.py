"""Losses of single heads.

A loss takes the logits (B, K) and dense targets (B, K) of one head, and a mask of the known labels: (B,) for
a multi-class head, (B, K) for a multi-label one. It returns a loss for each cell, in the mask's shape, exactly 0
and without any gradient where the mask is false.

Targets may be soft: a loss is then its expectation over labels drawn with these probabilities. Mean squared error
takes the square to the target itself, which is less by an amount that does not depend on the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from assay.errors import PlanError
from assay.labels.space import LabelSpace
from assay.settings import Choice, by_name, parse_named

HeadLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
Smoothing = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="Label smoothing: the share of a target that is spread evenly over the classes.",
    ),
]
Spread = Annotated[
    Literal["even", "half"],
    Field(
        description="What smoothing e adds to each of K classes: e / K, or e / 2 as for a sigmoid, so that a target "
        "sums to 1 + e (K / 2 - 1)."
    ),
]
Mean = Annotated[
    Literal["images", "weights"],
    Field(
        description="What the loss under class weights is divided by: the images, or their summed weights as torch's "
        "CrossEntropyLoss does; smoothing then counts each class by its own weight."
    ),
]


Gamma = Annotated[
    float, Field(ge=0, description="Focus: how much less a cell counts the more probable its true label is.")
]


class ByHead(Choice):
    """Cross-entropy for multi-class heads, binary cross-entropy for multi-label ones."""

    kind: Literal["by_head"] = "by_head"
    smoothing: Smoothing = 0.0
    spread: Spread = "even"
    mean: Mean = "images"


class CrossEntropy(Choice):
    """Cross-entropy of a softmax; for multi-class heads."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    smoothing: Smoothing = 0.0
    spread: Spread = "even"
    mean: Mean = "images"


class BinaryCrossEntropy(Choice):
    """Cross-entropy of a sigmoid a class; for multi-label heads, or multi-class ones as one against all."""

    kind: Literal["binary_cross_entropy"] = "binary_cross_entropy"
    smoothing: Smoothing = 0.0


class MeanSquaredError(Choice):
    """Squared distance of probabilities and targets; for multi-class heads its sum over classes (Brier score)."""

    kind: Literal["mean_squared_error"] = "mean_squared_error"


class Focal(Choice):
    """Cross-entropy that counts confident, correct predictions less (Lin et al. 2017)."""

    kind: Literal["focal"] = "focal"
    gamma: Gamma = 2.0
    alpha: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Weight of positives, 1 - alpha that of negatives; for multi-label heads.",
    )


class Asymmetric(Choice):
    """Focal loss with a focus for positives and one for negatives, which cost nothing below a margin (ASL)."""

    kind: Literal["asymmetric"] = "asymmetric"
    gamma_negative: Gamma = 4.0
    gamma_positive: Gamma = 1.0
    shift: float = Field(0.05, ge=0, lt=1, description="Probability up to which a negative costs nothing.")


class GeneralisedCrossEntropy(Choice):
    """Between cross-entropy (q near 0) and 1 - p (q = 1), which wrong labels move less (Zhang & Sabuncu 2018)."""

    kind: Literal["generalised_cross_entropy"] = "generalised_cross_entropy"
    q: float = Field(0.7, gt=0, le=1, description="The higher, the less a label far from the prediction counts.")
    smoothing: Smoothing = 0.0


AnyLoss = ByHead | CrossEntropy | BinaryCrossEntropy | MeanSquaredError | Focal | Asymmetric | GeneralisedCrossEntropy


def _by_name_or_head(value: object) -> object:
    """Return a mapping with a kind: `loss: {smoothing: 0.1}` is of kind `by_head`."""
    value = parse_named(value)
    return {"kind": "by_head", **value} if isinstance(value, dict) else value


LossSettings = Annotated[AnyLoss, Field(discriminator="kind"), by_name(AnyLoss, _by_name_or_head)]
"""A loss in a plan: its name, or a mapping; without `kind` each head takes its own."""


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    smoothing: float = 0.0,
    spread: Literal["even", "half"] = "even",
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the cross-entropy (B,) between a softmax and targets that sum to 1.

    With `class_weights` (K,) every class counts by its own, smoothed part included, over the weight of the target:
    times that weight, and over the summed weights, it is torch's weighted mean.
    """
    logits, targets = _known(logits, mask), _known(targets, mask)
    added = smoothing / (2 if spread == "half" else targets.shape[1])
    weights = None if class_weights is None else class_weights.to(logits)
    cells = F.cross_entropy(logits, targets * (1 - smoothing) + added, weight=weights, reduction="none")
    return (cells if weights is None else cells / (targets @ weights).masked_fill(~mask, 1.0)) * mask


def binary_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy (B, K) of sigmoid and target; its mean over classes (B,) for a multi-class head."""
    logits, targets = _known(logits, mask), _known(targets, mask)
    smoothed = targets * (1 - smoothing) + smoothing / 2
    cells = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
    return (cells.mean(dim=1) if mask.ndim == 1 else cells) * mask


def mean_squared_error(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the squared distance (B, K) of sigmoid and target; of softmax and targets, summed over classes, (B,).

    The sum over classes is the Brier score (Brier 1950): it lies between 0 and 2, whatever their number.
    """
    logits, targets = _known(logits, mask), _known(targets, mask)
    if mask.ndim == 1:
        return (logits.softmax(dim=1) - targets).square().sum(dim=1) * mask
    return (logits.sigmoid() - targets).square() * mask


def focal(logits: Tensor, targets: Tensor, mask: Tensor, *, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Return cross-entropy times (1 - p) ** gamma, p the probability of the true label (Lin et al. 2017).

    (B,) over a softmax; (B, K) over sigmoids, where `alpha` weighs positives and 1 - alpha negatives.
    """

    def loss(log_p: Tensor) -> Tensor:
        return -_power(-log_p.expm1(), gamma) * log_p

    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    return _expected(loss, logits, targets, mask, positive=positive, negative=negative)


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    shift: float = 0.05,
) -> Tensor:
    """Return the asymmetric loss (B, K) (Ridnik et al. 2021): focal, with p = max(p - shift, 0) for negatives."""
    logits, targets = _known(logits, mask), _known(targets, mask)
    log_p, log_rest = F.logsigmoid(logits), F.logsigmoid(-logits)
    # log(1 - max(p - shift, 0)) = min(log(1 - p + shift), 0), in logarithms so that no p near 1 is lost
    log_rest = torch.logaddexp(log_rest, torch.full_like(log_rest, shift).log()).clamp_max(0)
    positive = _power(-log_p.expm1(), gamma_positive) * log_p
    negative = _power(-log_rest.expm1(), gamma_negative) * log_rest
    return -(targets * positive + (1 - targets) * negative) * mask


def generalised_cross_entropy(
    logits: Tensor, targets: Tensor, mask: Tensor, *, q: float = 0.7, smoothing: float = 0.0
) -> Tensor:
    """Return (1 - p ** q) / q, p the probability of the true label: (B,) of a softmax, (B, K) of sigmoids.

    Zhang & Sabuncu 2018; 1 - p at q = 1, cross-entropy as q goes to 0.
    """
    smoothed = targets * (1 - smoothing) + smoothing / (targets.shape[1] if mask.ndim == 1 else 2)
    return _expected(lambda log_p: -(q * log_p).expm1() / q, logits, smoothed, mask)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mean_squared_error": mean_squared_error,
    "focal": focal,
    "asymmetric": asymmetric,
    "generalised_cross_entropy": generalised_cross_entropy,
}
"""Kind -> (logits, targets, mask, *, options of its settings) -> loss of each cell."""

ONLY_FOR = {"cross_entropy": "multiclass", "asymmetric": "multilabel"}
"""Loss -> the one kind of head it is defined for."""


def head_losses(
    space: LabelSpace, settings: AnyLoss, *, class_weights: Sequence[Tensor | None] | None = None
) -> tuple[HeadLoss, ...]:
    """Return one loss a head, with `class_weights` (K,) for each head, or None for a head without.

    The weight of the true class multiplies the whole loss of an image under a multi-class head, its smoothed
    part included; under a multi-label head it multiplies the cells of positives, and negatives count 1. Means
    are taken over images or cells; with `mean: weights` the loss of a multi-class head is left for its images to be
    weighted (`LabelTensors`). Raises PlanError where a head cannot take the loss.
    """
    options = settings.model_dump(exclude={"kind", "mean"})
    weighted_mean = divides_by_weights(settings)
    losses: list[HeadLoss] = []
    for head, weights in zip(space, class_weights or [None] * len(space), strict=True):
        kind = head.loss_kind if settings.kind == "by_head" else settings.kind
        if ONLY_FOR.get(kind, head.kind) != head.kind:
            raise PlanError(
                f"loss: {kind} is for {ONLY_FOR[kind]} heads, and head {head.name!r} is {head.kind}. "
                "Leave the kind out, and each head takes its own."
            )
        if head.multiclass and options.get("alpha") is not None:
            raise PlanError(
                f"loss: alpha weighs positives against negatives, and head {head.name!r} is multi-class: it has none. "
                "Leave alpha out, or weigh the classes."
            )
        taken = options if kind != "binary_cross_entropy" else {"smoothing": options["smoothing"]}  # e / 2 either way
        loss: HeadLoss = partial(LOSSES[kind], **taken)
        if weights is None:
            losses.append(loss)
        elif weighted_mean and head.multiclass:
            losses.append(partial(LOSSES[kind], **taken, class_weights=weights))
        else:
            losses.append(partial(_weighted, loss=loss, class_weights=weights))
    return tuple(losses)


def divides_by_weights(settings: AnyLoss) -> bool:
    """Return whether the loss of a multi-class head is a mean over the class weights of its images."""
    return isinstance(settings, ByHead | CrossEntropy) and settings.mean == "weights"


def most_probable(settings: AnyLoss, values: int) -> float:
    """Return the largest probability that smoothed targets of so many values teach."""
    if not isinstance(settings, ByHead | CrossEntropy):
        return 1.0
    added = settings.smoothing / (2 if settings.spread == "half" else values)
    kept = 1 - settings.smoothing + added
    return kept / (kept + (values - 1) * added)


def _weighted(logits: Tensor, targets: Tensor, mask: Tensor, *, loss: HeadLoss, class_weights: Tensor) -> Tensor:
    """Return a loss times the weight of the target; of soft targets, the mean of the weights by target."""
    targets = _known(targets, mask)
    weights = class_weights.to(targets)
    factor = (targets * weights).sum(dim=1) if mask.ndim == 1 else targets * weights + 1 - targets
    return loss(logits, targets, mask) * factor


def _expected(
    loss: Callable[[Tensor], Tensor],
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    positive: float = 1.0,
    negative: float = 1.0,
) -> Tensor:
    """Return the expectation over targets of a loss of log p, p the probability of the true label.

    (B,) of a softmax; (B, K) of sigmoids, with the weights of positives and of negatives.
    """
    logits, targets = _known(logits, mask), _known(targets, mask)
    if mask.ndim == 1:
        return (targets * loss(F.log_softmax(logits, dim=1))).sum(dim=1) * mask
    right, wrong = loss(F.logsigmoid(logits)), loss(F.logsigmoid(-logits))
    return (positive * targets * right + negative * (1 - targets) * wrong) * mask


def _power(base: Tensor, exponent: float) -> Tensor:
    """Return a power of numbers from 0 to 1, held off 0, where a root has no finite slope."""
    return base.clamp_min(1e-12) ** exponent


def _known(values: Tensor, mask: Tensor) -> Tensor:
    """Return values in float32, 0 where unknown: none of those, not even a NaN, reaches a loss or a gradient."""
    return values.float().masked_fill(~(mask[:, None] if mask.ndim == 1 else mask), 0.0)
