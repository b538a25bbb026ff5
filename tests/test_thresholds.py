"""Thresholds of multi-label heads: exact on the images they are chosen on, honest on the others."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from assay.errors import PlanError
from assay.labels.space import Head
from assay.metrics.metrics import higher_is_better
from assay.predictions.cross_fitting import cross_fitted, decision_tally, folds_of, gain
from assay.predictions.thresholds import best_by_class, best_global, rare_tags, without_positives
from factories import metrics_of

METRICS = ["micro_f1", "macro_f1", "balanced_accuracy", "subset_accuracy", "hamming_loss"]
SEPARABLE = [metric for metric in METRICS if metric != "subset_accuracy"]
LEVELS = np.array([0, 1e-45, 0.1, 0.3, 0.5, np.nextafter(np.float32(0.5), 1), 0.7, 1], dtype=np.float32)


def tags(size: int) -> Head:
    return Head("tags", tuple("abcdefghij"[:size]), "multilabel")


@st.composite
def answers(draw: st.DrawFn, *, images: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes with unknown cells, and probabilities with ties, neighbours in float32, 0 and 1."""
    shape = (draw(st.integers(1, images)), size)
    codes = draw(arrays(np.int64, shape, elements=st.integers(-1, 1)))
    levels = draw(arrays(np.int64, shape, elements=st.integers(0, len(LEVELS) - 1)))
    return codes, LEVELS[levels]


def value(codes: np.ndarray, probabilities: np.ndarray, thresholds: Any, metric: str) -> float:
    """A metric as the library defines it, turned so that higher is better."""
    found = metrics_of(tags(codes.shape[1]), codes, probabilities, thresholds=np.asarray(thresholds)).get(metric, 0.0)
    return found if higher_is_better(metric) else -found


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=60, deadline=None)
@given(drawn=answers(images=7, size=3))
def test_no_global_threshold_is_better(metric: str, drawn: Any) -> None:
    codes, probabilities = drawn
    chosen = best_global(codes, probabilities, metric)
    if not (codes == 1).any():
        assert chosen == 0.5
        return
    every = [value(codes, probabilities, cut, metric) for cut in [*LEVELS, 1.5]]
    assert value(codes, probabilities, chosen, metric) == pytest.approx(max(every), abs=1e-8)


@pytest.mark.parametrize("metric", SEPARABLE)
@settings(max_examples=40, deadline=None)
@given(drawn=answers(images=6, size=2))
def test_no_thresholds_by_class_are_better(metric: Any, drawn: Any) -> None:
    codes, probabilities = drawn
    chosen = best_by_class(codes, probabilities, metric)
    there = (codes == 1).any(axis=0)
    assert (chosen[~there] == 0.5).all()
    if there.any():
        options = [[*LEVELS, 1.5] if found else [0.5] for found in there]
        every = [value(codes, probabilities, cuts, metric) for cuts in product(*options)]
        assert value(codes, probabilities, chosen, metric) == pytest.approx(max(every), abs=1e-9)


def planted(images: int, size: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tags of falling frequency whose probabilities are all too low."""
    generator = np.random.default_rng(seed)
    codes = (generator.random((images, size)) < np.geomspace(0.4, 0.05, size)).astype(np.int64)
    logits = generator.normal(2.5 * codes - 3, 1)
    codes[generator.random(codes.shape) < 0.1] = -1
    return codes, (1 / (1 + np.exp(-logits))).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_a_global_threshold_lies_midway_between_two_probabilities(metric: str) -> None:
    codes = np.array([[1, 0], [0, 1], [1, 0]])
    probabilities = np.array([[0.4, 0.1], [0.2, 0.3], [0.45, 0.1]], dtype=np.float32)
    assert best_global(codes, probabilities, metric) == pytest.approx(0.25)


def test_equally_good_thresholds_go_to_the_one_nearest_one_half() -> None:
    codes = np.array([[1], [0], [1], [0]])
    probabilities = np.array([[0.9], [0.8], [0.4], [0.1]], dtype=np.float32)
    assert best_global(codes, probabilities, "hamming_loss") == pytest.approx(0.25)  # as 0.85, with one wrong


@pytest.mark.parametrize("metric", SEPARABLE)
def test_thresholds_by_class_are_no_worse_than_a_global_one(metric: Any) -> None:
    codes, probabilities = planted(400, 6)
    by_class = value(codes, probabilities, best_by_class(codes, probabilities, metric), metric)
    overall = value(codes, probabilities, best_global(codes, probabilities, metric), metric)
    assert by_class > overall > value(codes, probabilities, 0.5, metric)


def test_subset_accuracy_has_no_thresholds_by_class() -> None:
    with pytest.raises(PlanError, match="by: global"):
        best_by_class(*planted(20, 2), "subset_accuracy")


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_images_makes_no_difference(metric: str) -> None:
    codes, probabilities = planted(200, 4)
    probabilities = probabilities.round(2)
    order = np.random.default_rng(1).permutation(200)
    assert best_global(codes, probabilities, metric) == best_global(codes[order], probabilities[order], metric)


def test_few_positives_are_counted_by_tag() -> None:
    codes = np.zeros((30, 3), dtype=np.int64)
    codes[:20, 0], codes[:19, 1], codes[:, 2] = 1, 1, -1
    assert rare_tags(codes).tolist() == [1]  # the last has none, and so no threshold of its own
    assert without_positives(codes).tolist() == [2]


def test_folds_are_even_and_drawn_by_the_seed() -> None:
    fold = folds_of(502, 5, seed=0)
    assert sorted(np.bincount(fold)) == [100, 100, 100, 101, 101]
    assert (fold == folds_of(502, 5, seed=0)).all()
    assert (fold != folds_of(502, 5, seed=1)).any()


def test_a_image_has_no_say_in_its_own_thresholds() -> None:
    codes, probabilities = planted(100, 3)
    chosen = []

    def choose(codes: Any, probabilities: Any) -> Any:
        chosen.append((len(codes), best_by_class(codes, probabilities, "micro_f1")))
        return chosen[-1][1]

    fold = folds_of(100, 5, seed=3)
    fitted = cross_fitted(codes, probabilities, choose, seed=3)
    assert [images for images, _ in chosen] == [80] * 5
    for number in range(5):
        others = best_by_class(codes[fold != number], probabilities[fold != number], "micro_f1")
        assert (fitted[fold == number] == others).all()


def test_one_image_is_judged_at_one_half() -> None:
    codes, probabilities = np.array([[1, 0]]), np.array([[0.2, 0.1]], dtype=np.float32)
    fitted = cross_fitted(codes, probabilities, lambda c, p: best_global(c, p, "micro_f1"))
    assert fitted.tolist() == [[0.5]]


def test_a_gain_is_paired_and_above_zero_where_it_is_better() -> None:
    codes, probabilities = planted(400, 5)
    half = decision_tally(tags(5), codes, probabilities)
    for metric in METRICS:
        chosen = cross_fitted(codes, probabilities, lambda c, p, f=metric: best_global(c, p, f))
        better = gain(half, decision_tally(tags(5), codes, probabilities, chosen), metric)
        measured = value(codes, probabilities, chosen, metric) - value(codes, probabilities, 0.5, metric)
        assert better.value == pytest.approx(measured)
        assert 0 < better.low < better.value < better.high
    same = gain(half, half, "micro_f1")
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_chance_is_no_gain() -> None:
    """Tags that have nothing to do with the answers: what is won on the same images is not won on others."""
    generator = np.random.default_rng(5)
    same, honest = [], []

    def choose(codes: Any, probabilities: Any) -> Any:
        return best_by_class(codes, probabilities, "hamming_loss")

    for seed in range(20):
        codes = (generator.random((120, 8)) < 0.5).astype(np.int64)
        probabilities = generator.random((120, 8)).astype(np.float32)
        half = decision_tally(tags(8), codes, probabilities)
        fitted = cross_fitted(codes, probabilities, choose, seed=seed)
        for found, cuts in ((same, choose(codes, probabilities)), (honest, fitted)):
            found.append(gain(half, decision_tally(tags(8), codes, probabilities, cuts), "hamming_loss").value)
    assert np.mean(same) > 0.04
    assert abs(np.mean(honest)) < 0.01
