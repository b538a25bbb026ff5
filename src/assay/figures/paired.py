"""How much better one model's answers are than another's, for the same pictures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from assay.figures.intervals import Figure, with_interval
from assay.figures.metrics import HeadScore, higher_is_better, overall


def gains(before: Mapping[str, HeadScore], after: Mapping[str, HeadScore]) -> dict[str, Figure]:
    """By how much each figure over all heads is better after than before: above 0 is better, also of a loss.

    Both are `score`s of the same pictures, which draw the same resamples, so that the interval is paired. The
    calibration error is left out: its resamples are moved, each by its own amount.
    """
    was, now = overall(before), overall(after)
    found = {}
    for name in now:
        if name in was and name != "calibration_error":
            sign = 1 if higher_is_better(name) else -1
            resampled = _resampled(after, name) - _resampled(before, name)
            found[name] = with_interval(sign * (now[name].value - was[name].value), now[name].n, sign * resampled)
    return found


def _resampled(scores: Mapping[str, HeadScore], name: str) -> np.ndarray:
    """The mean over heads of a figure, of every resample (B,)."""
    measured: np.ndarray = np.mean([score.resampled[name] for score in scores.values() if score.n], axis=0)
    return measured
