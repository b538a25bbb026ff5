"""Differences of models on the same images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from assay.errors import PlanError
from assay.labels.space import Head, LabelSpace
from assay.metrics.intervals import Estimate, over_seeds, share_of_gap
from assay.metrics.metrics import HeadScore, difference, estimate, score, verdict

SPACE = LabelSpace((Head("one", ("a", "b")), Head("two", ("x", "y", "z"), "multilabel")))
N = 300


def scored(right: float, *, seed: int = 0) -> dict[str, HeadScore]:
    """A model that is right of a share of the images; those it gets wrong are the same for every share."""
    generator = np.random.default_rng(seed)
    truth, luck = generator.integers(0, 2, N), generator.random(N)
    tags = generator.integers(0, 2, (N, 3))
    probabilities = np.zeros((N, 5))
    probabilities[np.arange(N), np.where(luck < right, truth, 1 - truth)] = 1
    probabilities[:, 2:] = np.where(luck[:, None] < right, tags, 1 - tags)
    return score(SPACE, [truth, tags], probabilities)


def test_a_metric_is_that_of_the_score() -> None:
    scores = scored(0.8)
    for name, head in (("one/accuracy", "one"), ("two/micro_f1", "two")):
        metric = scores[head].metrics[name.split("/")[1]]
        assert over_seeds([estimate(scores, name)]) == metric
    both = estimate(scores, "macro_f1")
    assert both.value == pytest.approx(np.mean([own.metrics["macro_f1"].value for own in scores.values()]))


@pytest.mark.parametrize("name", ["accuracy", "three/accuracy", "beauty", "two/accuracy", "loss"])
def test_what_is_no_metric_of_these_labels_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match=name):
        estimate(scored(0.8), name)


def test_a_model_does_not_differ_from_itself() -> None:
    one = [estimate(scored(0.8), "one/accuracy")]
    same = difference(one, one)
    assert (same.value, same.low, same.high, same.n) == (0, 0, 0, N)
    assert verdict(same, "accuracy") == "not told apart"


def test_a_small_difference_shows_because_the_images_are_the_same() -> None:
    one, other = ([estimate(scored(right), "one/accuracy")] for right in (0.80, 0.84))
    change = difference(one, other)
    assert change.low > 0
    assert verdict(change, "accuracy") == "better"
    assert verdict(difference(other, one), "accuracy") == "worse"
    assert verdict(difference(one, other), "one/nll") == "worse"  # of a loss more is worse
    apart = over_seeds(one), over_seeds(other)
    assert apart[0].high > apart[1].low  # side by side, the intervals overlap


def run_of(value: float) -> Estimate:
    """The accuracy of a model that is right of a share of the images."""
    right = np.arange(N) < value * N
    return Estimate("accuracy", value, N, (right - value) / N, smoothed=value)


def test_seeds_that_differ_widen_the_interval() -> None:
    one, other = over_seeds([run_of(0.8)] * 3), over_seeds([run_of(value) for value in (0.7, 0.8, 0.9)])
    assert one.value == pytest.approx(other.value)
    alone = over_seeds([run_of(0.8)])
    assert (one.low, one.high) == pytest.approx((alone.low, alone.high), abs=1e-3)  # the images are the same
    assert other.high - other.low > 3 * (one.high - one.low)


def test_of_few_seeds_the_quantile_is_that_of_student() -> None:
    """Three values 0.1 apart that no image explains: their mean is known to within 4.3 standard errors."""
    runs = [replace(run_of(0.5), value=value, influence=np.zeros(N)) for value in (0.4, 0.5, 0.6)]
    change = difference(
        [run_of(0.5)] * 3, [replace(run_of(0.5), value=run.value, influence=run_of(0.5).influence) for run in runs]
    )
    assert change.high - change.value == pytest.approx(4.303 * 0.1 / 3**0.5, rel=0.01)


def test_two_models_that_agreed_on_all_of_few_images_may_differ_on_others() -> None:
    """All 16 images right by both: of models that differ on one image in ten, this is seen in one draw of five."""
    truth = np.zeros(16, dtype=np.int64)
    space = LabelSpace((Head("one", ("a", "b")),))
    first, second = (score(space, [truth], np.tile([sure, 1 - sure], (16, 1))) for sure in (0.9, 0.8))
    change = difference([estimate(first, "accuracy")], [estimate(second, "accuracy")])
    assert change.value == 0
    assert change.low < -0.1
    assert change.high > 0.1
    same = difference([estimate(first, "accuracy")], [estimate(first, "accuracy")])
    assert (same.low, same.high) == (0, 0)


def test_differences_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        difference([run_of(0.5)], [replace(run_of(0.5), n=N + 1)])


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    """Of 200 pairs of models that differ by 0.05 among all images there are, about 190 intervals hold that."""
    generator, held = np.random.default_rng(3), 0
    space = LabelSpace((Head("one", ("a", "b")),))
    for _ in range(200):
        luck, truth = generator.random(N), generator.integers(0, 2, N)
        found = []
        for right in (0.80, 0.85):
            answers = np.eye(2)[np.where(luck < right, truth, 1 - truth)]
            found.append([estimate(score(space, [truth], answers), "accuracy")])
        change = difference(*found)
        held += change.low <= 0.05 <= change.high
    assert 180 <= held <= 198


def test_a_share_of_a_gap_is_of_one_that_is_told_apart_from_none() -> None:
    low, half, high = ([estimate(scored(right), "one/accuracy")] for right in (0.6, 0.75, 0.9))
    share = share_of_gap(low, half, low=low, high=high)
    assert share is not None
    assert share.low is not None
    assert share.high is not None
    assert share.value == pytest.approx((half[0].value - low[0].value) / (high[0].value - low[0].value))
    assert 0 < share.low < share.value < share.high < 1
    whole = share_of_gap(low, high, low=low, high=high)
    assert whole is not None
    assert (whole.value, whole.low, whole.high) == (1, pytest.approx(1), pytest.approx(1))
    assert share_of_gap(low, half, low=low, high=low) is None
    several = share_of_gap(2 * low, 2 * half, low=2 * low, high=2 * high)
    assert several is not None
    assert several.value == pytest.approx(share.value)
