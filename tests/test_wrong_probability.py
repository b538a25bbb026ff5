"""The probability that a label is wrong: noise estimated from labels, decisions that correct it, and groups."""

from __future__ import annotations

import numpy as np
import pytest

from assay.apps.review.queues import suspect_groups
from assay.arrays import Bools, Doubles, Ints
from assay.labels.space import Head
from assay.repair import wrong_probability
from assay.repair.wrong_probability import (
    estimated_noise,
    likely_counts,
    mislabelled,
    noise_matrix,
    prior_wrong,
    true_posterior,
    wrong_by_decisions,
    wrong_labels,
)

NOISE = np.array([[0.9, 0.1, 0.0], [0.1, 0.6, 0.0], [0.0, 0.3, 1.0]])  # (given, true)


def drawn(count: int = 6_000) -> tuple[Ints, Ints, Doubles]:
    """Return true and given values, and probabilities of the true value that are calibrated."""
    chance = np.random.default_rng(0)
    probabilities = chance.dirichlet([0.2] * 3, count)
    true = (probabilities.cumsum(axis=1) > chance.random((count, 1))).argmax(axis=1)
    given = (NOISE[:, true].T.cumsum(axis=1) > chance.random((count, 1))).argmax(axis=1)
    return true, given, probabilities


def test_noise_is_estimated_in_turn_with_what_the_labels_mean() -> None:
    _, given, probabilities = drawn()
    noise = estimated_noise(probabilities, given)
    for _ in range(20):
        noise = noise_matrix(true_posterior(probabilities, given, noise), given)
    np.testing.assert_allclose(noise, NOISE, atol=0.04)
    np.testing.assert_allclose(noise.sum(axis=0), 1)


def test_the_likeliest_counts_are_those_of_the_noise() -> None:
    true, given, probabilities = drawn()
    counts = likely_counts(probabilities, given)
    np.testing.assert_allclose(counts.sum(axis=0), np.bincount(true), rtol=0.1)
    np.testing.assert_allclose(counts / counts.sum(axis=0), NOISE, atol=0.05)
    assert not likely_counts(probabilities[:0], given[:0]).any()


def test_the_posterior_is_as_often_right_as_it_states() -> None:
    true, given, probabilities = drawn()
    wrong = 1 - true_posterior(probabilities, given, NOISE)[np.arange(len(given)), given]
    for low in (0.0, 0.2, 0.6):
        inside = (wrong >= low) & (wrong < low + 0.3)
        assert wrong[inside].mean() == pytest.approx((true != given)[inside].mean(), abs=0.04)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_decisions_move_all_probabilities(share: float) -> None:
    _, given, probabilities = drawn(500)
    prior = prior_wrong(true_posterior(probabilities, given, NOISE), probabilities, given)
    doubtful = (prior > 0.1) & (prior < 0.9)
    decided = doubtful & (np.cumsum(doubtful) <= 40)
    views = [probabilities] * 4
    corrected = wrong_by_decisions(prior, views, given, decided, np.full(40, bool(share)))
    assert (corrected[doubtful].mean() > prior[doubtful].mean()) == bool(share)


def test_a_rare_tag_that_is_not_recognised_is_less_suspect_than_a_clear_contradiction() -> None:
    truth = np.random.default_rng(0).random(1000) < 0.4
    given, present = truth.astype(np.int64), np.where(truth, 0.99, 0.01)
    given[:30] = 1 - given[:30]
    clear = mislabelled(np.stack([1 - present, present], axis=1), given)
    rare = mislabelled(np.tile([0.99, 0.01], (1000, 1)), (np.arange(1000) < 10).astype(np.int64))
    assert clear[:30].min() > 0.3 > rare.max()
    assert clear[30:].max() < 0.05


def calibration_error(wrong: Doubles, truly: Bools) -> float:
    bins = np.minimum((wrong * 10).astype(int), 9)
    return sum(abs(wrong[bins == k].sum() - truly[bins == k].sum()) for k in range(10)) / len(wrong)


@pytest.mark.parametrize(("rate", "most"), [(0.05, 0.05), (0.3, 0.08), (0.6, 0.14)])
def test_the_share_of_wrong_labels_is_what_the_probability_says(
    rate: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a judge that learnt from noisy labels: its probabilities are those of the label given.

    No power of them undoes that mixture exactly, which is most of the error; that the judge's answer counts by a
    quarter (`DIRECT`), which pays on faults of people, is the rest. Without either the error is that of 2,000 labels.
    """
    generator = np.random.default_rng(0)
    head = Head("kind", ("a", "b", "c", "d"))
    clear = generator.dirichlet([0.3] * 4, 2_000)
    truth = np.array([generator.choice(4, p=row) for row in clear])
    given = np.where(generator.random(2_000) < rate, (truth + generator.integers(1, 4, 2_000)) % 4, truth)
    noisy = clear * (1 - rate) + (1 - clear) * rate / 3
    assert calibration_error(wrong_labels(head, given, noisy), given != truth) < most
    assert np.isnan(wrong_labels(head, np.where(given == 1, -1, given), noisy)[given == 1]).all()
    monkeypatch.setattr(wrong_probability, "DIRECT", 0.0)
    assert calibration_error(wrong_labels(head, given, clear), given != truth) < 0.035


def test_no_label_and_no_decision_are_fine() -> None:
    none, empty = np.zeros(0, np.int64), np.zeros((0, 3))
    assert len(wrong_by_decisions(np.zeros(0), [empty] * 4, none, none == 1, none == 1)) == 0
    np.testing.assert_allclose(estimated_noise(empty, none).sum(axis=0), 1)


def test_groups_are_of_one_pair_and_the_surest_comes_first() -> None:
    given, suggested = np.array([0, 0, 1, 1, 1, 2]), np.array([1, 1, 2, 2, 2, 0])
    wrong = np.array([0.4, 0.5, 0.9, 0.8, 0.95, np.nan])
    groups = suspect_groups(given, suggested, wrong, np.ones(6, bool))
    assert [(one.given, one.suggested, one.rows.tolist()) for one in groups] == [(1, 2, [4, 2, 3]), (0, 1, [1, 0])]
