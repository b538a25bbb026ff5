"""What a network said of the training pictures in an epoch, each counted once however often it was shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.training.order import Rows


@dataclass(frozen=True)
class Answered:
    """By picture, the sum (N, W) of its logits in this epoch so far, and how many were added (N,)."""

    sums: Tensor
    times: Tensor

    @staticmethod
    def nothing(count: int, width: int) -> Answered:
        return Answered(torch.zeros(count, width), torch.zeros(count))

    def add(self, rows: Rows, logits: Tensor) -> None:
        """Take in logits (B, W) of pictures, of which one may come twice."""
        pictures = torch.from_numpy(rows % len(self.times))
        self.sums.index_add_(0, pictures, logits.detach().float().cpu())
        self.times.index_add_(0, pictures, torch.ones(len(rows)))

    def means(self, total: Callable[[Tensor], Tensor] = lambda own: own) -> tuple[Rows, Tensor]:
        """The pictures that were shown (M,), and the mean (M, W) of what was said of each.

        `total` adds up what several processes hold.
        """
        sums, times = total(self.sums.clone()), total(self.times.clone())
        shown = times > 0
        return shown.nonzero()[:, 0].numpy(), sums[shown] / times[shown, None]

    def forget(self) -> None:
        """Begin anew."""
        self.sums.zero_()
        self.times.zero_()
