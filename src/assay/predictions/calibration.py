"""Temperature scaling: probabilities that are as sure as they are right (Guo et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit, softmax

from assay.figures.intervals import Floats
from assay.labels.space import Codes, Head

COLDEST, HOTTEST = 0.05, 20.0


def temperature(head: Head, codes: Codes, logits: Floats) -> float:
    """The number to divide the logits (N, K) of a head by for the lowest loss on what is known.

    Between 0.05 and 20; 1 where no temperature is better than another. The loss is convex in
    1 / temperature, so its slope has one root at most.
    """
    known = head.known(codes)
    codes, scores = codes[known], logits[known].astype(np.float64)
    if head.kind == "exclusive":
        scores -= scores.max(axis=1, keepdims=True)  # makes equal logits exactly 0, whose slope is 0 too

    def slope(scale: float) -> float:
        """Of the summed loss of `scale * logits`."""
        if head.kind == "exclusive":
            expected = (softmax(scale * scores, axis=1) * scores).sum()
            return float(expected - scores[np.arange(len(codes)), codes].sum())
        return float(((expit(scale * scores) - codes) * scores)[codes >= 0].sum())

    coldest, hottest = slope(1 / COLDEST), slope(1 / HOTTEST)
    if coldest == hottest:  # so is every slope between: nothing is known, or all logits are the same
        return 1.0
    if coldest <= 0:
        return COLDEST
    if hottest >= 0:
        return HOTTEST
    return float(1 / brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-9))


def at_temperature(thresholds: Floats, temperatures: float | Floats) -> npt.NDArray[np.float32]:
    """The thresholds that decide of logits divided by `temperatures` what `thresholds` decide of them now.

    A threshold of 1 and more gives no tag at any temperature.
    """
    cuts: npt.NDArray[Any] = np.minimum(thresholds.astype(np.float64), 1)
    moved = expit(logit(cuts) / temperatures)
    return np.where(cuts < 1, moved, thresholds).astype(np.float32)
