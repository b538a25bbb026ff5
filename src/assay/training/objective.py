"""The training objective: the losses of all heads over the known labels, as one number."""

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
    """Targets of some images with masks of the known ones and weights, by head."""

    targets: list[Tensor]  # a head: (B, K)
    masks: list[Tensor]  # a head: (B,) multi-class, (B, K) multi-label
    weights: Tensor  # (B, H)

    def shared(self, share: Tensor) -> Targets:
        """Return the targets with weights times a share (B,): that of these images in mixed ones."""
        return replace(self, weights=self.weights * share[:, None])

    def to(self, device: torch.device | str) -> Targets:
        """Return the targets on a device."""
        return Targets(
            [target.to(device) for target in self.targets],
            [mask.to(device) for mask in self.masks],
            self.weights.to(device),
        )


class Sums(NamedTuple):
    """The loss to minimise, and the terms of the mean over an epoch: sums and counts (H,)."""

    loss: Tensor
    sums: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Objective:
    """The sum over heads of each head's factor times the weighted mean of its loss over the known labels.

    A mixed image has two targets, each of which counts for its share: with an image's share lambda
    the loss is lambda * mask_a * loss_a + (1 - lambda) * mask_b * loss_b (Zhang et al. 2018, with masks),
    so that a label known of only one of the two images still counts.
    """

    space: LabelSpace
    losses: tuple[HeadLoss, ...]
    factors: tuple[float, ...] | None = None  # one a head; all 1 where not given
    offsets: Tensor | None = None  # (W,), added to the logits

    def __call__(self, logits: Tensor, known: Sequence[Targets], over: Tensor | None = None) -> Sums:
        """Return the loss of logits (B, W) with its parts; `known` are their targets, in shares that sum to 1.

        `over` (H,) replaces the counts of this batch as divisors, so that the parts of a batch, accumulated
        or on several machines, add up to the loss of the whole. A head without a known label adds 0.
        """
        logits = logits.float()
        if self.offsets is not None:
            logits = logits + self.offsets.to(logits.device)
        totals = [self._sums(logits, targets) for targets in known]
        summed, counted = torch.stack(totals).sum(dim=0), counts(known)
        return Sums(self.mean(summed, counted if over is None else over), summed.detach(), counted)

    def mean(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Return the loss, a scalar, of sums (H,) over counts (H,)."""
        means = sums / torch.where(counts > 0, counts, 1.0)
        return means.sum() if self.factors is None else (means * means.new_tensor(self.factors)).sum()

    def _sums(self, logits: Tensor, known: Targets) -> Tensor:
        totals = []
        for i, (columns, loss) in enumerate(zip(self.space.slices, self.losses, strict=True)):
            cells = loss(logits[:, columns], known.targets[i], known.masks[i])
            totals.append((cells * _spread(known.weights[:, i], known.masks[i])).sum())
        return torch.stack(totals)


def dense(space: LabelSpace, codes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return targets float32 (B, K) and masks, (B,) or (B, K), of codes, one a head; unknown cells are 0."""
    targets, masks = [], []
    for head, code in zip(space, codes, strict=True):
        mask = code >= 0
        label = code.clamp_min(0)
        targets.append(F.one_hot(label, head.size).float() * mask[:, None] if head.multiclass else label.float())
        masks.append(mask)
    return targets, masks


def counts(known: Sequence[Targets]) -> Tensor:
    """Return the summed weight (H,) of the known cells: images (multi-class), or images times classes."""
    totals = [
        torch.stack([(_spread(one.weights[:, i], mask) * mask).sum() for i, mask in enumerate(one.masks)])
        for one in known
    ]
    return torch.stack(totals).sum(dim=0)


def _spread(weight: Tensor, mask: Tensor) -> Tensor:
    """Return weights (B,), shaped so that they broadcast over a mask."""
    return weight if mask.ndim == 1 else weight[:, None]
