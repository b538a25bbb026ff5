"""Accuracy on noisy validation labels: the correction is unbiased, and where noise hides the classes there is none."""

from __future__ import annotations

import numpy as np
import pytest

from assay.run.noisy_validation import corrected_accuracy


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5])
def test_the_corrected_accuracy_is_that_by_right_labels(rate: float) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 20_000)
    predicted = np.where(generator.random(20_000) < 0.8, truth, generator.integers(0, 4, 20_000))
    given = np.where(generator.random(20_000) < rate, (truth + generator.integers(1, 4, 20_000)) % 4, truth)
    noise = np.full((4, 4), rate / 3)
    np.fill_diagonal(noise, 1 - rate)
    metric = corrected_accuracy(predicted, given, noise, np.zeros(20_000, np.bool_))
    assert metric is not None
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low < (predicted == truth).mean() < metric.high
    assert metric.value > (predicted == given).mean() + 0.3 * rate or rate == 0
    settled = corrected_accuracy(predicted, truth, noise, np.ones(20_000, np.bool_))
    assert settled is not None
    assert settled.value == pytest.approx((predicted == truth).mean())


@pytest.mark.parametrize("noise", [np.full((2, 2), 0.5), np.diag([1.0, 0.0]), [[0.52, 0.49], [0.48, 0.51]]])
def test_noise_that_hides_the_classes_corrects_nothing(noise: object) -> None:
    classes = np.array([0, 1, 1])
    assert corrected_accuracy(classes, classes, np.array(noise), np.zeros(3, np.bool_)) is None


@pytest.mark.parametrize(("right", "named"), [(100, False), (70, True)])
def test_labels_that_cannot_be_as_wrong_as_it_says_are_not_corrected(right: int, named: bool) -> None:
    predicted = np.arange(100) % 2
    given = np.where(np.arange(100) < right, predicted, 1 - predicted)
    noise = np.array([[0.8, 0.2], [0.2, 0.8]])
    assert (corrected_accuracy(predicted, given, noise, np.zeros(100, np.bool_)) is not None) == named
