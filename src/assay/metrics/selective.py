"""Prediction sets and answers that are withheld: coverage, size, and risk against coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from assay.arrays import Bools, Doubles, Reals
from assay.labels.space import Codes, Head
from assay.metrics.intervals import Metric, wilson


def set_coverage(head: Head, codes: Codes, sets: Bools) -> Metric | None:
    """Return the mean share of an image's classes that its set (N, K) holds, over images known to have one.

    None where no image is. The interval is Wilson's, too wide where images have several tags.
    """
    present = head.present(codes)
    count = present.sum(axis=1)
    some = count > 0
    if not some.any():
        return None
    held = (present & sets).sum(axis=1)[some] / count[some]
    low, high = wilson(float(held.sum()), len(held))
    return Metric(float(held.mean()), len(held), low, high)


def certainty(head: Head, codes: Codes, probabilities: Reals, thresholds: Reals | float = 0.5) -> tuple[Doubles, Bools]:
    """Return how probable the decision of each known cell (C,) is, and whether it is wrong."""
    known = head.columns(codes >= 0)
    decided = head.decide(probabilities, thresholds)
    top = probabilities.max(axis=1) if head.multiclass else np.where(decided == 1, probabilities, 1 - probabilities)
    return head.columns(top)[known].astype(np.float64), head.columns(decided != codes)[known]


@dataclass(frozen=True, eq=False)
class RiskCurve:
    """Share of wrong answers among the surest ones: `risk` (G,) where the share `coverage` (G,) is answered.

    area: the mean risk over all shares (AURC, Geifman et al. 2019). Answers of one certainty are taken together.
    """

    coverage: Doubles
    risk: Doubles
    area: float
    n: int

    def coverage_at(self, risk: float) -> float:
        """Return the largest share that can be answered at no more than this risk; 0 where none can."""
        good = self.coverage[self.risk <= risk]
        return float(good.max()) if len(good) else 0.0


def risk_curve(sure: Reals, wrong: Bools) -> RiskCurve:
    """Return the curve of answers (C,), at least one, from the surest down."""
    order = np.argsort(-sure, kind="stable")
    falling = sure[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    coverage = (ends + 1) / len(sure)
    risk = np.cumsum(wrong[order])[ends] / (ends + 1)
    steps = np.diff(np.append(0.0, coverage))
    return RiskCurve(coverage, risk, float((steps * risk).sum()), len(sure))
