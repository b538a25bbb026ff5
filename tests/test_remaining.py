"""How many wrong labels are left: intervals that cover, and estimates that decisions correct."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from assay.metrics.remaining import random_audit, wrong_left

NONE = np.zeros(0)


@pytest.mark.parametrize(("shift", "slope"), [(0.0, 1.0), (1.0, 0.7), (-1.0, 1.3)])
def test_the_interval_holds_the_number_after_the_most_suspicious_were_looked_at(shift: float, slope: float) -> None:
    chance, covered = np.random.default_rng(0), []
    for _ in range(200):
        stated = chance.beta(0.5, 2.5, 1_000)
        wrong = chance.random(1_000) < expit(shift + slope * logit(np.clip(stated, 1e-4, 1 - 1e-4)))
        first, rest = np.split(np.argsort(-stated), [200])
        left = wrong_left(stated[rest], stated[first], wrong[first])
        assert left.low is not None
        assert left.high is not None
        covered.append(left.low <= wrong[rest].sum() <= left.high)
    assert np.mean(covered) >= 0.9


def test_all_decided_leaves_none() -> None:
    left = wrong_left(NONE, np.array([0.3]), np.array([True]))
    assert (left.value, left.low, left.high) == (0, 0, 0)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.9])
@pytest.mark.parametrize("looked", [30, 100, 900])
def test_the_audit_covers_the_share_of_a_finite_set(share: float, looked: int) -> None:
    chance, covered = np.random.default_rng(1), []
    wrong = np.arange(1_000) < share * 1_000
    for _ in range(300):
        audit = random_audit(int(chance.choice(wrong, looked, replace=False).sum()), looked, 1_000)
        assert audit is not None
        assert audit.low is not None
        assert audit.high is not None
        covered.append(audit.low <= share <= audit.high)
    assert np.mean(covered) >= 0.92


def test_an_audit_of_everything_is_exact_and_one_of_nothing_is_none() -> None:
    audit = random_audit(3, 40, 40)
    assert audit is not None
    assert (audit.low, audit.high) == (3 / 40, 3 / 40)
    assert random_audit(0, 0, 40) is None
