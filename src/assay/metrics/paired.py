"""Metrics of several models on the same images, and their differences.

Two models are compared image by image, so that what makes an image easy or hard for both cancels. With several seeds,
the interval is over seeds and images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from assay.arrays import Bools
from assay.errors import PlanError
from assay.metrics import intervals
from assay.metrics.intervals import Estimate, Metric
from assay.metrics.metrics import HeadScore, estimates, higher_is_better

EXACT_BELOW = 25  # discordant images; from here on the chi-squared distribution is accurate enough


def estimate(scores: Mapping[str, HeadScore], metric: str) -> Estimate:
    """Return a metric of a score: the mean over the heads that have it, or that of one head, `HEAD/accuracy`.

    Raises PlanError for a metric that does not exist, or that these labels do not define.
    """
    higher_is_better(metric)  # raises PlanError where there is no such metric
    head, _, name = metric.rpartition("/")
    measured = estimates({key: score for key, score in scores.items() if head in ("", key)})
    if name not in measured:
        known = ", ".join(measured) or "none"
        raise PlanError(f"{metric}: these validation labels define no such metric. They define: {known}.")
    return measured[name]


def over_seeds(runs: Sequence[Estimate]) -> Metric:
    """Return the mean over seeds with its interval over images and, if there are several, seeds."""
    return intervals.over_runs(list(runs))


def difference(one: Sequence[Estimate], other: Sequence[Estimate]) -> Metric:
    """Return `other` minus `one`, paired by seed and image, with its interval as `over_seeds`.

    Raises ValueError where they cannot be of the same images.
    """
    if [(run.n, run.influence.shape) for run in one] != [(run.n, run.influence.shape) for run in other]:
        raise ValueError("models can be compared on the same images and the same seeds only")
    return intervals.difference(list(zip(one, other, strict=True)))


def gain(before: Sequence[Estimate], after: Sequence[Estimate]) -> Metric:
    """Return how much better `after` is, paired by seed: above 0 is better, also for a loss."""
    change = difference(before, after)
    if higher_is_better(before[0].metric):
        return change
    low, high = (None if limit is None else -limit for limit in (change.high, change.low))
    return replace(change, value=-change.value, low=low, high=high)


def paired(metric: str) -> bool:
    """Return whether differences of a metric have an interval; those of the calibration error have none."""
    return metric.rpartition("/")[2] != "calibration_error"


def gains(before: Mapping[str, HeadScore], after: Mapping[str, HeadScore]) -> dict[str, Metric]:
    """Return how much better each metric over all heads is after than before: above 0 is better, also for a loss.

    Metrics that are not `paired` are left out.
    """
    was, now = estimates(before), estimates(after)
    return {name: gain([was[name]], [now[name]]) for name in now if name in was and paired(name)}


def verdict(change: Metric, metric: str) -> str:
    """Return what the interval of a change supports: better, worse, or not told apart."""
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return "not told apart"
    return "better" if (change.value > 0) == higher_is_better(metric) else "worse"


@dataclass(frozen=True)
class McNemar:
    """Images on which only one of two models is right, and the p-value if neither is better."""

    only_first: int
    only_second: int
    p: float
    exact: bool

    def to_json(self) -> dict[str, float | int | bool]:
        counts = {"only first right": self.only_first, "only second right": self.only_second}
        return {**counts, "p": self.p, "exact": self.exact}


def mcnemar(first: Bools, second: Bools) -> McNemar:
    """Return McNemar's test (McNemar 1947, Psychometrika 12) of the images (N,) that two models predict correctly.

    Only discordant images count, on which one alone is right. For fewer than 25 of them the p-value is exact, of a
    two-sided binomial test; for more it is that of chi-squared with one degree of freedom and the
    correction for continuity (Edwards 1948, Psychometrika 13), as Dietterich (1998, section 3.1) uses it.
    """
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = one + other
    if discordant < EXACT_BELOW:
        tail = sum(math.comb(discordant, hits) for hits in range(min(one, other) + 1)) / 2**discordant
        return McNemar(one, other, min(1.0, 2 * tail), exact=True)
    statistic = max(0, abs(one - other) - 1) ** 2 / discordant
    return McNemar(one, other, math.erfc(math.sqrt(statistic / 2)), exact=False)
