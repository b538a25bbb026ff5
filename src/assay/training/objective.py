"""What training follows downhill: the losses of all heads, of which some labels are known, as one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.labels.space import LabelSpace
from assay.training.losses import HeadLoss


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


def _spread(weight: Tensor, mask: Tensor) -> Tensor:
    """Weights (B,) in the shape of a mask that they can be multiplied with."""
    return weight if mask.ndim == 1 else weight[:, None]
