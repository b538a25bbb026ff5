"""95 % intervals: from a value and its variance to two limits.

METHODS lists the interval of each metric. Every interval contains the value, stays in the range of its metric and uses
no random numbers. `benchmarks/coverage.py` measures how often each contains the true value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from assay.arrays import Bools, Reals
from assay.messages import limits_text

Limits = tuple[float, float]

SMALL_N = 30  # images: of fewer an interval is too wide to judge a model by
TAIL = 0.025  # on each side
Z = 1.959963984540054  # of the normal distribution, for that tail
ROUNDING = 1e-12  # a variance below it is one of rounding errors


@dataclass(frozen=True)
class Metric:
    """A number, the images it was measured on, and its 95 % interval (None where there is none)."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f}{self.limits('.3f')}"

    @property
    def beyond_chance(self) -> bool:
        """Of a change: whether its interval lies above 0."""
        return self.low is not None and self.low > 0

    def limits(self, form: str = ".4f") -> str:
        """Return the interval as text, empty where there is none."""
        return limits_text(self.low, self.high, form)

    def percent(self) -> str:
        """Return a share as text: `91.7 % [64.6, 98.5]`."""
        low, high = (None if bound is None else 100 * bound for bound in (self.low, self.high))
        return f"{100 * self.value:.1f} %{limits_text(low, high, '.1f')}"

    def to_json(self) -> dict[str, float | int | None]:
        return {"value": self.value, "n": self.n, "low": self.low, "high": self.high}


@dataclass(frozen=True, eq=False)
class Estimate:
    """A metric with the terms of its interval, of its mean over heads or seeds, and of its differences.

    influence: (N,) first-order change of the value by each image; the squares sum to its variance.
    floor: the variance that these miss in a sample without a mistake, or with nothing but mistakes.
    smoothed: of a share, the value with four more images a class, so that it is neither 0 nor 1.
    step: the squared change of the value when the prediction of one image changes, the least variance of a difference.
    fixed: the limits themselves, where they do not follow from a variance.
    digest: a digest of the predictions; equal predictions have equal metrics, without any interval.
    """

    metric: str
    value: float
    n: int
    influence: Reals
    floor: float = 0.0
    smoothed: float = 0.5
    step: float = 0.0
    fixed: Limits | None = None
    digest: bytes = b""

    @property
    def variance(self) -> float:
        return float(self.influence @ self.influence) + self.floor


def wilson(hits: float, n: float, *, quantile: float = Z) -> Limits:
    """Return the 95 % interval of a share of `n` (Wilson 1927), (0, 1) for n = 0; `n` need not be whole."""
    square = quantile * quantile
    middle = (hits + square / 2) / (n + square)
    spread = hits * max(0.0, n - hits) / n if n > 0 else 0.0
    half = quantile * np.sqrt(spread + square / 4) / (n + square)
    share = hits / n if n > 0 else 0.5
    # rounding must not leave the share outside, nor the limits outside of 0 and 1
    return float(min(max(0.0, middle - half), share)), float(max(min(1.0, middle + half), share))


def share(right: Bools) -> Metric | None:
    """Return how many of some independent predictions are right, None of none."""
    hits, n = int(right.sum()), right.size
    return Metric(hits / n, n, *wilson(hits, n)) if n else None


def half_width(values: Reals) -> float:
    """Return how far the limits of the mean of values of images (n,), two or more, are from it."""
    return Z * float(values.std(ddof=1) / np.sqrt(len(values)))


def wilson_each(hits: Reals, n: Reals) -> tuple[list[float | None], list[float | None]]:
    """Return the lower and the upper limits of several shares (K,), None where n is 0."""
    limits = [wilson(float(hit), float(count)) if count else (None, None) for hit, count in zip(hits, n, strict=True)]
    return [low for low, _ in limits], [high for _, high in limits]


def of_share(estimate: Estimate, variance: float, quantile: float) -> Limits:
    """Return Wilson's interval at the number of images that would give a plain share this variance.

    For a plain share that is N. Images of a rare class weigh more in a mean over classes, and cells of one image are
    correlated: both make it smaller (the effective sample size of survey statistics, Korn & Graubard 1998). Where all
    images have the same part of their tags wrong, which says nothing of the variance, it is N.
    """
    effective = estimate.smoothed * (1 - estimate.smoothed) / variance if variance > ROUNDING else estimate.n
    return wilson(estimate.value * effective, effective, quantile=quantile)


def of_loss(estimate: Estimate, variance: float, quantile: float) -> Limits | None:
    """Return the limits of all m > 0 with (value - m)² <= quantile² variance m / value; None for one image.

    As of a share near 0 the variance grows with the mean: losses are skewed, and a mean that few large ones would have
    raised may not hold them.
    """
    if estimate.n < 2:
        return None
    if not variance:
        return estimate.value, estimate.value
    skew = quantile**2 * variance / estimate.value / 2
    half = float(np.sqrt(quantile**2 * variance + skew**2))
    return max(0.0, estimate.value + skew - half), estimate.value + skew + half


def of_limits(estimate: Estimate, variance: float, quantile: float) -> Limits | None:
    """Return the limits that were computed with the value."""
    return estimate.fixed


Method = Callable[[Estimate, float, float], Limits | None]

METHODS: dict[str, Method] = {
    "accuracy": of_share,
    "balanced_accuracy": of_share,
    "macro_f1": of_share,
    "micro_f1": of_share,
    "top_5": of_share,
    "mean_average_precision": of_share,
    "subset_accuracy": of_share,
    "hamming_loss": of_share,
    "recall": of_share,
    "f1": of_share,
    "nll": of_loss,
    "calibration_error": of_limits,
}
"""The interval of each metric, from its estimate, its variance and the quantile of the distribution."""


def with_interval(estimate: Estimate) -> Metric:
    """Return a metric of one model with its interval over images."""
    quantile = student(estimate.n - 1) if METHODS[estimate.metric] is of_loss else Z
    return _metric(estimate, METHODS[estimate.metric](estimate, estimate.variance, quantile))


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over heads of one metric. `n` is the smallest; fixed limits are averaged, which is safe."""
    count = len(estimates)
    fixed = [one.fixed for one in estimates if one.fixed is not None]
    return Estimate(
        estimates[0].metric,
        float(np.mean([one.value for one in estimates])),
        min(one.n for one in estimates),
        np.mean([one.influence for one in estimates], axis=0),
        floor=sum(one.floor for one in estimates) / count**2,
        smoothed=float(np.mean([one.smoothed for one in estimates])),
        step=sum(one.step for one in estimates) / count**2,
        fixed=(float(np.mean([low for low, _ in fixed])), float(np.mean([high for _, high in fixed])))
        if fixed
        else None,
        digest=b"".join(one.digest for one in estimates),
    )


def over_seeds(runs: Sequence[Estimate]) -> Metric:
    """Return the mean over runs that differ in their seed, with its interval over images and, of several, seeds."""
    if len(runs) == 1:
        return with_interval(runs[0])
    average = mean(runs)
    variance, quantile = _over_runs(np.stack([run.influence for run in runs]), [run.value for run in runs], average.n)
    floor = float(np.mean([run.floor for run in runs]))  # the images are the same: more runs make it no smaller
    if average.fixed is not None:
        low, high = average.fixed
        between = quantile * float(np.sqrt(variance))  # seeds only: these limits have no influences
        down, up = (float(np.hypot(side, between)) for side in (average.value - low, high - average.value))
        return Metric(average.value, average.n, max(0.0, average.value - down), min(1.0, average.value + up))
    return _metric(average, METHODS[average.metric](average, variance + floor, quantile))


def difference(pairs: list[tuple[Estimate, Estimate]]) -> Metric:
    """Return the mean over pairs of second minus first; both of a pair predicted the same images.

    What makes an image easy or hard for both cancels. The limits are symmetric, and wider by what one image on which
    the two differ would add: agreement on few images is weak evidence (as Agresti & Min 2005 add pairs).
    The calibration error gets no interval.
    """
    first = pairs[0][0]
    n, values = first.n, [other.value - one.value for one, other in pairs]
    value = float(np.mean(values))
    if first.fixed is not None:
        return Metric(value, n)
    if all(one.digest and one.digest == other.digest for one, other in pairs):
        return Metric(value, n, value, value)
    if METHODS[first.metric] is of_loss and n < 2:
        return Metric(value, n)
    influences = np.stack([other.influence - one.influence for one, other in pairs])
    variance, quantile = _over_runs(influences, values, n)
    missed = float(np.mean([_missed(one, other) + max(one.step, other.step) for one, other in pairs]))
    half = quantile * float(np.sqrt(variance + missed))
    bound = np.inf if METHODS[first.metric] is of_loss else 1.0
    return Metric(value, n, max(-bound, value - half), min(bound, value + half))


def share_of_gap(
    before: list[Estimate], after: list[Estimate], *, low: list[Estimate], high: list[Estimate]
) -> Metric | None:
    """Return the step from `before` to `after` over that from `low` to `high`, all of the same images, by seed.

    The interval is of the ratio to first order (delta method). None where the gap itself is not told apart from 0.
    """
    gap = difference(list(zip(low, high, strict=True)))
    if gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
        return None
    steps, gaps = (
        [(other.value - one.value) / gap.value for one, other in zip(*pair, strict=True)]
        for pair in ((before, after), (low, high))
    )
    share = float(np.mean(steps))
    runs = zip(before, after, low, high, strict=True)
    influences = [
        ((two.influence - one.influence) - share * (four.influence - three.influence)) / gap.value
        for one, two, three, four in runs
    ]
    rest = [step - share * of_gap for step, of_gap in zip(steps, gaps, strict=True)]
    variance, quantile = _over_runs(np.stack(influences), rest, gap.n)
    half = quantile * float(np.sqrt(variance))
    return Metric(share, gap.n, share - half, share + half)


def _missed(one: Estimate, other: Estimate) -> float:
    """Return the variance of a difference that influences miss, the models being as correlated there as elsewhere."""
    floors = one.floor + other.floor
    size = float(np.sqrt((one.influence @ one.influence) * (other.influence @ other.influence)))
    alike = float(one.influence @ other.influence) / size if size else 0.0
    return floors * (1 - alike) if np.isfinite(floors) else floors


def student(freedom: float) -> float:
    """Return the quantile of Student's distribution for a 95 % interval."""
    return float(stdtrit(max(freedom, 1.0), 1 - TAIL))


def _over_runs(influences: Reals, values: list[float], n: int) -> tuple[float, float]:
    """Return the variance of a mean over runs, from influences (S, N), and the quantile of its interval.

    Images and seeds are crossed: each run predicts all images. Products of the influences of different runs measure
    the variance due to images, the spread of the values that due to seeds. A variance from few seeds is uncertain:
    the quantile is Student's, with the degrees of freedom of Welch and Satterthwaite.
    """
    runs = len(influences)
    total, single = float((influences.sum(axis=0) ** 2).sum()), float((influences**2).sum())
    if runs == 1:
        return single, student(n - 1)
    images = max(0.0, (total - single) / (runs * (runs - 1)))
    seeds = float(np.var(values, ddof=1)) / runs
    variance = images + seeds
    if not variance:
        return 0.0, student(n - 1)
    freedom = variance**2 / (seeds**2 / (runs - 1) + images**2 / max(n - 1, 1))
    return variance, student(freedom)


def _metric(estimate: Estimate, limits: Limits | None) -> Metric:
    return Metric(estimate.value, estimate.n) if limits is None else Metric(estimate.value, estimate.n, *limits)
