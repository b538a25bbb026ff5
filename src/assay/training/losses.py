"""Losses of single heads.

A loss takes the logits (B, K) and dense targets (B, K) of one head, and a mask of what is known: (B,) for
an exclusive head, (B, K) for an independent one. It returns a loss a cell, in the mask's shape, exactly 0
and without any gradient where the mask is false.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

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


def _known(values: Tensor, mask: Tensor) -> Tensor:
    """Values in float32, 0 where unknown: none of those, not even a NaN, reaches a loss or a gradient."""
    return values.float().masked_fill(~(mask[:, None] if mask.ndim == 1 else mask), 0.0)
