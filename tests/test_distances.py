"""Distances between sets of features, and what they say of made-up images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import pdist

from assay.synthesis.measures import frechet, mean_distance, measure_likeness


def normal(n: int, width: int = 6, *, seed: int = 0, mean: float = 0.0, scale: float = 1.0) -> Any:
    return np.random.default_rng(seed).normal(mean, scale, (n, width))


def by_the_formula(one: Any, other: Any) -> Any:
    """Heusel et al. 2017, with covariances and a root of a matrix."""
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = sqrtm(first @ second).real
    return ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (25, 60), (9, 200)])
def test_the_distance_is_that_of_the_formula(n: int, m: int) -> None:
    one, other = normal(n), normal(m, seed=1, mean=0.4, scale=1.5)
    assert frechet(one, other) == pytest.approx(by_the_formula(one, other), rel=1e-6)


def test_with_fewer_images_than_features() -> None:
    one, other = normal(5, 50), normal(7, 50, seed=1)
    assert frechet(one, other) == pytest.approx(by_the_formula(one, other), rel=1e-3)


@given(st.integers(2, 30), st.integers(2, 30), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_no_distance_to_itself_and_the_square_of_a_shift(n: int, m: int, shift: float) -> None:
    one, other = normal(n), normal(m, seed=1)
    assert frechet(one, one) == pytest.approx(0, abs=1e-8)
    assert frechet(one, other) == pytest.approx(frechet(other, one))
    assert frechet(one, one + shift) == pytest.approx(6 * shift**2, abs=1e-6)


def test_few_images_make_it_larger() -> None:
    far = [np.mean([frechet(normal(n, seed=s), normal(n, seed=s + 50)) for s in range(10)]) for n in (8, 40, 200)]
    assert far[0] > far[1] > far[2]


@given(st.integers(2, 40))
@settings(max_examples=20, deadline=None)
def test_spread_is_the_mean_over_pairs(n: int) -> None:
    features = normal(n, mean=100.0)
    assert mean_distance(features) == pytest.approx(pdist(features).mean(), rel=1e-6)


def test_one_image_is_too_few() -> None:
    with pytest.raises(ValueError, match="a covariance needs two"):
        frechet(normal(1), normal(5))
    with pytest.raises(ValueError, match="no other"):
        mean_distance(normal(1))


REAL = {0: normal(60), 1: normal(60, seed=1, mean=3.0), 2: normal(60, seed=2, mean=9.0), 3: normal(5, seed=3)}


def test_images_like_the_real_ones() -> None:
    found = measure_likeness(REAL, 0, normal(40, seed=9), seed=0)
    assert found.n == 30
    assert found.nearest == 1  # of class 3 there are fewer than n
    assert found.made == pytest.approx(found.real, rel=0.8)
    assert found.made < found.other / 5
    assert found.variety == pytest.approx(1, abs=0.15)
    assert not found.collapsed
    assert found.to_json(("a", "b", "c", "d"))["nearest other class"] == "b"


def test_one_image_again_and_again_is_found_out() -> None:
    """Planted: a network that makes one real image with a little noise."""
    collapsed = measure_likeness(REAL, 0, REAL[0][:1] + normal(40, seed=9, scale=0.1), seed=0)
    assert collapsed.collapsed
    assert collapsed.made > measure_likeness(REAL, 0, normal(40, seed=9), seed=0).made


def test_images_of_another_class_are_as_far_as_that_class() -> None:
    found = measure_likeness(REAL, 0, normal(60, seed=9, mean=3.0), seed=0)
    assert found.made == pytest.approx(found.other, rel=0.2)


def test_a_class_alone_has_no_other() -> None:
    found = measure_likeness({0: REAL[0]}, 0, normal(10, seed=9), seed=0)
    assert (found.other, found.nearest, found.n) == (None, None, 10)
