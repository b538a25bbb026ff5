"""Which images to label next: the contract of all rules, and what each prefers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.special import softmax

from assay.arrays import Ints
from assay.predictions.acquisition import Pool, central, diverse, margin

Acquire = Callable[[Pool, int], Ints]
RULES = [margin, partial(central, seed=0), partial(diverse, seed=0)]


def pool(count: int = 200, clusters: int = 4) -> Pool:
    chance = np.random.default_rng(0)
    centres = 6 * np.eye(clusters, 16, dtype=np.float32)
    features = centres[np.arange(count) % clusters] + chance.normal(size=(count, 16)).astype(np.float32)
    return predicted(Pool(features, np.arange(count) % 10 == 0, features))


def predicted(given: Pool) -> Pool:
    """The pool with probabilities by how close an image is to each of the four centres."""
    return replace(given, probabilities=softmax(given.features[:, :4], axis=1))


@pytest.mark.parametrize("acquire", RULES)
@pytest.mark.parametrize("count", [0, 1, 30, 1_000])
def test_every_rule_gives_other_unlabelled_images_and_the_same_ones_again(acquire: Acquire, count: int) -> None:
    given = pool()
    rows = acquire(given, count)
    assert len(set(rows.tolist())) == len(rows) == min(count, 180)
    assert not given.labelled[rows].any()
    np.testing.assert_array_equal(rows, acquire(given, count))


@pytest.mark.parametrize("acquire", RULES)
def test_nothing_is_left_to_label(acquire: Acquire) -> None:
    given = pool()
    assert len(acquire(replace(given, labelled=np.ones(200, bool)), 5)) == 0


def test_the_first_images_are_of_all_clusters() -> None:
    rows = central(replace(pool(), labelled=np.zeros(200, bool)), 4, seed=0)
    assert len(set((rows % 4).tolist())) == 4


def test_images_between_classes_come_before_sure_ones() -> None:
    given = pool()
    given.features[5] = 3 * np.eye(4, 16, dtype=np.float32)[:2].sum(axis=0)
    assert 5 in margin(predicted(given), 20)


def test_central_images_come_from_clusters_without_a_labelled_one() -> None:
    given = pool()
    labelled = np.isin(np.arange(200) % 4, [0, 1]) & (np.arange(200) < 40)
    rows = central(replace(given, labelled=labelled), 4, seed=0)
    assert set((rows % 4).tolist()) >= {2, 3}


def test_doubtful_images_are_taken_from_several_clusters() -> None:
    given = pool()
    between = 3 * np.eye(4, 16, dtype=np.float32)
    given.features[5:50:5] = between[0] + between[1]
    given.features[51:100:5] = between[2] + between[3]
    given = predicted(replace(given, labelled=np.zeros(200, bool)))
    rows = diverse(given, 2, seed=0)
    assert sorted(row // 50 for row in rows) == [0, 1]
