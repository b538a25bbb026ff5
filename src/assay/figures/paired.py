"""Figures of several models on the same pictures, and how far they differ: paired resamples.

Two models that answered for the same pictures are compared in the same bootstrap resamples, so that what makes all
pictures easy or hard falls out of the difference. With several seeds, seeds are drawn along with the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from assay.errors import PlanError
from assay.figures.intervals import Figure, with_interval
from assay.figures.metrics import HeadScore, higher_is_better, overall

EXACT_BELOW = 25  # discordant pictures; from here on the chi-squared distribution is near enough


@dataclass(frozen=True, eq=False)
class Resampled:
    """A figure of one model: its value, the pictures it rests on, and its value in each resample (B,)."""

    value: float
    n: int
    draws: npt.NDArray[np.float64]


def resampled(scores: Mapping[str, HeadScore], figure: str) -> Resampled:
    """A figure out of a score: the mean over the heads that have it, or that of one head, `HEAD/accuracy`.

    Raises PlanError for a figure that these labels do not define.
    """
    higher_is_better(figure)  # refuses what is no figure at all
    head, _, name = figure.rpartition("/")
    measured = [score for own, score in scores.items() if score.n and (not head or own == head)]
    shared = [name for name in (measured[0].figures if measured else ()) if all(name in s.figures for s in measured)]
    if name not in shared:
        known = ", ".join(shared) or "none"
        raise PlanError(f"{figure}: these validation labels define no such figure. They define: {known}.")
    values = [score.figures[name].value for score in measured]
    drawn = np.mean([score.resampled[name] for score in measured], axis=0)
    return Resampled(float(np.mean(values)), min(score.figures[name].n for score in measured), drawn)


def over_seeds(runs: Sequence[Resampled], *, seed: int = 0) -> Figure:
    """The mean over seeds; the interval is over pictures, and with several seeds over these as well.

    Each resample of the pictures is met with a resample of the seeds. A few seeds drawn from a few know less of how
    seeds differ than many would: of S of them, the bootstrap finds (S - 1) / S of the variance.
    """
    count, drawn = len(runs), np.stack([run.draws for run in runs])  # (S, B)
    columns = np.arange(drawn.shape[1])
    chosen = np.random.default_rng(seed).integers(count, size=drawn.shape)
    return with_interval(float(np.mean([run.value for run in runs])), runs[0].n, drawn[chosen, columns].mean(axis=0))


def difference(one: Sequence[Resampled], other: Sequence[Resampled], *, seed: int = 0) -> Figure:
    """How much `other` is above `one`, seed by seed and resample by resample, with its interval as `over_seeds`.

    Both are of the same pictures, scored with the same draws. Raises ValueError where they cannot be.
    """
    if [run.n for run in one] != [run.n for run in other]:
        raise ValueError("a difference is of models that answered for the same pictures, under the same seeds")
    apart = [
        Resampled(b.value - a.value, a.n, b.draws - a.draws) for a, b in zip(one, other, strict=True)
    ]  # fmt: skip
    return over_seeds(apart, seed=seed)


def paired(figure: str) -> bool:
    """Whether a difference of a figure can be drawn: the resamples of the calibration error are moved, each its way."""
    return figure.rpartition("/")[2] != "calibration_error"


def gains(before: Mapping[str, HeadScore], after: Mapping[str, HeadScore]) -> dict[str, Figure]:
    """By how much each figure over all heads is better after than before: above 0 is better, also of a loss.

    Figures that are not `paired` are left out.
    """
    was, now = overall(before), overall(after)
    found = {}
    for name in now:
        if name in was and paired(name):
            sign = 1 if higher_is_better(name) else -1
            one, other = resampled(before, name), resampled(after, name)
            found[name] = with_interval(sign * (other.value - one.value), other.n, sign * (other.draws - one.draws))
    return found


def verdict(change: Figure, figure: str) -> str:
    """What an interval allows to be said of a change: better, worse, or not told apart."""
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return "not told apart"
    return "better" if (change.value > 0) == higher_is_better(figure) else "worse"


@dataclass(frozen=True)
class McNemar:
    """How often only one of two models is right, and how probable so uneven a share is if neither is better."""

    only_first: int
    only_second: int
    p: float
    exact: bool

    def to_json(self) -> dict[str, float | int | bool]:
        return {"only first right": self.only_first, "only second right": self.only_second} | {
            "p": self.p,
            "exact": self.exact,
        }


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> McNemar:
    """McNemar's test (McNemar 1947, Psychometrika 12) of which pictures (N,) two models answer rightly.

    Only the discordant pictures count, on which one alone is right. Of fewer than 25 of them the p-value is exact,
    that of a fair coin, on both sides; of more it is that of chi-squared with one degree of freedom and the
    correction for continuity (Edwards 1948, Psychometrika 13), as Dietterich (1998, section 3.1) uses it.
    """
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = one + other
    if discordant < EXACT_BELOW:
        tail = sum(math.comb(discordant, hits) for hits in range(min(one, other) + 1)) / 2**discordant
        return McNemar(one, other, min(1.0, 2 * tail), exact=True)
    statistic = max(0, abs(one - other) - 1) ** 2 / discordant
    return McNemar(one, other, math.erfc(math.sqrt(statistic / 2)), exact=False)
