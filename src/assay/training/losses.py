"""Losses of single heads, and their sum over all heads of which something is known.

A loss takes the logits (B, K) and dense targets (B, K) of one head, and a mask of what is known: (B,) for
an exclusive head, (B, K) for an independent one. It returns a loss a cell, in the mask's shape, exactly 0
and without any gradient where the mask is false.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor

from assay.errors import PlanError
from assay.labels.space import LabelSpace
from assay.training.choices import Choice, by_name

HeadLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
Smoothing = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="Label smoothing: the share of a target that is spread evenly over the classes.",
    ),
]


class ByHead(Choice):
    """Cross-entropy for exclusive heads, binary cross-entropy for independent ones."""

    kind: Literal["by_head"] = "by_head"
    smoothing: Smoothing = 0.0


class CrossEntropy(Choice):
    """Cross-entropy of a softmax; for exclusive heads."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    smoothing: Smoothing = 0.0


class BinaryCrossEntropy(Choice):
    """Cross-entropy of a sigmoid a class; for independent heads, or exclusive ones as one against all."""

    kind: Literal["binary_cross_entropy"] = "binary_cross_entropy"
    smoothing: Smoothing = 0.0


AnyLoss = ByHead | CrossEntropy | BinaryCrossEntropy
LossName = Literal["by_head", "cross_entropy", "binary_cross_entropy"]


def _by_name_or_head(value: object) -> object:
    """`loss: {smoothing: 0.1}` smooths whatever loss each head takes."""
    value = by_name(value)
    return {"kind": "by_head", **value} if isinstance(value, dict) else value


LossSettings = Annotated[
    AnyLoss,
    Field(discriminator="kind"),
    BeforeValidator(_by_name_or_head, json_schema_input_type=LossName | AnyLoss),
]
"""A loss in a plan: its name, or a mapping; without `kind` each head takes its own."""


def cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy a picture (B,) between a softmax and targets that sum to 1."""
    logits, targets = _known(logits, mask), _known(targets, mask)
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing) * mask


def binary_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of sigmoid and target, a cell (B, K); its mean (B,) where the mask is a picture's."""
    logits, targets = _known(logits, mask), _known(targets, mask)
    smoothed = targets * (1 - smoothing) + smoothing / 2
    cells = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
    return (cells.mean(dim=1) if mask.ndim == 1 else cells) * mask


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
}
"""Kind -> (logits, targets, mask, *, options of its settings) -> a loss a cell."""

LOSS_OF_KIND = {"exclusive": "cross_entropy", "independent": "binary_cross_entropy"}
"""What a head takes where the plan names no loss."""


def head_losses(space: LabelSpace, settings: AnyLoss) -> tuple[HeadLoss, ...]:
    """One loss a head. Raises PlanError where a head cannot take the loss that was asked for."""
    options = settings.model_dump(exclude={"kind"})
    found = []
    for head in space:
        kind = LOSS_OF_KIND[head.kind] if settings.kind == "by_head" else settings.kind
        if kind == "cross_entropy" and head.kind == "independent":
            raise PlanError(
                f"loss: cross_entropy is for exclusive heads, and head {head.name!r} is independent. "
                "Leave the kind out, and each head takes its own."
            )
        found.append(partial(LOSSES[kind], **options))
    return tuple(found)


def dense(space: LabelSpace, codes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Targets float32 (B, K) and masks (B,) or (B, K) of codes, one a head; unknown cells are 0."""
    targets, masks = [], []
    for head, code in zip(space, codes, strict=True):
        mask = code >= 0
        if head.kind == "exclusive":
            target = F.one_hot(code.clamp_min(0), head.size).float() * mask[:, None]
        else:
            target = code.clamp_min(0).float()
        targets.append(target)
        masks.append(mask)
    return targets, masks


class Sums(NamedTuple):
    """The loss to follow downhill, and what the exact mean of an epoch is made of: sums and counts (H,)."""

    loss: Tensor
    sums: Tensor
    counts: Tensor


def counts(space: LabelSpace, masks: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The summed weight (H,) of what is known: of pictures (exclusive), or of pictures and classes."""
    spread = [_spread(weights[:, i], mask) for i, (_, mask) in enumerate(zip(space, masks, strict=True))]
    return torch.stack([(weight * mask).sum() for weight, mask in zip(spread, masks, strict=True)])


def sums(
    space: LabelSpace,
    logits: Tensor,
    targets: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Tensor,
    *,
    losses: Sequence[HeadLoss],
    over: Tensor | None = None,
) -> Sums:
    """The sum over heads of the weighted mean over known cells, with its parts.

    logits (B, W), weights (B, H). `over` (H,) replaces the counts of this batch as divisors, so that the
    parts of a batch, accumulated or on several machines, add up to the loss of the whole. A head of which
    nothing is known adds 0.
    """
    logits = logits.float()
    totals = []
    for i, (columns, loss) in enumerate(zip(space.slices, losses, strict=True)):
        cells = loss(logits[:, columns], targets[i], masks[i])
        totals.append((cells * _spread(weights[:, i], masks[i])).sum())
    summed, counted = torch.stack(totals), counts(space, masks, weights)
    divisors = counted if over is None else over
    mean = (summed / torch.where(divisors > 0, divisors, 1.0)).sum()
    return Sums(mean, summed.detach(), counted)


def total_loss(
    space: LabelSpace,
    logits: Tensor,
    targets: Sequence[Tensor],
    masks: Sequence[Tensor],
    weights: Tensor,
    *,
    losses: Sequence[HeadLoss],
) -> Tensor:
    """The loss of a batch, a scalar: see `sums`."""
    return sums(space, logits, targets, masks, weights, losses=losses).loss


def _known(values: Tensor, mask: Tensor) -> Tensor:
    """Values in float32, 0 where unknown: none of those, not even a NaN, reaches a loss or a gradient."""
    return values.float().masked_fill(~(mask[:, None] if mask.ndim == 1 else mask), 0.0)


def _spread(weight: Tensor, mask: Tensor) -> Tensor:
    """Weights (B,) in the shape of a mask that they can be multiplied with."""
    return weight if mask.ndim == 1 else weight[:, None]
