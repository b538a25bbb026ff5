"""Which images to label next: the contract of all rules, and what each prefers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from assay.arrays import Floats, Reals
from assay.predictions.acquisition import ACQUISITIONS, Acquire, Pool, central, diverse, k_center, margin, uncertainty

NAMES = list(ACQUISITIONS.values())


def pool(count: int = 200, clusters: int = 4) -> Pool:
    chance = np.random.default_rng(0)
    centres = 6 * np.eye(clusters, 16, dtype=np.float32)
    features = centres[np.arange(count) % clusters] + chance.normal(size=(count, 16)).astype(np.float32)

    def predict(some: Floats) -> Reals:
        return np.asarray(softmax(some @ centres.T / 6, axis=1))

    return Pool(features, np.arange(count) % 10 == 0, predict(features), predict)


@pytest.mark.parametrize("acquire", NAMES)
@pytest.mark.parametrize("count", [0, 1, 30, 1_000])
def test_every_rule_gives_other_unlabelled_images_and_the_same_ones_again(acquire: Acquire, count: int) -> None:
    given = pool()
    rows = acquire(given, count, seed=0)
    assert len(set(rows.tolist())) == len(rows) == min(count, 180)
    assert not given.labelled[rows].any()
    np.testing.assert_array_equal(rows, acquire(given, count, seed=0))


@pytest.mark.parametrize("acquire", NAMES)
def test_nothing_is_left_to_label(acquire: Acquire) -> None:
    given = pool()
    assert len(acquire(replace(given, labelled=np.ones(200, bool)), 5, seed=0)) == 0


@pytest.mark.parametrize("acquire", [central, k_center])
def test_the_first_images_are_of_all_clusters(acquire: Acquire) -> None:
    rows = acquire(replace(pool(), labelled=np.zeros(200, bool)), 4, seed=0)
    assert len(set((rows % 4).tolist())) == 4


@pytest.mark.parametrize("acquire", [margin, uncertainty])
def test_images_between_classes_come_before_sure_ones(acquire: Acquire) -> None:
    given = pool()
    given.features[5] = 3 * np.eye(4, 16, dtype=np.float32)[:2].sum(axis=0)
    given = replace(given, probabilities=given.predict(given.features))
    assert 5 in acquire(given, 20, seed=0)


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
    given = replace(given, labelled=np.zeros(200, bool), probabilities=given.predict(given.features))
    rows = diverse(given, 2, seed=0)
    assert sorted(row // 50 for row in rows) == [0, 1]
