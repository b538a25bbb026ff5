"""Confident learning: planted faults are found, and what cannot be judged is not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from polars.testing import assert_frame_equal
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from assay.errors import DataError
from assay.labels.space import Head
from assay.repair.confident_learning import FILTERS, Filter, HeadSuspects, Learnt, suspects

ONE = Head("kind", ("a", "b", "c", "d", "e"))
ANY = Head("tags", ("p", "q", "r", "s"), "multilabel")
LOGISTIC = LogisticRegression(max_iter=200)


def flipped(truth: Any, *, rate: Any, seed: int = 0) -> Any:
    """Labels of 5 classes, a share of them replaced by another class, each alike."""
    generator = np.random.default_rng(seed)
    wrong = generator.random(len(truth)) < rate
    return np.where(wrong, (truth + generator.integers(1, 5, len(truth))) % 5, truth)


@pytest.fixture(scope="module")
def mixture() -> Any:
    """A fifth of the labels flipped on 5 separable classes, and probabilities by cross-validation on them."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 5, 2000)
    features = 4 * np.eye(5)[truth] + generator.normal(0, 0.8, (2000, 5))
    codes = flipped(truth, rate=0.2)
    return truth, codes, cross_val_predict(LOGISTIC, features, codes, cv=5, method="predict_proba")


@pytest.fixture(scope="module")
def tagged() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tenth of the positives of 4 tags taken off, and as many negatives put on."""
    generator = np.random.default_rng(1)
    features = generator.normal(0, 1, (3000, 8))
    truth = (features[:, :4] + 0.2 * generator.normal(size=(3000, 4)) > [0, 0.5, 1, 1.3]).astype(np.int64)
    codes = truth.copy()
    for tag in range(4):
        positives, negatives = np.flatnonzero(truth[:, tag]), np.flatnonzero(truth[:, tag] == 0)
        count = len(positives) // 10
        codes[generator.choice(positives, count, replace=False), tag] = 0
        codes[generator.choice(negatives, count, replace=False), tag] = 1
    columns = [cross_val_predict(LOGISTIC, features, tag, cv=5, method="predict_proba")[:, 1] for tag in codes.T]
    return truth, codes, np.stack(columns, axis=1)


def rows_of(found: HeadSuspects) -> Any:
    return found.table["row"].to_numpy()


@pytest.mark.parametrize("filter_by", FILTERS)
def test_flipped_labels_are_found(mixture: Any, filter_by: Any) -> None:
    truth, codes, probabilities = mixture
    found = suspects(ONE, codes, probabilities, filter_by=filter_by)
    wrong = (truth != codes)[rows_of(found)]
    assert wrong.mean() > 0.9
    # Off the diagonal stand only images that the probabilities are confident of, so it finds fewer.
    assert wrong.sum() / (truth != codes).sum() > 0.9
    right_suggestion = np.array(ONE.classes)[truth[rows_of(found)]] == found.table["suggested"].to_numpy()
    assert right_suggestion.mean() > 0.9


def test_the_noise_is_estimated(mixture: Any) -> None:
    truth, codes, probabilities = mixture
    found = suspects(ONE, codes, probabilities)
    planted = np.zeros((5, 5))
    np.add.at(planted, (codes, truth), 1 / len(codes))
    assert found.n == len(codes)
    assert found.noise_rate == pytest.approx((truth != codes).mean(), abs=0.03)
    assert found.joint == pytest.approx(planted, abs=0.01)
    assert found.noise_matrix == pytest.approx(planted / planted.sum(axis=0), abs=0.04)
    assert [*found.noise_rates] == [*ONE.classes]
    assert [*found.noise_rates.values()] == pytest.approx(1 - np.diag(planted) / planted.sum(axis=1), abs=0.04)
    assert found.unjudged == ()


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_other_rates_of_noise(rate: float) -> None:
    generator = np.random.default_rng(3)
    truth = generator.integers(0, 5, 2000)
    features = 4 * np.eye(5)[truth] + generator.normal(0, 0.8, (2000, 5))
    codes = flipped(truth, rate=rate)
    found = suspects(ONE, codes, cross_val_predict(LOGISTIC, features, codes, cv=5, method="predict_proba"))
    assert found.noise_rate == pytest.approx((truth != codes).mean(), abs=0.03)


@pytest.mark.parametrize("filter_by", FILTERS)
def test_multiclass_heads_are_judged_as_cleanlab_does(mixture: Any, filter_by: Any) -> None:
    from cleanlab.count import estimate_joint
    from cleanlab.filter import find_label_issues

    _, codes, probabilities = mixture
    found = suspects(ONE, codes, probabilities, filter_by=filter_by)
    options = {"filter_by": FILTERS[filter_by], "return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    assert rows_of(found).tolist() == find_label_issues(codes, probabilities, **options).tolist()
    assert found.joint == pytest.approx(estimate_joint(codes, probabilities))


def test_planted_tags_are_found(tagged: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    truth, codes, probabilities = tagged
    found = suspects(ANY, codes, probabilities)
    wrong = truth != codes
    tags = found.table["tag"].replace_strict({name: place for place, name in enumerate(ANY.classes)}).to_numpy()
    hits = wrong[rows_of(found), tags]
    assert hits.mean() > 4 * wrong.mean()
    assert hits.mean() > 0.6
    assert hits.sum() / wrong.sum() > 0.6
    assert found.table["suggested"].to_list() == [str(1 - code) for code in codes[rows_of(found), tags]]


def test_the_noise_of_tags_is_estimated(tagged: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    truth, codes, probabilities = tagged
    found = suspects(ANY, codes, probabilities)
    assert found.n == codes.size
    assert found.joint.shape == (4, 2, 2)
    assert found.joint.sum(axis=(1, 2)) == pytest.approx(1)
    assert found.noise_matrix.sum(axis=1) == pytest.approx(1)
    assert found.joint[:, 1].sum(axis=1) == pytest.approx(codes.mean(axis=0))
    assert found.noise_rate == pytest.approx((truth != codes).mean(), abs=0.03)
    assert [*found.noise_rates.values()] == pytest.approx((truth != codes).mean(axis=0), abs=0.05)


def test_a_tag_is_judged_as_two_classes(tagged: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, codes, probabilities = tagged
    found = suspects(ANY, codes, probabilities)
    for place, tag in enumerate(ANY.classes):
        p = probabilities[:, place]
        alone = suspects(Head(tag, ("0", "1")), codes[:, place], np.stack((1 - p, p), axis=1))
        of_tag = found.table.filter(tag=tag)
        assert of_tag["row"].to_list() == alone.table["row"].to_list()
        assert found.counts[place].tolist() == alone.counts.tolist()


def test_unknown_labels_change_nothing(mixture: Any, tagged: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    for head, (_, codes, probabilities) in ((ONE, mixture), (ANY, tagged)):
        hidden = codes.copy()
        hidden[np.random.default_rng(0).random(len(codes)) < 0.5] = -1
        spoilt = probabilities.copy()
        spoilt[~head.known(hidden)] = np.nan  # an unlabelled image that could not be read
        kept = np.flatnonzero(head.known(hidden))
        found, alone = suspects(head, hidden, spoilt), suspects(head, codes[kept], probabilities[kept])
        assert rows_of(found).tolist() == kept[rows_of(alone)].tolist()
        assert found.counts.tolist() == alone.counts.tolist()
        assert (np.isnan(found.quality) == (hidden < 0)).all()


def test_half_known_tags(tagged: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, codes, probabilities = tagged
    hidden = np.where(np.random.default_rng(0).random(codes.shape) < 0.3, -1, codes)
    found = suspects(ANY, hidden, probabilities)
    tags = found.table["tag"].replace_strict({name: place for place, name in enumerate(ANY.classes)}).to_numpy()
    assert len(tags) > 100
    assert (hidden[rows_of(found), tags] >= 0).all()
    assert found.n == (hidden >= 0).sum()


def test_classes_that_never_occur(mixture: Any) -> None:
    _, codes, probabilities = mixture
    wide = Head("kind", ("x", "a", "b", "y", "c", "d", "e"))
    place = np.array([1, 2, 4, 5, 6])
    spread = np.full((len(codes), 7), 0.01)
    spread[:, place] = probabilities
    found, narrow = suspects(wide, place[codes], spread), suspects(ONE, codes, probabilities)
    assert_frame_equal(found.table, narrow.table)
    assert found.counts[np.ix_(place, place)].tolist() == narrow.counts.tolist()
    assert found.n == narrow.n
    assert found.unjudged == ("x", "y")
    assert [*found.noise_rates] == [*ONE.classes]


def test_a_class_with_too_few_labels_is_not_judged(mixture: Any) -> None:
    _, codes, probabilities = mixture
    few = np.flatnonzero(codes == 2)[4:]
    codes = codes.copy()
    codes[few] = -1
    found = suspects(ONE, codes, probabilities, least=5)
    assert found.unjudged == ("c",)
    assert "c" not in {*found.table["given"], *found.table["suggested"]}
    assert found.n == (codes >= 0).sum() - 4
    assert not np.isnan(found.quality[codes == 2]).any()
    assert suspects(ONE, codes, probabilities, least=4).unjudged == ()


def test_a_tag_that_all_or_few_have_is_not_judged(tagged: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, codes, probabilities = tagged
    codes = codes.copy()
    codes[:, 0], codes[:, 1], codes[4:, 2] = 1, -1, 0
    found = suspects(ANY, codes, probabilities)
    assert found.unjudged == ("p", "q", "r")
    assert set(found.table["tag"]) == {"s"}
    assert [*found.noise_rates] == ["s"]
    assert found.n == len(codes)


@pytest.mark.parametrize("head", [ONE, ANY], ids=["multiclass", "multilabel"])
def test_one_class_only(head: Head) -> None:
    codes = np.ones((50,) if head is ONE else (50, 4), np.int64)
    found = suspects(head, codes, np.random.default_rng(0).random((50, head.size)))
    assert found.table.is_empty()
    assert (found.n, found.noise_rate, found.noise_rates) == (0, None, {})
    assert found.unjudged == head.classes
    assert not found.joint.any()


@pytest.mark.parametrize("filter_by", FILTERS)
def test_probabilities_that_are_all_equal_judge_nothing(
    mixture: Any, tagged: tuple[np.ndarray, np.ndarray, np.ndarray], filter_by: Any
) -> None:
    for head, (_, codes, _) in ((ONE, mixture), (ANY, tagged)):
        for row in (np.full(head.size, 0.2), np.linspace(0.05, 0.35, head.size)):
            found = suspects(head, codes, np.tile(row, (len(codes), 1)), filter_by=filter_by)
            assert found.table.is_empty()
            assert found.noise_rate is None


@pytest.mark.parametrize("head", [ONE, ANY], ids=["multiclass", "multilabel"])
def test_nothing_known(head: Head) -> None:
    with pytest.raises(DataError, match=f"No label is known under head '{head.name}'"):
        suspects(head, head.unknown(10), np.full((10, head.size), 0.2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.5])
def test_no_probabilities(mixture: Any, value: Any) -> None:
    _, codes, probabilities = mixture
    spoilt = probabilities.copy()
    spoilt[[17, 30], 3] = value
    with pytest.raises(DataError, match=r"'kind', row 17: .* no numbers from 0 to 1 \(2 such rows\)"):
        suspects(ONE, codes, spoilt)


def test_float32_and_order_change_nothing_but_rows(mixture: Any) -> None:
    _, codes, probabilities = mixture
    single = probabilities.astype(np.float32)
    found = suspects(ONE, codes, single)
    order = np.random.default_rng(0).permutation(len(codes))
    moved = suspects(ONE, codes[order], single[order])
    assert order[rows_of(moved)].tolist() == rows_of(found).tolist()
    assert_frame_equal(moved.table.drop("row"), found.table.drop("row"))
    assert_frame_equal(suspects(ONE, codes, single).table, found.table)


def test_cleanlab_keeps_no_copy_of_the_probabilities(mixture: Any) -> None:
    from cleanlab import filter as cleanlab_filter

    _, codes, probabilities = mixture
    suspects(ONE, codes, probabilities)
    assert not hasattr(cleanlab_filter, "pred_probs_by_class")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), head=st.sampled_from([ONE, ANY]), filter_by=st.sampled_from([*FILTERS]), n=st.integers(1, 40))
def test_what_always_holds(data: st.DataObject, head: Any, filter_by: Any, n: int) -> None:
    multiclass = head is ONE
    codes = data.draw(arrays(np.int64, n if multiclass else (n, 4), elements=st.integers(-1, 4 if multiclass else 1)))
    logits = data.draw(arrays(np.float32, (n, head.size), elements=st.floats(-6, 6, width=32)))
    probabilities = softmax(logits, axis=1) if multiclass else expit(logits)
    if not head.known(codes).any():
        return
    found = suspects(head, codes, probabilities, filter_by=filter_by, least=2)
    table = found.table
    assert table.columns == ["row", "tag", "given", "suggested", "quality", "confidence", "wrong"]
    assert not table.select("row", "tag").is_duplicated().any()
    assert table["quality"].is_sorted()
    assert table["wrong"].is_between(0, 1).all()
    assert (table["confidence"] >= table["quality"]).all()
    assert (table["given"] != table["suggested"]).all()
    assert (found.quality >= 0).sum() == (codes >= 0).sum()
    for row, tag, given_label in table.select("row", "tag", "given").iter_rows():
        known = codes[row] if multiclass else codes[row, head.index[tag]]
        assert given_label == (head.classes[known] if multiclass else str(known))
    labels = [codes] if multiclass else [*codes.T]
    for counts, of_labels in zip([found.counts] if multiclass else found.counts, labels, strict=True):
        occurring = np.bincount(of_labels[of_labels >= 0], minlength=len(counts))
        for total, all_labels in zip(counts.sum(axis=1), occurring, strict=True):
            assert total in (0, all_labels)


@pytest.mark.parametrize("filter_by", FILTERS)
@pytest.mark.parametrize("classes", [range(5), (0, 1), (2,)])
def test_a_held_out_label_is_judged_by_the_training_images(filter_by: Filter, classes: Collection[int]) -> None:
    """Also where the held-out lack classes, and where one alone is left of a class: what it is called is no matter."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 5, 300)
    probabilities = 0.8 * np.eye(5)[truth] + 0.2 * generator.dirichlet(np.ones(5), 300)
    held = np.flatnonzero(np.isin(truth[:60], list(classes)))
    given = truth[held].copy()
    given[0] = (given[0] + 1) % 5
    probabilities[held[0]] = 0.95 * np.eye(5)[truth[held[0]]] + 0.01
    learnt = Learnt(truth[60:], probabilities[60:])
    found = suspects(ONE, given, probabilities[held], filter_by=filter_by, least=5, learnt=learnt)
    assert found.table.select("row", "suggested").rows() == [(0, ONE.classes[truth[held[0]]])]
    alone = suspects(ONE, given[:1], probabilities[held[:1]], filter_by=filter_by, least=5, learnt=learnt)
    assert alone.table["row"].to_list() == [0]
