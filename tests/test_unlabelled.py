"""Which answers are learnt from: pure rules, held against the published ones, for every kind of head."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from assay.images.augment import Augment, Erase, RandAugment, SomeOf
from assay.labels.space import Head
from assay.training.semi_supervised import (
    STRONG,
    PseudoLabelSelector,
    UnlabelledSettings,
    best_values,
    flexible,
    learnable_values,
    value_counts,
    value_index,
)

KIND = Head("kind", ("a", "b", "c"))
TAGS = Head("tags", ("x", "y", "z"), "multilabel")
FLEX = UnlabelledSettings(method="flexmatch", threshold=0.8)
FIX = UnlabelledSettings(threshold=0.8)
ALL = np.array([0, 1, 2])
EVERY_TAG = np.array([[0, 1, 0], [1, 0, 1]])
each_head = pytest.mark.parametrize("head", [KIND, TAGS], ids=["multiclass", "multilabel"])
each_method = pytest.mark.parametrize("settings", [FIX, FLEX], ids=["fixmatch", "flexmatch"])


def random_codes(head: Head, count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    multiclass = head.kind == "multiclass"
    return generator.integers(-1, 3 if multiclass else 2, count if multiclass else (count, 3))


def random_probabilities(head: Head, count: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).beta(0.3, 0.3, (count, 3))
    return found / found.sum(axis=1, keepdims=True) if head.kind == "multiclass" else found


def known(head: Head) -> np.ndarray:
    return ALL if head.kind == "multiclass" else EVERY_TAG


def published(newest: np.ndarray, classes: int, threshold: float) -> np.ndarray:
    """FlexMatch's thresholds as its authors' code works them out, waiting images counted as a class -1."""
    counter = Counter(newest.tolist())
    accuracy = np.array([counter[number] / max(counter.values()) for number in range(classes)])
    return threshold * accuracy / (2 - accuracy)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("waiting", [0, 5, 60])
def test_thresholds_of_classes_are_those_of_the_published_code(seed: int, waiting: int) -> None:
    newest = np.concatenate([np.random.default_rng(seed).integers(0, 4, 30), np.full(waiting, -1)])
    sure = np.bincount(newest[newest >= 0], minlength=4)[None]
    found = flexible(sure, np.array([waiting]), threshold=0.95, shares=np.full((1, 4), 0.25))
    np.testing.assert_allclose(found[0], published(newest, 4, 0.95))


def test_thresholds_begin_at_nothing_and_the_class_learnt_best_has_the_whole() -> None:
    even = np.full((1, 3), 1 / 3)
    assert flexible(np.zeros((1, 3), int), np.array([10]), threshold=0.9, shares=even).tolist() == [[0, 0, 0]]
    assert flexible(np.array([[6, 3, 0]]), np.array([1]), threshold=0.9, shares=even)[0] == pytest.approx([0.9, 0.3, 0])
    assert flexible(np.zeros((1, 3), int), np.array([0]), threshold=0.9, shares=even).tolist() == [[0, 0, 0]]


def test_a_rare_tag_found_as_often_as_it_occurs_is_learnt_as_far_as_its_absence() -> None:
    found = flexible(np.array([[95, 5]]), np.array([0]), threshold=0.9, shares=np.array([[0.95, 0.05]]))
    assert found[0] == pytest.approx([0.9, 0.9])


@each_head
def test_answers_are_the_likeliest_values_and_how_likely_they_are(head: Head) -> None:
    probabilities = random_probabilities(head, 50, 0)
    codes, confidence = best_values(head, probabilities)
    for row, column in np.ndindex(probabilities.shape):
        p = probabilities[row, column]
        if head.kind == "multiclass":
            assert probabilities[row, codes[row]] == confidence[row] >= p
        else:
            assert codes[row, column] == (p >= 0.5)
            assert confidence[row, column] == max(p, 1 - p)


@each_head
def test_counts_are_of_known_codes_alone(head: Head) -> None:
    codes = random_codes(head, 40, 1)
    expected = np.zeros(3 if head.kind == "multiclass" else 6, int)
    for place in value_index(head, codes)[codes >= 0]:
        expected[place] += 1
    assert value_counts(head, codes).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("head", "codes", "expected"),
    [
        (KIND, [0, 2, -1], [True, False, True]),
        (KIND, [1, 1, -1], [False, False, False]),  # one class alone teaches nothing
        (TAGS, [[1, 0, -1], [0, 0, -1]], [True, True, False, False, False, False]),
    ],
)
def test_what_labels_can_teach(head: Head, codes: list[int], expected: list[bool]) -> None:
    assert learnable_values(head, np.array(codes)).tolist() == expected


@each_head
@each_method
def test_a_known_label_is_never_answered(head: Head, settings: UnlabelledSettings) -> None:
    codes = random_codes(head, 60, 2)
    judge = PseudoLabelSelector(head, known(head), codes, settings)
    for seed in range(10):
        rows = np.random.default_rng(seed).permutation(60)[:20]
        chosen = judge.choose(rows, random_probabilities(head, 20, seed))
        assert (chosen[codes[rows] >= 0] == -1).all()
        assert (judge.newest[codes >= 0] == -1).all()


@each_head
@each_method
def test_what_no_label_teaches_is_never_answered(head: Head, settings: UnlabelledSettings) -> None:
    lacking = np.array([0, 1, 0]) if head.kind == "multiclass" else np.array([[0, 1, 0], [1, 0, 0]])
    judge = PseudoLabelSelector(head, lacking, head.unknown(50), settings)
    chosen = judge.choose(np.arange(50), random_probabilities(head, 50, 3))
    assert (chosen >= 0).any()
    assert not (chosen == 2).any() if head.kind == "multiclass" else (chosen[:, 2] == -1).all()


@each_head
def test_one_threshold_for_all(head: Head) -> None:
    probabilities = random_probabilities(head, 50, 4)
    codes, confidence = best_values(head, probabilities)
    chosen = PseudoLabelSelector(head, known(head), head.unknown(50), FIX).choose(np.arange(50), probabilities)
    assert 0 < (chosen >= 0).sum() < chosen.size
    assert (chosen == np.where(confidence >= 0.8, codes, -1)).all()


@each_head
def test_what_cannot_be_answered_is_not_learnt_from(head: Head) -> None:
    judge = PseudoLabelSelector(head, known(head), head.unknown(4), FIX)
    assert (judge.choose(np.arange(4), np.full((4, 3), np.nan)) == -1).all()


@each_head
def test_thresholds_follow_what_was_answered_before_this_optimiser_step(head: Head) -> None:
    judge = PseudoLabelSelector(head, known(head), head.unknown(40), FLEX)
    first = judge.choose(np.arange(20), random_probabilities(head, 20, 5))
    assert (first >= 0).all()  # thresholds begin at nothing
    codes, confidence = best_values(head, random_probabilities(head, 20, 5))
    assert (judge.newest[:20] == np.where(confidence >= 0.8, codes, -1)).all()
    assert (judge.newest[20:] == -1).all()
    before = judge.thresholds()
    probabilities = random_probabilities(head, 20, 6)
    codes, confidence = best_values(head, probabilities)
    chosen = judge.choose(np.arange(20, 40), probabilities)
    assert (chosen == np.where(confidence >= before[value_index(head, codes)], codes, -1)).all()
    assert (judge.thresholds() > 0).any()


def test_an_answer_that_is_sure_no_more_still_counts_as_it_was_last() -> None:
    judge = PseudoLabelSelector(KIND, ALL, KIND.unknown(2), FLEX)
    judge.choose(np.array([0]), np.array([[0.9, 0.05, 0.05]]))
    judge.choose(np.array([0]), np.array([[0.4, 0.5, 0.1]]))
    assert judge.newest.tolist() == [0, -1]
    judge.choose(np.array([0]), np.array([[0.05, 0.9, 0.05]]))
    assert judge.newest.tolist() == [1, -1]


def test_names_tell_the_values_of_tags_apart() -> None:
    assert PseudoLabelSelector(KIND, ALL, KIND.unknown(1), FIX).names() == ["kind/a", "kind/b", "kind/c"]
    names = PseudoLabelSelector(TAGS, EVERY_TAG, TAGS.unknown(1), FIX).names()
    assert names[:3] == ["tags/x absent", "tags/x present", "tags/y absent"]


def test_a_strong_view_is_a_weak_one_and_more() -> None:
    own = Augment(flip="horizontal", crop=(0.5, 1.0))
    weak, strong = UnlabelledSettings().views(own)
    assert weak == own
    assert strong == Augment(flip="horizontal", crop=(0.5, 1.0), **STRONG)
    assert strong.rand_augment == RandAugment(n=2, magnitude="random")
    assert isinstance(strong.erase, Erase)


def test_either_view_may_be_given() -> None:
    some = Augment(some_of=SomeOf(n=1, operations=("rotate", "solarize")))
    weak, strong = UnlabelledSettings(weak=some).views(Augment(flip="both"))
    assert weak == some
    assert strong == Augment(**STRONG)  # an image's operations are of one list
    assert UnlabelledSettings(strong=some).views(None) == (None, some)


@pytest.mark.parametrize(
    "wrong", [{"method": "mixmatch"}, {"threshold": 0}, {"threshold": 1}, {"ratio": 0}, {"weight": 0}, {"tau": 1}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        UnlabelledSettings(**wrong)
