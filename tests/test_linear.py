from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from assay.labels.space import Head, LabelSpace
from assay.training import linear
from assay.training.linear import STRENGTHS, find_strengths, fit_linear

KIND = Head("kind", ("a", "b", "c"))
TAGS = Head("tags", ("p", "q", "r"), "multilabel")
BOTH = LabelSpace((KIND, TAGS))


def planted(count: int = 300, width: int = 40, *, seed: int = 0, signal: float = 1.0) -> Any:
    """Features of which the first few tell the labels; a third of the labels unknown."""
    generator = np.random.default_rng(seed)
    codes = [generator.integers(0, 3, count), generator.integers(0, 2, (count, 3))]
    features = generator.normal(3, 2, (count, width)).astype(np.float32)
    features[:, :3] += signal * np.eye(3, dtype=np.float32)[codes[0]] * 4
    features[:, 3:6] += signal * codes[1] * 2
    for known in codes:
        known[generator.random(known.shape) < 0.3] = -1
    return features, codes, generator.uniform(0.5, 1.5, (count, 2)).astype(np.float32)


def alone(features: np.ndarray, codes: Any, weights: np.ndarray, strength: float) -> Any:
    """Decisions of scikit-learn's own on standardised features."""
    standard = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    known = codes >= 0
    model = LogisticRegression(C=strength, max_iter=1000, tol=1e-6)
    return model.fit(standard[known], codes[known], sample_weight=weights[known]).decision_function(standard)


def test_every_head_and_every_tag_is_a_regression_of_its_own() -> None:
    features, codes, weights = planted()
    strengths = {"kind": (0.1,), "tags": (0.001, 0.01, 1.0)}
    logits = fit_linear(BOTH, features, codes, weights, seed=0, strengths=strengths).logits(features)
    assert logits.dtype == np.float32
    assert logits[:, :3] == pytest.approx(alone(features, codes[0], weights[:, 0], 0.1), abs=2e-3)
    for tag, strength in enumerate(strengths["tags"]):
        wanted = alone(features, codes[1][:, tag], weights[:, 1], strength)
        assert logits[:, 3 + tag] == pytest.approx(wanted, abs=2e-3)


def test_strengths_are_searched_and_kept() -> None:
    features, codes, weights = planted()
    found = fit_linear(BOTH, features, codes, weights, seed=1)
    assert found.strengths == find_strengths(BOTH, features, codes, weights, seed=1)
    given = fit_linear(BOTH, features, codes, weights, seed=1, strengths=found.strengths)
    assert np.array_equal(given.coefficients, found.coefficients)


@pytest.mark.parametrize(("signal", "wanted"), [(0.0, {0.0003, 0.001}), (4.0, {1.0})])
def test_the_pull_is_strong_on_noise_and_weak_on_what_is_plain(signal: float, wanted: set[float]) -> None:
    found = find_strengths(BOTH, *planted(2_000, signal=signal), seed=0)
    assert {*found["kind"], *found["tags"]} <= wanted


def test_few_labels_still_teach_more_than_how_frequent_classes_are() -> None:
    features, codes, weights = planted(30, width=400, signal=0.3)
    (strength,) = find_strengths(BOTH, features, codes, weights, seed=0)["kind"]
    assert strength * (codes[0] >= 0).sum() >= 0.5


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (0.0, 0.5, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_the_strength_is_the_best_of_all(seed: int, shift: tuple[float, ...]) -> None:
    features, codes, weights = planted(signal=0.4 * seed, seed=seed)
    kind, own = LabelSpace((KIND,)), codes[0]
    features, own, weights = features[own >= 0], own[own >= 0], weights[own >= 0][:, :1]
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    rows = np.random.default_rng(seed).permutation(len(own))
    splits = StratifiedKFold(3, shuffle=True, random_state=seed).split(standard[rows], own[rows])
    losses = dict.fromkeys([one for one in STRENGTHS if one * len(own) >= 0.5], 0.0)
    for fitting, judging in ((rows[a], rows[b]) for a, b in splits):
        for strength in losses:
            model = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
            model.fit(standard[fitting], own[fitting], sample_weight=weights[fitting, 0])
            answers = softmax(model.decision_function(standard[judging]) + shift, axis=1)
            as_often = np.exp(shift)[own[judging]]
            losses[strength] += log_loss(own[judging], answers, normalize=False, sample_weight=as_often)
    found = find_strengths(kind, features, [own], weights, seed=seed, assumed=np.array(shift, np.float32))["kind"][0]
    assert losses[found] == pytest.approx(min(losses.values()), rel=0.03)


def test_views_share_the_weight_of_their_image() -> None:
    features, codes, weights = planted()
    views = np.stack([features, features + np.random.default_rng(1).normal(size=features.shape).astype(np.float32)])
    strengths = {"kind": (0.1,), "tags": (0.1,) * 3}
    found = fit_linear(BOTH, views, codes, weights, seed=0, strengths=strengths)
    twice = [np.concatenate([known, known]) for known in codes], np.concatenate([weights, weights]) / 2
    wanted = fit_linear(BOTH, np.concatenate([*views]), *twice, seed=0, strengths=strengths)
    assert np.array_equal(found.coefficients, wanted.coefficients)
    same = np.stack([features, features])
    assert find_strengths(BOTH, same, codes, weights, seed=0) == find_strengths(BOTH, features, codes, weights, seed=0)


def test_a_class_of_one_image_is_learnt_from_its_views() -> None:
    features, codes, weights = planted()
    codes[0][codes[0] == 2] = 0
    codes[0][7], codes[1][:, 2] = 2, 0
    codes[1][7, 2] = 1
    views = np.stack([features, features + np.random.default_rng(1).normal(size=features.shape).astype(np.float32)])
    assumed = np.array([0, 0, 5, 0, 0, 5], np.float32)  # classes count alike
    answers = fit_linear(BOTH, views, codes, weights, seed=0, assumed=assumed).logits(features) + assumed
    assert np.isfinite(answers).all()
    assert (answers[7, :3].argmax(), answers[:, 5].argmax()) == (2, 7)


def test_labels_of_one_kind_only() -> None:
    space = LabelSpace((KIND, TAGS))
    features, codes, weights = planted()
    codes[0][:] = np.where(codes[0] >= 0, 1, -1)
    codes[1][:] = [1, 0, -1]
    found = fit_linear(space, features, codes, weights, seed=0)
    assert found.strengths == {"kind": (0.0,), "tags": (0.0, 0.0, 0.0)}
    assert not found.coefficients.any()
    assert found.intercepts.tolist() == [-20, 0, -20, 20, -20, 0]


def test_a_class_never_seen_is_never_answered() -> None:
    features, codes, weights = planted()
    codes[0][codes[0] == 1] = -1
    logits = fit_linear(BOTH, features, codes, weights, seed=0).logits(features)[:, :3]
    assert not (logits.argmax(axis=1) == 1).any()
    known = codes[0] >= 0
    assert (logits.argmax(axis=1) == codes[0])[known].mean() > 0.9


def test_too_few_images_a_class_to_compare_strengths() -> None:
    features, codes, weights = planted(count=3)
    codes[0][:], codes[1][:] = [0, 1, 2], [[0, 0, 1], [0, 1, 1], [1, 1, 0]]
    assert find_strengths(BOTH, features, codes, weights, seed=0) == {"kind": (0.5 / 3,), "tags": (0.5 / 3,) * 3}


@pytest.mark.parametrize("head", [KIND, TAGS])
def test_answers_that_are_surely_wrong_have_a_finite_loss(head: Head) -> None:
    """An image held back, unlike all others and labelled wrongly, gets the probability 0."""
    generator = np.random.default_rng(0)
    count = 90
    codes = np.arange(count) % 2
    features = (generator.normal(0, 1, (count, 400)) + codes[:, None]).astype(np.float32)
    features[-1] -= 1000
    own = codes if head.kind == "multiclass" else np.repeat(codes[:, None], 3, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_linear(LabelSpace((head,)), features, [own], np.ones((count, 1), np.float32), seed=0)
    assert np.isfinite(found.coefficients).all()


def test_the_number_of_threads_changes_nothing() -> None:
    features, codes, weights = planted()
    found = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            found.append(fit_linear(BOTH, features, codes, weights, seed=0))
    assert np.array_equal(found[0].coefficients, found[1].coefficients)


def test_images_without_labels_of_a_class_pull_nothing_towards_it() -> None:
    """As if the class were not among those of the head."""
    features, codes, weights = planted()
    codes[0][codes[0] == 1] = -1
    strengths = {"kind": (0.1,)}
    three = fit_linear(LabelSpace((KIND,)), features, codes[:1], weights, seed=0, strengths=strengths)
    two = LabelSpace((Head("kind", ("a", "c")),))
    without = np.where(codes[0] == 2, 1, codes[0])
    alone = fit_linear(two, features, [without], weights, seed=0, strengths=strengths)
    assert three.coefficients[[0, 2]] == pytest.approx(alone.coefficients, abs=1e-4)
    assert not three.coefficients[1].any()


def test_of_many_classes_some_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []

    def fitted(space: LabelSpace, *given: Any, **about: Any) -> None:
        widths.append(space.width)

    monkeypatch.setattr(linear, "fit_linear", fitted)
    monkeypatch.setattr(linear, "find_strengths", fitted)
    space = LabelSpace((Head("kind", tuple(map(str, range(300)))),))
    codes = np.arange(600) % 300
    codes[:3] = -1
    assert linear.solver_seconds(space, [codes], np.ones((600, 1), np.float32), width=4) > 0
    assert widths == [linear.TIMED_CLASSES] * 2
