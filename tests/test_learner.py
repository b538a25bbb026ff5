"""Learning from decisions: no label is judged by a model that learnt it, and the background thread."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from assay.apps.review.learner import Background, Labels, Learner, Learnt
from assay.arrays import Floats, Ints
from assay.labels.space import Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.training.fold_linear import Components, fit_folds, fold_logits

ONE = Head("kind", ("a", "b", "c"))
TAGS = Head("tags", ("x", "y"), "multilabel")
SPACE = LabelSpace((ONE, TAGS))


def features_and_truth(count: int = 300) -> tuple[Floats, Ints]:
    chance = np.random.default_rng(0)
    truth = np.arange(count) % 3
    features = chance.normal(size=(count, 12)) + 4 * np.eye(3, 12)[truth]
    return features.astype(np.float32), truth


def labels_of(truth: Ints, wrong: Ints) -> Labels:
    """Return labels of which those of some rows are of the next class; tag x is class a, and y is unknown."""
    given = truth.copy()
    given[wrong] = (given[wrong] + 1) % 3
    tags = np.stack([(truth == 0).astype(np.int64), np.full(len(truth), -1)], axis=1)
    return Labels((given, tags), (given, tags), (np.zeros(len(given), bool), np.zeros(tags.shape, bool)))


def decide(labels: Labels, rows: Ints, truth: Ints) -> Labels:
    now, decided = labels.now[0].copy(), labels.decided[0].copy()
    now[rows], decided[rows] = truth[rows], True
    return replace(labels, now=(now, labels.now[1]), decided=(decided, labels.decided[1]))


def test_the_fit_is_the_logistic_regression_of_the_other_folds() -> None:
    features, truth = features_and_truth()
    space, fold = LabelSpace((ONE,)), np.arange(300) % 5
    components = Components.of(features, 12)
    targets, weights = np.eye(3, dtype=np.float32)[truth], np.ones((300, 3), np.float32)
    coefficients = fit_folds(space, components, targets, weights, fold, penalty=100.0, iterations=200)
    logits = fold_logits(components, coefficients, fold)
    standard = (features - features.mean(0)) / features.std(0)
    model = LogisticRegression(C=0.01, tol=1e-6, max_iter=500).fit(standard[fold != 2], truth[fold != 2])
    ours = probabilities_of(space, logits)[fold == 2]
    np.testing.assert_allclose(ours, softmax(model.decision_function(standard[fold == 2]), axis=1), atol=2e-3)


def test_wrong_labels_come_first_and_their_suggestion_is_right() -> None:
    features, truth = features_and_truth()
    wrong = np.array([3, 50, 121, 200])
    learnt = Learner(SPACE, features, np.arange(300) % 5).learn(labels_of(truth, wrong))
    assert set(np.argsort(-learnt.wrong[0])[:20].tolist()) >= set(wrong.tolist())
    assert (learnt.suggested[0][wrong] == truth[wrong]).all()
    assert np.isnan(learnt.wrong[1][:, 1]).all()


def test_a_label_is_not_judged_by_a_model_that_learnt_it() -> None:
    features, truth = features_and_truth()
    fold = np.arange(300) % 5
    one, other = (
        Learner(SPACE, features, fold).learn(labels_of(truth, rows)) for rows in (np.array([7]), np.zeros(0, int))
    )
    np.testing.assert_allclose(one.probabilities[7], other.probabilities[7], atol=1e-4)  # only line searches are shared


def test_what_is_left_is_of_labels_that_nobody_decided() -> None:
    features, truth = features_and_truth()
    wrong = np.arange(0, 300, 5)
    learner, labels = Learner(SPACE, features, np.arange(300) % 4), labels_of(truth, wrong)
    before = learner.learn(labels)
    after = learner.learn(decide(labels, wrong[:40], truth))
    assert before.left is not None
    assert after.left is not None
    assert after.left.n == before.left.n - 40


def test_images_of_no_fold_teach_nothing() -> None:
    features, truth = features_and_truth()
    fold = np.where(np.arange(300) < 100, -1, np.arange(300) % 5)
    some, more = labels_of(truth, np.zeros(0, int)), labels_of(truth, np.arange(100))
    one, other = (Learner(SPACE, features, fold).learn(labels).probabilities for labels in (some, more))
    np.testing.assert_allclose(one[100:], other[100:], atol=1e-5)


@pytest.fixture
def learner() -> Learner:
    return Learner(SPACE, features_and_truth()[0], np.arange(300) % 5)


def test_the_thread_learns_when_woken_and_ends(learner: Learner) -> None:
    labels, done, versions = labels_of(features_and_truth()[1], np.array([1])), threading.Event(), []

    def publish(version: int, learnt: Learnt) -> None:
        versions.append(version)
        done.set()

    thread = Background(learner, lambda: (7, labels), publish)
    thread.wake()
    assert done.wait(10)
    thread.close()
    assert versions == [7]
    assert thread.failure is None
