"""Labels judged by the nearest images in feature space."""

from __future__ import annotations

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from assay.errors import DataError
from assay.labels.space import Head
from assay.repair import confident_learning, neighbours
from assay.repair.confident_learning import HeadSuspects
from assay.repair.neighbours import posterior

ONE = Head("kind", ("a", "b", "c", "d", "e"))
ANY = Head("tags", ("p", "q", "r"), "multilabel")


def suspects(head: Head, codes: np.ndarray, features: np.ndarray, **options: int) -> HeadSuspects:
    return confident_learning.suspects(head, codes, posterior(head, codes, features, **options))


@pytest.fixture(scope="module")
def mixture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A fifth of the labels flipped on 5 clouds in 16 dimensions of different scales."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 5, 1500)
    features = 5 * np.eye(5, 16)[truth] + generator.normal(0, 0.8, (1500, 16))
    wrong = generator.random(1500) < 0.2
    codes = np.where(wrong, (truth + generator.integers(1, 5, 1500)) % 5, truth)
    return truth, codes, (features * 10.0 ** generator.integers(-3, 4, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def tagged() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    truth = (generator.random((1500, 3)) < [0.5, 0.3, 0.15]).astype(np.int64)
    features = 5 * np.pad(truth, ((0, 0), (0, 9))) + generator.normal(0, 0.8, (1500, 12))
    codes = truth.copy()
    for tag in range(3):
        positives, negatives = np.flatnonzero(truth[:, tag]), np.flatnonzero(truth[:, tag] == 0)
        count = len(positives) // 10
        codes[generator.choice(positives, count, replace=False), tag] = 0
        codes[generator.choice(negatives, count, replace=False), tag] = 1
    return truth, codes, features.astype(np.float32)


def test_flipped_labels_are_found(mixture: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    truth, codes, features = mixture
    found = suspects(ONE, codes, features)
    wrong = (truth != codes)[found.table["row"].to_numpy()]
    assert wrong.mean() > 0.9
    assert wrong.sum() / (truth != codes).sum() > 0.9
    assert found.noise_rate == pytest.approx((truth != codes).mean(), abs=0.03)


def test_planted_tags_are_found(tagged: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    truth, codes, features = tagged
    found = suspects(ANY, codes, features)
    tags = found.table["tag"].replace_strict({name: place for place, name in enumerate(ANY.classes)}).to_numpy()
    wrong = truth != codes
    hits = wrong[found.table["row"].to_numpy(), tags]
    assert hits.mean() > 4 * wrong.mean()
    assert hits.sum() / wrong.sum() > 0.8


def test_the_posterior_is_what_a_loop_finds(
    mixture: tuple[np.ndarray, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codes, features = mixture
    codes, features = codes[:300], features[:300]
    monkeypatch.setattr(neighbours, "BLOCK", 7 * 300)  # blocks of 7 rows, the last one shorter
    found = posterior(ONE, codes, features, neighbours=10)
    vectors = (features - features.mean(axis=0)) / features.std(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    prior = np.bincount(codes, minlength=5) / 300
    for row in range(300):
        cosines = vectors @ vectors[row]
        cosines[row] = -np.inf
        nearest = np.argsort(-cosines)[:10]
        weights = (1 + cosines[nearest]) / 2
        votes = np.bincount(codes[nearest], weights, minlength=5)
        assert found[row] == pytest.approx((votes + prior) / (weights.sum() + 1), abs=1e-5)


def test_probabilities_sum_to_one_and_unlabelled_images_have_none(
    mixture: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    _, codes, features = mixture
    hidden = np.where(np.arange(len(codes)) % 3 == 0, -1, codes)
    found = posterior(ONE, hidden, features)
    assert np.isnan(found[hidden < 0]).all()
    assert found[hidden >= 0].sum(axis=1) == pytest.approx(1, abs=1e-5)
    kept = np.flatnonzero(hidden >= 0)
    assert found[kept] == pytest.approx(posterior(ONE, codes[kept], features[kept]), abs=1e-5)
    moved = np.where((hidden < 0)[:, None], np.float32(np.nan), features)  # unreadable, but unlabelled too
    table = suspects(ONE, hidden, moved).table
    assert_frame_equal(table, suspects(ONE, hidden, features).table)
    assert (hidden[table["row"].to_numpy()] >= 0).all()


def test_copies_do_not_judge_each_other() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 5, 400)
    features = (5 * np.eye(5, 16)[truth] + generator.normal(0, 0.8, (400, 16))).astype(np.float32)
    codes = truth.copy()
    codes[0] = (truth[0] + 1) % 5
    places = np.concatenate((np.arange(400), np.zeros(30, np.int64)))  # 30 copies, all with the same wrong label
    jitter = 1 + 1e-7 * generator.normal(size=(430, 1)).astype(np.float32)  # as of another batch
    found = suspects(ONE, codes[places], features[places] * jitter)
    assert {0, *range(400, 430)} <= set(found.table["row"])
    assert set(found.table.filter(row=0)["suggested"]) == {ONE.classes[truth[0]]}


def test_a_tag_of_which_no_neighbour_knows_has_its_prior() -> None:
    generator = np.random.default_rng(0)
    features = np.concatenate((generator.normal(0, 1, (60, 8)) + 9, generator.normal(0, 1, (60, 8)) - 9))
    codes = generator.integers(0, 2, (120, 3))
    codes[:60, 2] = -1
    found = posterior(ANY, codes, features, neighbours=10)
    assert found[:60, 2] == pytest.approx(codes[60:, 2].mean())
    assert np.ptp(found[60:, 2]) > 0.2


def test_images_that_are_all_alike_judge_nothing(mixture: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, codes, _ = mixture
    found = suspects(ONE, codes, np.full((len(codes), 8), 0.1, np.float32))
    assert found.table.is_empty()
    assert found.noise_rate is None


def test_few_images(mixture: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, codes, features = mixture
    found = suspects(ONE, codes[:3], features[:3], neighbours=20)
    assert found.table.is_empty()
    assert suspects(ONE, codes[:1], features[:1]).n == 0


def test_nothing_known(mixture: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    with pytest.raises(DataError, match="No label is known under head 'kind'"):
        suspects(ONE, ONE.unknown(1500), mixture[2])


def test_features_that_are_no_numbers(mixture: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, codes, features = mixture
    spoilt = features.copy()
    spoilt[[5, 9], 2] = np.nan
    with pytest.raises(DataError, match=r"'kind', row 5: .* no finite numbers \(2 such rows\)"):
        suspects(ONE, codes, spoilt)


def test_the_features_stay_as_they_are(mixture: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, codes, features = mixture
    before = features.copy()
    first, again = suspects(ONE, codes, features), suspects(ONE, codes, features)
    assert (features == before).all()
    assert_frame_equal(first.table, again.table)


def test_held_out_images_are_asked_of_all_others(mixture: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, codes, features = mixture
    held = np.arange(len(codes)) % 5 == 0
    alone = posterior(ONE, codes[~held], features[~held], held=features[held])
    assert (alone.argmax(axis=1) == codes[held]).mean() > 0.7
    # The labels of the held-out are unknown to it, so that an image asked beside the others answers the same.
    for row in (0, 7):
        one = posterior(ONE, codes[~held], features[~held], held=features[held][row : row + 1])
        np.testing.assert_allclose(one[0], alone[row], rtol=1e-5)
    assert np.isnan(posterior(ONE, ONE.unknown(10), features[:10], held=features[:2])).all()
