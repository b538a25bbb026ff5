"""Figures of several models on the same pictures, and how far they differ: paired resamples.

Two models that answered for the same pictures are compared in the same bootstrap resamples, so that what makes all
pictures easy or hard falls out of the difference. With several seeds, seeds are drawn along with the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from assay.errors import PlanError
from assay.figures.intervals import Figure, with_interval
from assay.figures.metrics import HeadScore, higher_is_better, overall


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


def gains(before: Mapping[str, HeadScore], after: Mapping[str, HeadScore]) -> dict[str, Figure]:
    """By how much each figure over all heads is better after than before: above 0 is better, also of a loss.

    The calibration error is left out: its resamples are moved, each by its own amount.
    """
    was, now = overall(before), overall(after)
    found = {}
    for name in now:
        if name in was and name != "calibration_error":
            sign = 1 if higher_is_better(name) else -1
            one, other = resampled(before, name), resampled(after, name)
            found[name] = with_interval(sign * (other.value - one.value), other.n, sign * (other.draws - one.draws))
    return found


def verdict(change: Figure, figure: str) -> str:
    """What an interval allows to be said of a change: better, worse, or not told apart."""
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return "not told apart"
    return "better" if (change.value > 0) == higher_is_better(figure) else "worse"
