"""Differences of models on the same pictures."""

from __future__ import annotations

import numpy as np
import pytest

from assay.errors import PlanError
from assay.figures.metrics import HeadScore, score
from assay.figures.paired import Resampled, difference, over_seeds, resampled, verdict
from assay.labels.space import Head, LabelSpace

SPACE = LabelSpace((Head("one", ("a", "b")), Head("two", ("x", "y", "z"), "independent")))
N = 300


def scored(right: float, *, seed: int = 0) -> dict[str, HeadScore]:
    """A model that is right of a share of the pictures; those it gets wrong are the same for every share."""
    generator = np.random.default_rng(seed)
    truth, luck = generator.integers(0, 2, N), generator.random(N)
    tags = generator.integers(0, 2, (N, 3))
    probabilities = np.zeros((N, 5))
    probabilities[np.arange(N), np.where(luck < right, truth, 1 - truth)] = 1
    probabilities[:, 2:] = np.where(luck[:, None] < right, tags, 1 - tags)
    return score(SPACE, [truth, tags], probabilities)


def test_a_figure_is_that_of_the_score() -> None:
    scores = scored(0.8)
    for name, head in (("one/accuracy", "one"), ("two/micro_f1", "two")):
        figure = scores[head].figures[name.split("/")[1]]
        assert over_seeds([resampled(scores, name)]) == figure
    both = resampled(scores, "macro_f1")
    assert both.value == pytest.approx(np.mean([own.figures["macro_f1"].value for own in scores.values()]))


@pytest.mark.parametrize("name", ["accuracy", "three/accuracy", "beauty", "two/accuracy", "loss"])
def test_what_is_no_figure_of_these_labels_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match=name):
        resampled(scored(0.8), name)


def test_a_model_does_not_differ_from_itself() -> None:
    one = [resampled(scored(0.8), "one/accuracy")]
    same = difference(one, one)
    assert (same.value, same.low, same.high, same.n) == (0, 0, 0, N)
    assert verdict(same, "accuracy") == "not told apart"


def test_a_small_difference_shows_because_the_pictures_are_the_same() -> None:
    one, other = ([resampled(scored(right), "one/accuracy")] for right in (0.80, 0.84))
    change = difference(one, other)
    assert change.low > 0
    assert verdict(change, "accuracy") == "better"
    assert verdict(difference(other, one), "accuracy") == "worse"
    assert verdict(difference(one, other), "one/nll") == "worse"  # of a loss more is worse
    apart = over_seeds(one), over_seeds(other)
    assert apart[0].high > apart[1].low  # side by side, the intervals overlap


def test_seeds_that_differ_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    draws = 0.8 + 0.001 * generator.standard_normal(1000)
    alike = [Resampled(0.8, N, draws) for _ in range(3)]
    spread = [Resampled(0.8 + shift, N, draws + shift) for shift in (-0.05, 0.0, 0.05)]
    one, other = over_seeds(alike), over_seeds(spread)
    assert one.value == pytest.approx(other.value)
    assert one.high - one.low < 0.005
    assert other.high - other.low > 0.05


def test_differences_of_other_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="same pictures"):
        difference([Resampled(0.5, 10, np.zeros(5))], [Resampled(0.5, 11, np.zeros(5))])


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    """Of 200 pairs of models that differ by 0.05 among all pictures there are, about 190 intervals hold that."""
    generator, held = np.random.default_rng(3), 0
    space = LabelSpace((Head("one", ("a", "b")),))
    for _ in range(200):
        luck, truth = generator.random(N), generator.integers(0, 2, N)
        found = []
        for right in (0.80, 0.85):
            answers = np.eye(2)[np.where(luck < right, truth, 1 - truth)]
            found.append([resampled(score(space, [truth], answers, bootstrap=300), "accuracy")])
        change = difference(*found)
        held += change.low <= 0.05 <= change.high
    assert 180 <= held <= 198
