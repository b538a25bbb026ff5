"""95 % intervals of metrics: they hold their value, keep to their range, and hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from assay.labels.space import Head, LabelSpace
from assay.metrics.estimates import calibration_error
from assay.metrics.intervals import Metric, wilson
from assay.metrics.metrics import overall, score


def space_of(classes: int, kind: str = "multiclass") -> LabelSpace:
    return LabelSpace((Head("all", tuple(f"c{number}" for number in range(classes)), kind),))


def accuracy(hits: int, n: int) -> Metric:
    """Of a model that is right of `hits` images of one class."""
    right = np.arange(n) < hits
    return overall(score(space_of(2), [np.zeros(n, dtype=np.int64)], np.eye(2)[np.where(right, 0, 1)]))["accuracy"]


def test_a_plain_share_has_wilsons_interval() -> None:
    for hits, n in ((16, 16), (0, 16), (15, 16), (1, 1), (45, 50), (395, 432), (1999, 2000)):
        expected = binomtest(hits, n).proportion_ci(0.95, "wilson")
        assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
        metric = accuracy(hits, n)
        assert (metric.low, metric.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (accuracy(16, 16).low, accuracy(16, 16).high) == (pytest.approx(0.806, abs=5e-4), 1)
    assert wilson(0, 0) == (0, 1)


def test_each_metric_of_a_class_has_the_interval_of_its_count() -> None:
    """Recall and precision Wilson's, F1 that of the macro F1 over this class alone; without an image there is none."""
    codes, predicted = np.array([0] * 12 + [1] * 3 + [2] * 5), np.array([0] * 12 + [0, 1, 1] + [2] * 4 + [1])
    rows = score(space_of(4), [codes], np.eye(4)[predicted])["all"].per_class.to_dicts()
    for row, hits, answers in zip(rows[:3], (12, 2, 4), (13, 3, 4), strict=True):
        assert (row["recall_low"], row["recall_high"]) == pytest.approx(wilson(hits, row["support"]))
        assert (row["precision_low"], row["precision_high"]) == pytest.approx(wilson(hits, answers))
        assert row["f1_low"] < row["f1"] < row["f1_high"]
    assert {name: value for name, value in rows[3].items() if "_" in name} == dict.fromkeys(
        f"{name}_{side}" for name in ("precision", "recall", "f1") for side in ("low", "high")
    )
    alone = overall(score(space_of(2), [codes[:12] * 0], np.eye(2)[[0] * 9 + [1] * 3]))["macro_f1"]
    row = score(space_of(2), [codes[:12] * 0], np.eye(2)[[0] * 9 + [1] * 3])["all"].per_class.to_dicts()[0]
    assert (row["f1"], row["f1_low"], row["f1_high"]) == pytest.approx((alone.value, alone.low, alone.high))


def test_of_tags_average_precision_has_one_too() -> None:
    tags = np.array([[1, 0]] * 3 + [[0, 0]] * 9)
    first, second = score(space_of(2, "multilabel"), [tags], np.full((12, 2), 0.4))["all"].per_class.to_dicts()
    assert first["average_precision_low"] < first["average_precision"] < first["average_precision_high"]
    assert second["average_precision_low"] is second["recall_low"] is second["f1_low"] is None


def test_shares_of_tags_and_top_5_have_it_too() -> None:
    generator = np.random.default_rng(0)
    tags = generator.integers(0, 2, (40, 3))
    answers = np.where(generator.random((40, 3)) < 0.95, tags, 1 - tags).astype(float)
    subset = overall(score(space_of(3, "multilabel"), [tags], answers))["subset_accuracy"]
    assert (subset.low, subset.high) == pytest.approx(wilson(round(subset.value * 40), 40))
    codes, probabilities = generator.integers(0, 8, 40), generator.dirichlet(np.ones(8), 40)
    top = overall(score(space_of(8), [codes], probabilities))["top_5"]
    assert (top.low, top.high) == pytest.approx(wilson(round(top.value * 40), 40))


def test_images_whose_tags_are_wrong_together_count_as_few() -> None:
    """Twenty tags of an image, all right or all wrong, tell no more than one."""
    wrong = np.arange(50) < 5
    truth = np.zeros((50, 20), dtype=np.int64)
    metrics = overall(score(space_of(20, "multilabel"), [truth], np.repeat(wrong[:, None], 20, axis=1).astype(float)))
    found = metrics["hamming_loss"]
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx(wilson(5, 50), abs=0.005)


@pytest.mark.parametrize("images", [2, 8])
def test_images_of_which_each_has_the_same_part_of_its_tags_wrong_are_not_certain(images: int) -> None:
    truth = np.tile([[1, 0], [0, 1]], (images // 2, 1))
    hamming = overall(score(space_of(2, "multilabel"), [truth], np.full((images, 2), 0.1)))["hamming_loss"]
    assert (hamming.low, hamming.high) == pytest.approx(wilson(images / 2, images))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    classes=st.integers(2, 7),
    kind=st.sampled_from(["multiclass", "multilabel"]),
    right=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    present=st.integers(1, 7),
)
def test_every_interval_holds_its_value_and_keeps_to_its_range(
    seed: int, n: int, classes: int, kind: str, right: float, present: int
) -> None:
    """All right, all wrong, one class only, one image only, labels that are not known."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, min(present, classes), n)
    if kind == "multilabel":
        codes = (generator.random((n, classes)) < present / 10).astype(np.int64)
    truth = codes if kind == "multilabel" else np.eye(classes, dtype=np.int64)[codes]
    wrong = np.roll(truth, 1, axis=1) if kind == "multiclass" else 1 - truth
    shown = np.where(generator.random((n, 1)) < right, truth, wrong)
    probabilities = 0.05 + 0.9 * shown + 0.05 * generator.random((n, classes))
    if kind == "multiclass":
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    codes = np.where(generator.random(codes.shape) < 0.1, -1, codes)
    for name, metric in overall(score(space_of(classes, kind), [codes], probabilities)).items():
        if metric.low is None or metric.high is None:
            assert (name, metric.n) == ("nll", 1)
            continue
        assert 0 <= metric.low <= metric.value <= metric.high, name
        assert metric.high <= 1 or name == "nll"
        assert metric.low < metric.high, name


def test_a_mean_over_classes_that_are_all_right_is_not_certain() -> None:
    """Ten classes of two images each, all right: Wilson's interval of a share of 20 is [0.839, 1]."""
    codes = np.repeat(np.arange(10), 2)
    metrics = overall(score(space_of(10), [codes], np.eye(10)[codes]))
    assert metrics["balanced_accuracy"].low == pytest.approx(wilson(20, 20)[0], abs=0.02)
    assert metrics["macro_f1"].low == pytest.approx(wilson(20, 20)[0], abs=0.06)


def test_the_same_answers_have_the_same_intervals() -> None:
    generator = np.random.default_rng(1)
    codes, probabilities = generator.integers(0, 5, 80), generator.dirichlet(np.ones(5), 80)
    once, again = (overall(score(space_of(5), [codes], probabilities)) for _ in range(2))
    assert once == again


def test_confidences_that_are_all_the_same_share_a_bin() -> None:
    """Sorted by class, the images of a constant answer would else be parted by whether it is right."""
    right = np.arange(400) < 300
    value, (low, high) = calibration_error(np.full(400, 0.75), right)
    assert value == 0
    assert low == 0
    assert high < 0.1
    value, (low, _) = calibration_error(np.full(400, 0.95), right)
    assert value == pytest.approx(0.2, abs=0.005)
    assert low > 0.1


def test_the_calibration_error_of_next_to_nothing() -> None:
    assert calibration_error(np.array([0.9]), np.array([True])) == (0.0, (0.0, 1.0))
    for n in (2, 3, 4, 5):
        value, (low, high) = calibration_error(np.linspace(0.5, 1, n), np.arange(n) > 0)
        assert 0 <= low <= value <= high <= 1


def test_the_squared_calibration_error_is_right_on_average() -> None:
    """The plain error of 15 bins is 0.04 on average here, of a model that is perfectly calibrated."""
    generator = np.random.default_rng(2)
    values = []
    for _ in range(300):
        confidence = generator.uniform(0.5, 1, 432)
        value, (low, _) = calibration_error(confidence, generator.random(432) < confidence)
        values.append((value, low))
    assert np.median([value for value, _ in values]) < 0.01
    assert np.mean([low == 0 for _, low in values]) > 0.9


def draw(generator: np.random.Generator, n: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Four classes with exactly known probabilities, and a model that states them at some sharpness."""
    codes = generator.integers(0, 4, n)
    scores = sharpness * (2.5 * (2.5 * np.eye(4)[codes] + generator.standard_normal((n, 4))))
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return codes, powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("sharpness", "error"), [(1.0, 0.0), (2.0, 0.0793), (0.5, 0.1381)])
@pytest.mark.parametrize("n", [30, 150, 432, 2000])
def test_intervals_hold_the_truth_as_often_as_they_say(n: int, sharpness: float, error: float) -> None:
    """At least 180 of 200 draws; 95 % of them are 190, with a standard error of 3.

    The truths are those of 4 million images: `error` is the root of the mean squared gap between confidence and the
    exact probability of being right. benchmarks/coverage.py has more models, and every metric.
    """
    generator = np.random.default_rng([n, int(10 * sharpness)])
    truth = {"accuracy": 0.9065, "macro_f1": 0.9065, "calibration_error": error}
    held = dict.fromkeys(truth, 0)
    for _ in range(200):
        codes, probabilities = draw(generator, n, sharpness)
        metrics = overall(score(space_of(4), [codes], probabilities))
        for name, value in truth.items():
            held[name] += metrics[name].low <= value <= metrics[name].high
    assert min(held.values()) >= 180, held
    assert held["accuracy"] < 200


def test_metrics_read_well() -> None:
    assert str(Metric(0.9634, 100, 0.951, 0.974)) == "0.963 [0.951, 0.974]"
    assert str(Metric(0.5, 3)) == "0.500"
    assert Metric(0.9634, 100, 0.951, 0.974).limits(".2f") == " [0.95, 0.97]"
    assert Metric(0.5, 3).limits() == ""
    assert Metric(0.5, 3).to_json() == {"value": 0.5, "n": 3, "low": None, "high": None}
