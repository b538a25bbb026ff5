"""Sums over shards equal what all images together give, wherever they are cut."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from cleanlab.count import compute_confident_joint
from sklearn.linear_model import Ridge

from assay.labels.space import Head
from assay.metrics.tallies import multiclass
from assay.scale import reductions

N, F, K, FOLDS = 240, 7, 4, 3
CHANCE = np.random.default_rng(0)
CODES = CHANCE.integers(-1, K, N)  # some unknown
FEATURES = (CHANCE.normal(size=(N, F)) * np.arange(1, F + 1) + 5).astype(np.float32)
FEATURES[:, 0] += 2 * CODES
TARGETS = (CODES[:, None] == np.arange(K)).astype(np.float64)
WEIGHTS = np.where(CODES >= 0, CHANCE.uniform(0.5, 2, N), 0)
GROUPS = [f"g{number}" for number in CHANCE.integers(0, 60, N)]
FOLD = reductions.fold_of_groups(GROUPS, FOLDS, seed=0)
CUTS = [[], [100], [1, 80, 81, 200]]


def parts(cuts: list[int]) -> list[np.ndarray]:
    return np.split(np.arange(N), cuts)


def ridge_sums(rows: np.ndarray) -> reductions.RidgeSums:
    return reductions.RidgeSums.of(FEATURES[rows], TARGETS[rows], WEIGHTS[rows], FOLD[rows], FOLDS)


def test_folds_keep_groups_together_and_do_not_depend_on_others() -> None:
    alone = [int(reductions.fold_of_groups([group], FOLDS, seed=0)[0]) for group in GROUPS]
    assert alone == FOLD.tolist()
    assert min(np.bincount(FOLD, minlength=FOLDS)) > N / FOLDS / 2
    assert reductions.fold_of_groups(GROUPS, FOLDS, seed=1).tolist() != alone


@pytest.mark.parametrize("cuts", CUTS)
def test_ridge_regressions_out_of_fold_are_those_of_scikit_learn(cuts: list[int]) -> None:
    sums = reduce(lambda one, other: one + other, map(ridge_sums, parts(cuts)))
    scores = reductions.out_of_fold_scores(FEATURES, FOLD, sums.coefficients(0.1))
    for number in range(FOLDS):
        train, held = (number != FOLD) & (CODES >= 0), number == FOLD
        weights = WEIGHTS[train]
        mean = np.average(FEATURES[train], axis=0, weights=weights)
        scale = np.sqrt(np.average((FEATURES[train] - mean) ** 2, axis=0, weights=weights))
        model = Ridge(alpha=0.1 * weights.sum()).fit((FEATURES[train] - mean) / scale, TARGETS[train], weights)
        np.testing.assert_allclose(scores[held], model.predict((FEATURES[held] - mean) / scale), rtol=1e-5, atol=1e-6)


def test_the_order_of_addition_alone_decides_the_last_bits() -> None:
    one, other = (reduce(lambda a, b: a + b, map(ridge_sums, parts([50, 90]))).coefficients(1.0) for _ in range(2))
    assert one.tobytes() == other.tobytes()


def test_probabilities_sum_to_one_and_keep_the_order_of_positive_scores() -> None:
    probabilities = reductions.class_probabilities(np.array([[0.7, 0.4, -0.1], [0.2, 0.3, 0.5]]))
    np.testing.assert_allclose(probabilities, [[7 / 11, 4 / 11, 0], [0.2, 0.3, 0.5]], atol=1e-5)


def out_of_fold() -> np.ndarray:
    return reductions.class_probabilities(
        reductions.out_of_fold_scores(FEATURES, FOLD, ridge_sums(np.arange(N)).coefficients(0.01))
    )


@pytest.mark.parametrize("cuts", CUTS)
def test_the_confident_joint_is_that_of_cleanlab(cuts: list[int]) -> None:
    probabilities = out_of_fold()
    sums = sum(reductions.confidence_sums(CODES[rows], probabilities[rows]) for rows in parts(cuts))
    thresholds = reductions.confident_thresholds(np.asarray(sums))
    counts = sum(reductions.confident_counts(CODES[rows], probabilities[rows], thresholds) for rows in parts(cuts))
    known = CODES >= 0
    expected = compute_confident_joint(CODES[known], probabilities[known], calibrate=False)
    np.testing.assert_array_equal(counts, expected)
    assert 0 < np.trace(np.asarray(counts)) < known.sum()


@pytest.mark.parametrize("cuts", CUTS)
def test_metrics_of_sums_are_those_of_all_images(cuts: list[int]) -> None:
    head, probabilities = Head("label", tuple("abcd")), out_of_fold()
    tallies = [multiclass(head, CODES[rows], probabilities[rows]) for rows in parts(cuts)]
    values = reductions.metric_values(reductions.added([reductions.metric_sums(tally) for tally in tallies]))
    expected = multiclass(head, CODES, probabilities).values()
    assert values == pytest.approx({name: expected[name] for name in values})
