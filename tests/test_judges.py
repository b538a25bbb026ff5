"""Judges on features: whether labels that are repaired teach held-out ones better is told from chance."""

from __future__ import annotations

import numpy as np
import pytest

from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.split import folds
from assay.repair.confident_learning import beats_chance
from assay.repair.judges import Probabilities, _left_out, gains_of_repair, mean_posterior
from assay.repair.suspects import find_suspects, judgeable, soft_labels
from factories import make_samples

EACH, CLASSES = 60, 3


def labelled(codes: np.ndarray) -> Samples:
    head = Head("kind", tuple("abc"))
    rows = [{"id": f"{number:04d}", "kind": head.classes[code]} for number, code in enumerate(codes.tolist())]
    return make_samples(rows, head)


def judged(codes: np.ndarray, truth: np.ndarray, *, apart: float) -> tuple[Samples, np.ndarray, Probabilities]:
    generator = np.random.default_rng(1)
    features = generator.normal(size=(len(codes), 40)) + apart * np.eye(CLASSES, 40)[truth]
    samples = labelled(codes)
    fold = folds(samples, 4, seed=0)
    none = np.zeros((0, 40), np.float32)
    return samples, fold, mean_posterior(samples, features.astype(np.float32), fold, held=none, neighbours=9, seed=0)


def flipped(truth: np.ndarray, share: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    wrong = generator.random(len(truth)) < share
    return np.where(wrong, (truth + generator.integers(1, CLASSES, len(truth))) % CLASSES, truth)


TRUTH = np.repeat(np.arange(CLASSES), EACH)


@pytest.mark.parametrize(
    ("share", "apart", "better"),
    [(0.0, 4.0, False), (0.0, 1.5, False), (0.3, 4.0, True), (0.66, 4.0, False)],
    ids=["right", "right and hard", "wrong", "wrong as often as by chance"],
)
def test_repaired_labels_teach_better_where_labels_are_wrong_and_not_where_images_are_hard(
    share: float, apart: float, better: bool
) -> None:
    codes = flipped(TRUTH, share)
    samples, fold, answers = judged(codes, TRUTH, apart=apart)
    (gain,) = answers.gains
    assert gain is not None
    assert gain.low is not None
    assert (gain.low > 0) == better
    assert gain.n == len(codes)
    (suspects,) = find_suspects(samples, answers.train, fold, filter_by="class")
    if (share, apart) == (0.0, 1.5):
        assert suspects.noise_rate is not None
        assert suspects.noise_rate > 0.15  # the estimate alone would have called these labels wrong
    assert beats_chance(samples.space.heads[0], codes, answers.train) == (share < 0.6)


HALVES = np.minimum(TRUTH, 1)  # two classes that there are
ONE_IMAGE = np.where(np.arange(len(TRUTH)) == 0, 2, HALVES)  # the only label of the last class, and wrong
ALL_WRONG = np.where(np.arange(len(TRUTH)) % 12 == 0, 2, HALVES)  # 15 labels of the last class, all of them wrong


def test_labels_of_one_class_have_nothing_suspect() -> None:
    samples, fold, answers = judged(np.zeros_like(TRUTH), TRUTH, apart=4.0)
    (gain,) = answers.gains
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)
    (suspects,) = find_suspects(samples, answers.train, fold, filter_by="class")
    assert suspects.table.height == 0


def test_a_class_of_one_image_is_not_judged_and_keeps_its_label() -> None:
    samples, fold, answers = judged(ONE_IMAGE, HALVES, apart=4.0)
    (suspects,) = find_suspects(samples, answers.train, fold, filter_by="class")
    assert suspects.unjudged == ("c",)
    assert 0 not in suspects.table["row"]
    assert "c" not in suspects.table["suggested"]
    (codes,) = judgeable(samples, fold)
    assert np.flatnonzero(codes < 0).tolist() == [0]  # no soft label is written of it


def test_of_a_class_whose_labels_are_all_wrong_most_are_suspect_and_count_little() -> None:
    samples, fold, answers = judged(ALL_WRONG, HALVES, apart=4.0)
    (head,), (gain,) = samples.space, answers.gains
    assert gain is not None
    assert np.isfinite([gain.value, gain.low, gain.high]).all()
    (suspects,) = find_suspects(samples, answers.train, fold, filter_by="class")
    hits = ALL_WRONG[suspects.table["row"].to_numpy()] == 2
    assert hits.sum() >= 12
    assert np.count_nonzero(~hits) <= 8  # of 165 right ones
    targets = soft_labels(head, ALL_WRONG, answers.train, answer="wrong")
    assert targets.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert targets[ALL_WRONG == 2, 2].mean() < 0.2
    assert targets[np.arange(len(TRUTH)), HALVES][ALL_WRONG < 2].mean() > 0.95


def test_most_labels_moved_to_the_next_class_are_taken_for_the_right_ones() -> None:
    """Beyond one half it is the right labels that are suspect, and the estimate is the share of these."""
    truth = np.tile(TRUTH, 2)
    moved = np.random.default_rng(5).random(len(truth)) < 0.71
    samples, fold, answers = judged(np.where(moved, (truth + 1) % CLASSES, truth), truth, apart=5.0)
    (suspects,) = find_suspects(samples, answers.train, fold, filter_by="class")
    rows = np.isin(np.arange(len(truth)), suspects.table["row"].to_numpy())
    assert rows[~moved].mean() > 0.75
    assert rows[moved].mean() < 0.15
    assert suspects.noise_rate == pytest.approx(0.29, abs=0.05)


def test_a_gain_is_of_known_labels_and_counts_every_tag() -> None:
    one, tags = Head("kind", ("a", "b")), Head("tags", ("x", "y"), "multilabel")
    rows: list[dict[str, object]] = [
        {"id": "0", "kind": "a", "tags": ["x"]},
        {"id": "1", "kind": "b", "tags": ["x"], "unknown tags": ["y"]},
        {"id": "2", "kind": None, "tags": None},
    ]
    before = np.array([[0.1, 0.9, 0.9, 0.9], [0.9, 0.1, 0.1, 0.1], [0.9, 0.1, 0.9, 0.9]], np.float32)
    after = np.array([[0.9, 0.1, 0.9, 0.1], [0.9, 0.1, 0.9, 0.9], [0.1, 0.9, 0.1, 0.1]], np.float32)
    kind, tagged = gains_of_repair(make_samples(rows, one, tags), before, after)
    assert kind is not None
    assert tagged is not None
    assert (kind.value, kind.n) == (0.5, 2)
    assert (tagged.value, tagged.n) == (0.75, 2)  # of the first image one tag of two more, of the second its only one
    assert gains_of_repair(make_samples(rows[2:], one, tags), before[2:], after[2:]) == (None, None)
    kind, tagged = gains_of_repair(make_samples(rows, one, tags), before, after, before)
    assert kind is not None
    assert kind.value == 0  # another repair gains nothing


def test_labels_that_a_confident_answer_contradicts_are_left_out() -> None:
    codes = np.array([0, 0, 0, 1, 1, -1])
    answers = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7], [0.55, 0.45], [0.1, 0.9]], np.float32)
    targets, weights = _left_out(Head("kind", ("a", "b")), codes, answers)
    assert targets.argmax(axis=1).tolist()[:5] == codes.tolist()[:5]
    assert weights[:5, 0].tolist() == [1, 1, 0, 1, 1]  # of the fifth no answer is confident
    tags = np.array([[1, 0], [1, 1], [0, -1], [1, 1]])
    answers = np.array([[0.9, 0.9], [0.1, 0.8], [0.2, 0.5], [0.8, 0.7]], np.float32)
    targets, weights = _left_out(Head("tags", ("x", "y"), "multilabel"), tags, answers)
    assert targets.tolist() == [[1, 0], [1, 1], [0, 0], [1, 1]]
    assert weights[:, 0].tolist() == [1, 0, 1, 1]  # the second has the tag, and less of it than those without
    assert weights[0, 1] == 0
