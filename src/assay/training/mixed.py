"""What was mixed in a fit, by class: found again from the draws, which depend on nothing but their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assay.labels.space import Codes, LabelSpace
from assay.pixels.mix import Mix
from assay.training.order import Order, in_steps, partners
from assay.training.sources import Pictures

ByClass = dict[str, dict[str, dict[str, Any]]]


def mixed_by_class(
    source: Pictures,
    settings: Mix,
    space: LabelSpace,
    codes: Sequence[Codes],
    order: Order,
    *,
    step: int,
    epochs: int,
) -> ByClass:
    """Head -> class -> how often its pictures were shown, how many of these were mixed, and their mean own share.

    `codes` (N,) or (N, K) a head of the source's pictures, `step` the pictures an optimiser step. The own share of a
    class of which nothing was mixed is None. A picture of several tags counts for each of them.
    """
    sums = [np.zeros((3, head.size)) for head in space]  # shown, mixed, own share
    for epoch in range(epochs):
        steps = in_steps(order.rows(epoch), step)
        rows = np.concatenate(steps)
        others = np.concatenate([partners(own, settings.share or 1.0) for own in steps])
        share = source.shares(epoch, rows, settings).astype(np.float64)
        mixed = (others != rows) & (share < 1)
        counted = np.stack([np.ones(len(rows)), mixed, share * mixed])  # (3, shown)
        for place, (head, known) in enumerate(zip(space, codes, strict=True)):
            labels = known[rows % len(known)]
            if head.kind == "exclusive":
                seen = labels >= 0
                sums[place] += [np.bincount(labels[seen], values[seen], minlength=head.size) for values in counted]
            else:
                sums[place] += counted @ (labels == 1)
    return {
        head.name: {
            name: {"shown": int(shown), "mixed": int(number), "own share": float(own / number) if number else None}
            for name, (shown, number, own) in zip(head.classes, total.T, strict=True)
        }
        for head, total in zip(space, sums, strict=True)
    }


def mixed_lines(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The same in a line a head: the classes of which the smallest and the largest share was mixed, and how far."""
    lines = []
    for head, classes in found.items():
        shares = {name: own["mixed"] / own["shown"] for name, own in classes.items() if own["shown"]}
        kept = {name: own["own share"] for name, own in classes.items() if own["mixed"]}
        if not kept:
            lines.append(f"{head}: nothing was mixed")
            continue
        least, most = min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])
        low, high = min(kept, key=lambda name: kept[name]), max(kept, key=lambda name: kept[name])
        lines.append(
            f"{head}: mixed were {100 * shares[least]:.0f} % ({least}) to {100 * shares[most]:.0f} % ({most}) of the "
            f"pictures of a class; of their own they kept {kept[low]:.2f} ({low}) to {kept[high]:.2f} ({high})"
        )
    return lines
