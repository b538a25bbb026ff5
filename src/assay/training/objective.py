"""What training follows downhill: the losses of all heads, of which some labels are known, as one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.labels.space import LabelSpace
from assay.training.losses import HeadLoss


@dataclass(frozen=True)
class Targets:
    """What is known of some images, head by head."""

    targets: list[Tensor]  # a head: (B, K)
    masks: list[Tensor]  # a head: (B,) multi-class, (B, K) multi-label
    weights: Tensor  # (B, H)

    def shared(self, share: Tensor) -> Targets:
        """The same, counting for a share (B,) only: that of these images in mixed ones."""
        return replace(self, weights=self.weights * share[:, None])

    def to(self, device: torch.device | str) -> Targets:
        """The same on a device."""
        return Targets(
            [target.to(device) for target in self.targets],
            [mask.to(device) for mask in self.masks],
            self.weights.to(device),
        )


class Sums(NamedTuple):
    """The loss to follow downhill, and what the exact mean of an epoch is made of: sums and counts (H,)."""

    loss: Tensor
    sums: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Objective:
    """The sum over heads of each head's factor times the weighted mean of its loss over what is known.

    A mixed image has several truths, each of which counts for its share: with an image's share lambda
    the loss is lambda * mask_a * loss_a + (1 - lambda) * mask_b * loss_b (Zhang et al. 2018, with masks),
    so that a label known of one of the two images alone still counts.
    """

    space: LabelSpace
    losses: tuple[HeadLoss, ...]
    factors: tuple[float, ...] | None = None  # one a head; all 1 where not given

    def __call__(self, logits: Tensor, known: Sequence[Targets], over: Tensor | None = None) -> Sums:
        """Of logits (B, W) and their truths, the loss with its parts.

        `over` (H,) replaces the counts of this batch as divisors, so that the parts of a batch, accumulated
        or on several machines, add up to the loss of the whole. A head of which nothing is known adds 0.
        """
        logits = logits.float()
        totals = [self._sums(logits, truth) for truth in known]
        summed, counted = torch.stack(totals).sum(dim=0), counts(known)
        return Sums(self.mean(summed, counted if over is None else over), summed.detach(), counted)

    def mean(self, sums: Tensor, counts: Tensor) -> Tensor:
        """The loss, a scalar, of sums (H,) over as much as counts (H,) tell."""
        means = sums / torch.where(counts > 0, counts, 1.0)
        return means.sum() if self.factors is None else (means * means.new_tensor(self.factors)).sum()

    def _sums(self, logits: Tensor, truth: Targets) -> Tensor:
        totals = []
        for i, (columns, loss) in enumerate(zip(self.space.slices, self.losses, strict=True)):
            cells = loss(logits[:, columns], truth.targets[i], truth.masks[i])
            totals.append((cells * _spread(truth.weights[:, i], truth.masks[i])).sum())
        return torch.stack(totals)


def dense(space: LabelSpace, codes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Targets float32 (B, K) and masks (B,) or (B, K) of codes, one a head; unknown cells are 0."""
    targets, masks = [], []
    for head, code in zip(space, codes, strict=True):
        mask = code >= 0
        if head.kind == "multiclass":
            target = F.one_hot(code.clamp_min(0), head.size).float() * mask[:, None]
        else:
            target = code.clamp_min(0).float()
        targets.append(target)
        masks.append(mask)
    return targets, masks


def counts(known: Sequence[Targets]) -> Tensor:
    """The summed weight (H,) of what is known: of images (multi-class), or of images and classes."""
    of_truths = [
        torch.stack([(_spread(truth.weights[:, i], mask) * mask).sum() for i, mask in enumerate(truth.masks)])
        for truth in known
    ]
    return torch.stack(of_truths).sum(dim=0)


def _spread(weight: Tensor, mask: Tensor) -> Tensor:
    """Weights (B,) in the shape of a mask that they can be multiplied with."""
    return weight if mask.ndim == 1 else weight[:, None]
