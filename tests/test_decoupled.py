"""Heads learnt again on features: every kind by one contract, each held against scikit-learn or its formula."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import PredefinedSplit, StratifiedKFold
from sklearn.svm import SVC, LinearSVC
from torch import nn

from assay.errors import DataError
from assay.labels.space import Codes, Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.models.heads import KernelMachine, linear_layer
from assay.predictions.calibration import rescaled, temperature
from assay.repair.head_choice import ValidationSet, Way, calibrating_weights, choose_head, validation_loss
from assay.repair.head_kinds import ALL_KINDS, AnyKind, Crt, LogitAdjust, Lws, Ncm, Svm, TauNorm, kind_name
from assay.repair.rebalanced_heads import Task, fit_heads, folds_by_label
from assay.repair.support_vectors import Machines, against_rest, fit_machines
from assay.training.class_weights import Inverse, given_weights, head_weights

CLASSES = Head("kind", ("a", "b", "c", "d"))
TAGS = Head("tags", ("p", "q", "r"), "multilabel")
COUNTS = (200, 60, 20, 8)
WIDTH = 24

Planted = tuple[np.ndarray, Codes]


def planted(head: Head, *, even: bool = False, seed: int = 0) -> Planted:
    """Features around a centre a label, long-tailed or, to judge, even."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 0.8, (head.size, WIDTH))
    if head.kind == "multiclass":
        codes = np.repeat(np.arange(head.size), [150] * head.size if even else COUNTS[: head.size])
        shown = centres[codes]
    else:
        codes = (generator.random((600, head.size)) < (0.5 if even else (0.4, 0.1, 0.05))).astype(np.int64)
        shown = codes @ centres
    features = 3 + 2 * (shown + generator.normal(0, 1.3, shown.shape))
    return features.astype(np.float32), codes


def plain(features: np.ndarray, codes: Codes, head: Head) -> nn.Linear:
    """What training without any balance gives."""
    columns = [codes] if head.kind == "multiclass" else list(codes.T)
    models = [
        LogisticRegression(C=0.01, max_iter=1000).fit(features[labels >= 0], labels[labels >= 0]) for labels in columns
    ]
    weight, bias = (np.concatenate([getattr(one, name) for one in models]) for name in ("coef_", "intercept_"))
    return linear_layer(torch.from_numpy(weight), torch.from_numpy(bias))


def task(head: Head, *, data: Planted | None = None, weights: np.ndarray | None = None, **changes: Any) -> Task:
    features, codes = data or planted(head)
    weights = np.ones(len(features)) if weights is None else weights
    by_class = head_weights(Inverse(), head, codes)
    before = changes.pop("before", None) or plain(features, codes, head)
    return replace(Task.of(head, features, codes, weights, by_class, before=before, seed=0), **changes)


def logits(layer: nn.Module, features: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return layer(torch.from_numpy(features)).numpy()


def balanced(head: Head, codes: Codes, answers: np.ndarray) -> float:
    if head.kind == "multiclass":
        return float(balanced_accuracy_score(codes, answers.argmax(axis=1)))
    return float(np.mean([balanced_accuracy_score(codes[:, k], answers[:, k] > 0) for k in range(head.size)]))


both = pytest.mark.parametrize("head", [CLASSES, TAGS], ids=["classes", "tags"])
every = pytest.mark.parametrize("kind", ALL_KINDS, ids=kind_name)


@both
@every
def test_a_candidate_a_setting_all_of_them_finite(kind: AnyKind, head: Head) -> None:
    found = fit_heads(kind, task(head))
    several = {"svm linear": 3, "svm rbf": 2, "crt": 5, "tau_norm": 5, "logit_adjust": 7, "levels": 4}
    assert len(found) == several.get(kind_name(kind), 1)
    assert len({one.setting for one in found}) == len(found)
    for one in found:
        answers = logits(one.layer, planted(head)[0])
        assert answers.shape == (len(planted(head)[0]), head.size)
        assert answers.dtype == np.float32
        assert np.isfinite(answers).all()


@both
@every
def test_unknown_labels_and_images_without_weight_change_nothing(kind: AnyKind, head: Head) -> None:
    features, codes = planted(head)
    strange = np.random.default_rng(5).normal(50, 9, (30, WIDTH)).astype(np.float32)
    unknown = head.unknown(30)
    weightless = np.ones_like(unknown)
    more = np.concatenate([features, strange, strange]), np.concatenate([codes, unknown, weightless])
    weights = np.concatenate([np.ones(len(codes) + 30), np.zeros(30)])
    before = plain(features, codes, head)
    wanted = fit_heads(kind, task(head, before=before))
    by_class = head_weights(Inverse(), head, codes)
    found = fit_heads(kind, Task.of(head, *more, weights, by_class, before=before, seed=0))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(logits(one.layer, features), logits(other.layer, features), atol=1e-4)


@both
@every
def test_the_same_seed_gives_the_same_head(kind: AnyKind, head: Head) -> None:
    first, second = (fit_heads(kind, task(head)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(value, other.layer.state_dict()[key]) for key, value in one.layer.state_dict().items())


@both
@every
def test_rare_classes_are_found_more_often_than_by_plain_training(kind: AnyKind, head: Head) -> None:
    problem, (features, codes) = task(head), planted(head, even=True, seed=1)
    before = balanced(head, codes, logits(problem.before, features))
    after = max(balanced(head, codes, logits(one.layer, features)) for one in fit_heads(kind, problem))
    if isinstance(kind, Lws) and head.kind == "multilabel":
        assert after == pytest.approx(before)  # a factor alone changes no sign
    else:
        assert after > before + 0.02


@both
@every
def test_a_class_without_a_training_image_is_never_answered(kind: AnyKind, head: Head) -> None:
    features, codes = planted(head)
    if head.kind == "multiclass":
        codes = np.where(codes == 1, -1, codes)
    else:
        codes[:, 1] = 0
    before = linear_layer(
        torch.randn(head.size, WIDTH, generator=torch.Generator().manual_seed(0)), torch.zeros(4)[: head.size]
    )
    for one in fit_heads(kind, task(head, data=(features, codes), before=before)):
        answers = logits(one.layer, 100 * planted(head, even=True)[0])
        given = answers.argmax(axis=1) == 1 if head.kind == "multiclass" else answers[:, 1] > 0
        assert not given.any()


@every
def test_a_class_of_one_image_is_learnt(kind: AnyKind) -> None:
    features, codes = planted(CLASSES)
    keep = np.flatnonzero((codes < 3) | (np.arange(len(codes)) == len(codes) - 1))
    for one in fit_heads(kind, task(CLASSES, data=(features[keep], codes[keep]))):
        assert np.isfinite(logits(one.layer, features)).all()


@pytest.mark.parametrize(
    ("head", "codes", "message"),
    [
        (CLASSES, np.zeros(40, np.int64), "show one class, so there is no head to learn"),
        (TAGS, np.zeros((40, 3), np.int64), "show no tag that some have"),
    ],
)
def test_labels_of_one_kind_are_refused(head: Head, codes: Codes, message: str) -> None:
    features = np.zeros((40, WIDTH), np.float32)
    before = linear_layer(torch.zeros(head.size, WIDTH), torch.zeros(head.size))
    with pytest.raises(DataError, match=message):
        fit_heads(Ncm(), task(head, data=(features, codes), before=before))


def standard(problem: Task) -> np.ndarray:
    """As `moments` standardises."""
    features = problem.features
    return (features - features.mean(axis=0).astype(np.float64)) / (features.std(axis=0) + 1e-6).astype(np.float64)


PUBLISHED = {0: 0.0001, 1: 0.001, 2: 0.001, 3: 1, 4: 1, 5: 1, 6: 1, 7: 0.01, 8: 1, 9: 1}
TEN = Head("kind", tuple("abcdefghij"))


def published() -> Task:
    """Ten classes of a long tail, with the class weights as a plan gives them."""
    generator = np.random.default_rng(0)
    codes = np.repeat(np.arange(10), [150, 90, 80, 12, 10, 9, 8, 40, 6, 3])
    features = (generator.normal(0, 1, (10, WIDTH))[codes] + generator.normal(1, 2, (len(codes), WIDTH))).astype(
        np.float32
    )
    by_class = {name: float(PUBLISHED[number]) for number, name in enumerate(TEN.classes)}
    (weights,) = given_weights({TEN.name: by_class}, LabelSpace((TEN,)))
    return Task.of(TEN, features, codes, np.ones(len(codes)), weights, before=None, seed=0)


def machines(problem: Task, machine: LinearSVC | SVC, inputs: np.ndarray) -> Machines:
    return fit_machines(
        machine,
        inputs,
        *against_rest(problem.head, problem.codes, problem.weights, problem.class_weights),
        seed=problem.seed,
    )


@pytest.mark.parametrize("cost", [0.001, 1.0])
def test_published_class_weights_give_the_decision_values_of_linear_svc(cost: float) -> None:
    problem = published()
    inputs = standard(problem)
    fitted = machines(problem, LinearSVC(C=cost, dual=False), inputs)
    model = LinearSVC(C=cost, dual=False, class_weight=PUBLISHED).fit(inputs, problem.codes)
    wanted = model.decision_function(inputs)
    np.testing.assert_allclose(inputs @ fitted.vectors.T + fitted.intercepts, wanted, atol=1e-6)
    (candidate,) = fit_heads(Svm(costs=(cost,)), problem)
    for answers, decisions in zip(logits(candidate.layer, problem.features).T, wanted.T, strict=True):
        scaled = np.polyval(np.polyfit(decisions, answers, 1), decisions)  # a slope and a level a class
        np.testing.assert_allclose(answers, scaled, atol=1e-4)


@pytest.mark.parametrize("gamma", [None, 0.2])
def test_published_class_weights_give_the_decision_values_of_svc(gamma: float | None) -> None:
    problem = published()
    (candidate,) = fit_heads(Svm(kernel="rbf", costs=(3.0,), gamma=gamma), problem)
    assert isinstance(candidate.layer, KernelMachine)
    new = np.random.default_rng(3).normal(1, 2, (200, WIDTH)).astype(np.float32)
    decisions = candidate.layer.decisions(torch.from_numpy(new))
    mean, spread = (
        problem.features.mean(axis=0).astype(np.float64),
        (problem.features.std(axis=0) + 1e-6).astype(np.float64),
    )
    for label in range(10):
        model = SVC(C=3.0, kernel="rbf", gamma=gamma or 1 / WIDTH, class_weight={False: 1, True: PUBLISHED[label]})
        model.fit(standard(problem), problem.codes == label)
        np.testing.assert_allclose(decisions[:, label], model.decision_function((new - mean) / spread), atol=1e-6)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_of_two_classes_both_weights_count_as_in_scikit_learn(kernel: str) -> None:
    head, by_class = Head("k", ("a", "b")), np.array([0.01, 3.0])
    features, codes = planted(head)
    problem = Task.of(head, features, codes, np.ones(len(codes)), by_class, before=None, seed=0)
    inputs = standard(problem)
    model: LinearSVC | SVC = LinearSVC(C=0.1, dual=False) if kernel == "linear" else SVC(C=2.0, kernel="precomputed")
    given = inputs if kernel == "linear" else rbf_kernel(inputs)
    fitted = machines(problem, model, given)
    wanted = clone(model).set_params(class_weight=dict(enumerate(by_class))).fit(given, codes).decision_function(given)
    decisions = given @ fitted.vectors.T + fitted.intercepts
    np.testing.assert_allclose(decisions[:, 1], wanted, atol=1e-6)
    np.testing.assert_allclose(decisions[:, 0], -wanted, atol=2e-3)  # solved anew, to the tolerance of libsvm


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_machines_of_tags_leave_unknown_images_out(kernel: str) -> None:
    features, codes = planted(TAGS)
    codes[np.random.default_rng(1).random(codes.shape) < 0.3] = -1
    problem = task(TAGS, data=(features, codes))
    inputs = standard(problem)
    model: LinearSVC | SVC = LinearSVC(C=0.01, dual=False) if kernel == "linear" else SVC(C=2.0, gamma=0.05)
    machine = model if kernel == "linear" else SVC(C=2.0, kernel="precomputed")
    given = inputs if kernel == "linear" else rbf_kernel(inputs, gamma=0.05)
    fitted = machines(problem, machine, given)
    for label in range(3):
        known = codes[:, label] >= 0
        counts = np.where(codes[known, label] == 1, problem.class_weights[label], 1.0)
        wanted = clone(model).fit(inputs[known], codes[known, label], sample_weight=counts).decision_function(inputs)
        np.testing.assert_allclose(given @ fitted.vectors[label] + fitted.intercepts[label], wanted, atol=1e-6)
        assert np.isfinite(fitted.out_of_fold[:, label]).tolist() == known.tolist()


def test_weights_of_images_multiply_their_cost() -> None:
    features, codes = planted(CLASSES)
    weights = np.random.default_rng(0).uniform(0.5, 2, len(codes))
    problem = task(CLASSES, data=(features, codes), weights=weights)
    inputs = standard(problem)
    fitted = machines(problem, LinearSVC(C=0.01, dual=False), inputs)
    by_class = {label: float(weight) for label, weight in enumerate(problem.class_weights)}
    model = LinearSVC(C=0.01, dual=False, class_weight=by_class).fit(inputs, codes, sample_weight=weights)
    np.testing.assert_allclose(
        inputs @ fitted.vectors.T + fitted.intercepts, model.decision_function(inputs), atol=1e-6
    )


def test_the_layer_of_linear_machines_gives_their_decisions_scaled() -> None:
    problem = task(TAGS)
    (candidate,) = fit_heads(Svm(costs=(0.01,)), problem)
    inputs = standard(problem)
    fitted = machines(problem, LinearSVC(C=0.01, dual=False), inputs)
    slopes, levels = rescaled(TAGS, problem.codes, fitted.out_of_fold, problem.weights, slopes="each", levels=True)
    wanted = slopes * (inputs @ fitted.vectors.T + fitted.intercepts) + levels
    np.testing.assert_allclose(
        candidate.layer.double()(torch.from_numpy(problem.features).double()).detach(), wanted, atol=1e-5
    )


def test_out_of_fold_decision_values_are_of_machines_that_did_not_see_the_image() -> None:
    problem = task(CLASSES)
    inputs, positive = standard(problem), problem.codes == 2
    fitted = machines(problem, SVC(C=2.0, kernel="precomputed"), rbf_kernel(inputs, gamma=0.05))
    weights = np.where(positive, problem.class_weights[2], 1.0)
    for inside, held in StratifiedKFold(3, shuffle=True, random_state=0).split(inputs, positive):
        model = SVC(C=2.0, gamma=0.05).fit(inputs[inside], positive[inside], sample_weight=weights[inside])
        np.testing.assert_allclose(fitted.out_of_fold[held, 2], model.decision_function(inputs[held]), atol=1e-6)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_machines_that_do_not_converge_warn_nobody(kernel: Literal["linear", "rbf"]) -> None:
    features, codes = planted(CLASSES)
    keep = np.flatnonzero((codes < 3) | (np.arange(len(codes)) == len(codes) - 1))
    problem = task(CLASSES, data=(1e3 * features[keep] ** 3, codes[keep]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_heads(Svm(kernel=kernel, costs=(1e4,)), problem)


def test_every_label_is_spread_over_the_folds() -> None:
    codes = np.repeat([0, 1, 2, 3], [50, 7, 3, 1])
    fold = folds_by_label(CLASSES, codes, seed=0)
    assert [len(np.unique(fold[codes == label])) for label in range(4)] == [3, 3, 3, 1]
    assert fold[-1] == -1
    tags = np.zeros((90, 3), np.int64)
    tags[:6, 0] = tags[:60, 1] = 1
    fold = folds_by_label(TAGS, tags, seed=0)
    assert np.bincount(fold[:6]).tolist() == [2, 2, 2]


def test_platt_scaling_is_scikit_learns() -> None:
    problem = task(TAGS)
    fold = np.arange(len(problem.codes)) % 3
    truth = problem.codes[:, 0] == 1
    model = CalibratedClassifierCV(
        LinearSVC(C=0.01, dual=False), cv=PredefinedSplit(fold), ensemble=False, method="sigmoid"
    )
    model.fit(problem.features, truth)
    scores = np.zeros((len(truth), 1))
    for number in range(3):
        held = fold == number
        one = LinearSVC(C=0.01, dual=False).fit(problem.features[~held], truth[~held])
        scores[held, 0] = one.decision_function(problem.features[held])
    head = Head("tag", ("p",), "multilabel")
    ones = np.ones((len(truth), 1))
    slopes, levels = rescaled(head, problem.codes[:, :1], scores, ones, slopes="each", levels=True)
    (sigmoid,) = model.calibrated_classifiers_[0].calibrators
    assert (slopes[0], levels[0]) == pytest.approx((-sigmoid.a_, -sigmoid.b_), rel=1e-3)


@both
def test_scaling_finds_the_slopes_and_levels_that_scores_were_made_with(head: Head) -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(0, 2, (20_000, head.size))
    if head.kind == "multiclass":
        codes = (true + generator.gumbel(size=true.shape)).argmax(axis=1)
    else:
        codes = (generator.logistic(size=true.shape) < true).astype(np.int64)
    slopes, levels = np.linspace(0.5, 2, head.size), np.linspace(-1, 1, head.size)
    scores = (true - levels) / slopes
    scores[:50] = np.nan
    found = rescaled(head, codes, scores, np.ones(codes.shape), slopes="each", levels=True)
    assert found[0] == pytest.approx(slopes, rel=0.1)
    assert found[1] - found[1].mean() == pytest.approx(levels, abs=0.1)
    one, _ = rescaled(head, codes, true / 3, np.ones(codes.shape), slopes="one", levels=False)
    assert one == pytest.approx(np.full(head.size, 3.0), rel=0.1)


def test_separable_scores_have_finite_scales() -> None:
    codes = np.repeat([0, 1], 20)
    scores = np.stack([codes == 0, codes == 1], axis=1).astype(float)
    slopes, levels = rescaled(Head("k", ("a", "b")), codes, scores, np.ones(40), slopes="one", levels=True)
    assert 1 < slopes[0] < 10  # targets of 21/22
    assert np.isfinite(levels).all()


def test_weights_of_labels_move_the_temperature() -> None:
    generator = np.random.default_rng(0)
    codes = np.repeat([0, 1], [900, 100])
    scores = generator.normal(0, 1, (1000, 2)) + 3 * np.eye(2)[codes]
    scores[codes == 1] *= -1
    head = Head("k", ("a", "b"))
    rare = np.where(codes == 1, 100.0, 0.0)
    assert temperature(head, codes, scores) < 20 == temperature(head, codes, scores, rare)
    doubled = np.concatenate([codes, codes[:500]]), np.concatenate([scores, scores[:500]])
    counts = np.where(np.arange(1000) < 500, 2.0, 1.0)
    assert temperature(head, codes, scores, counts) == pytest.approx(temperature(head, *doubled), rel=1e-6)


def test_retraining_is_a_weighted_regression() -> None:
    problem = task(CLASSES)
    (found,) = fit_heads(Crt(strengths=(0.1,)), problem)
    weights = problem.class_weights[problem.codes]
    model = LogisticRegression(C=0.1, max_iter=2000, tol=1e-6)
    model.fit(standard(problem), problem.codes, sample_weight=weights / weights.mean())
    np.testing.assert_allclose(
        logits(found.layer, problem.features), model.decision_function(standard(problem)), atol=5e-3
    )


def test_tau_norm_makes_lengths_alike() -> None:
    problem = task(CLASSES)
    none, whole = fit_heads(TauNorm(tau=(0.0, 1.0)), problem)
    spread = torch.from_numpy(problem.features.std(axis=0) + 1e-6)
    lengths = (whole.layer.weight * spread).norm(dim=1).detach()
    assert lengths == pytest.approx(np.full(4, float(lengths.mean())), rel=1e-5)
    assert torch.allclose(none.layer.weight, problem.before.weight)
    means = np.stack([problem.features[problem.codes == label].mean(axis=0) for label in range(4)])
    middle = torch.from_numpy(means.mean(axis=0, keepdims=True))
    assert whole.layer(middle).detach() == pytest.approx(np.zeros((1, 4)), abs=1e-4)


@both
def test_logit_adjustment_adds_the_logarithm_of_the_weights(head: Head) -> None:
    problem = task(head)
    found = fit_heads(LogitAdjust(tau=(0.0, 1.5)), problem)
    shift = logits(found[1].layer, problem.features) - logits(found[0].layer, problem.features)
    assert shift == pytest.approx(np.tile(1.5 * np.log(problem.class_weights), (len(shift), 1)), abs=1e-4)


@both
def test_weight_scaling_multiplies_logits(head: Head) -> None:
    problem = task(head)
    (found,) = fit_heads(Lws(), problem)
    factors = logits(found.layer, problem.features) / logits(problem.before, problem.features)
    assert factors == pytest.approx(np.tile(np.median(factors, axis=0), (len(factors), 1)), rel=1e-2)
    assert (factors > 0).all()


def test_the_nearest_mean_in_angle_is_answered() -> None:
    problem, (new, _) = task(CLASSES), planted(CLASSES, even=True, seed=4)
    (found,) = fit_heads(Ncm(), problem)
    means = np.stack([problem.features[problem.codes == label].mean(axis=0) for label in range(4)])
    spread, centre = problem.features.std(axis=0), means.mean(axis=0)
    away, apart = (means - centre) / spread, (new - centre) / spread
    cosines = (apart @ away.T) / np.linalg.norm(apart, axis=1)[:, None] / np.linalg.norm(away, axis=1)
    assert (logits(found.layer, new).argmax(axis=1) == cosines.argmax(axis=1)).all()


@both
def test_without_class_weights_probabilities_are_those_of_the_data(head: Head) -> None:
    features, codes = planted(head)
    ones = np.ones(head.size)
    problem = Task.of(head, features, codes, np.ones(len(codes)), ones, before=plain(features, codes, head), seed=0)
    even = task(head)
    shares = np.bincount(codes) / len(codes) if head.kind == "multiclass" else codes.mean(axis=0)
    for chosen, wanted in ((problem, shares), (even, np.full(head.size, 1 / 4 if head.kind == "multiclass" else 0.5))):
        (found,) = fit_heads(Svm(costs=(0.01,)), chosen)
        weights = chosen.weights if head.kind == "multilabel" else np.repeat(chosen.weights[:, None], 4, axis=1)
        answered = probabilities_of(LabelSpace((head,)), logits(found.layer, features))
        assert (answered * weights).sum(axis=0) / weights.sum(axis=0) == pytest.approx(wanted, abs=0.1)


@both
def test_labels_that_choose_count_as_their_classes_do_in_the_world_learnt_for(head: Head) -> None:
    _, train = planted(head)
    _, codes = planted(head, even=True)
    codes[:10] = -1
    by_class = head_weights(Inverse(), head, train)
    weights = calibrating_weights(head, codes, train, by_class)
    assert (weights[:10] == 0).all()
    if head.kind == "multiclass":
        masses = np.bincount(codes[10:], weights[10:])
    else:
        masses = np.stack([np.where(codes == value, weights, 0).sum(axis=0) for value in (0, 1)])
        masses = masses / masses.sum(axis=0)
    assert masses / masses.mean() == pytest.approx(np.ones_like(masses))


def test_the_best_is_chosen_and_judged_by_a_choice_made_without_each_image() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 2, 400)
    right = (3 * np.eye(2)[codes] + generator.normal(0, 1, (400, 2))).astype(np.float32)
    wrong, worse = (
        scores.astype(np.float32) for scores in (generator.normal(0, 1, (400, 2)), right + np.array([2, 0]))
    )
    head = Head("k", ("a", "b"))
    for metric in ("balanced_accuracy", "macro_f1", "micro_f1", "nll"):
        found = choose_head(
            ValidationSet(head, codes, np.ones(400), metric), [Way([wrong]), Way([worse, 4 * right])], folds=5, seed=0
        )
        assert (found.best.way, found.best.setting) == (1, 1)
        assert found.best.temperature == pytest.approx(temperature(head, codes, 4 * right))
        ratios = 4 * right / found.logits
        assert len(np.unique(ratios.round(3))) <= 5


@both
def test_levels_are_fitted_on_validation_and_pulled_to_0(head: Head) -> None:
    _, codes = planted(head, even=True)
    generator = np.random.default_rng(0)
    wanted = generator.normal(0, 1.5, head.size)
    seen = head.present(codes) * 2.0 - 1
    scores = (seen + generator.normal(0, 1, seen.shape) - wanted).astype(np.float32)
    codes[:50] = -1
    chooser = ValidationSet(head, codes, np.where(codes >= 0, 1.0, 0.0), "balanced_accuracy")
    found = {
        pull: choose_head(chooser, [Way([scores]), Way([scores], pull)], folds=5, seed=0) for pull in (0.01, 3.0, 1e6)
    }
    assert (found[3.0].best.way, found[1e6].best.way) == (1, 0)
    assert np.corrcoef(found[3.0].best.levels, wanted)[0, 1] > 0.9
    assert np.abs(found[3.0].best.levels).sum() < np.abs(found[0.01].best.levels).sum()
    known = codes[50:]
    assert balanced(head, known, found[3.0].logits[50:]) > balanced(head, known, scores[50:]) + 0.02
    same = ValidationSet(head, codes, np.where(codes >= 0, 1.0, 0.0), "balanced_accuracy")
    assert np.array_equal(choose_head(same, [Way([scores], 3.0)], folds=5, seed=0).best.levels, found[3.0].best.levels)


def test_a_class_without_validation_images_keeps_about_its_level() -> None:
    _, codes = planted(CLASSES, even=True)
    codes[codes == 3] = -1
    scores = np.random.default_rng(0).normal(0, 1, (len(codes), 4)).astype(np.float32)
    ones = ValidationSet(CLASSES, codes, np.where(codes >= 0, 1.0, 0.0), "balanced_accuracy")
    assert np.isfinite(choose_head(ones, [Way([scores], 3.0)], folds=5, seed=0).best.levels).all()


@both
def test_the_loss_is_that_of_scikit_learn_weighted(head: Head) -> None:
    _, codes = planted(head)
    scores = np.random.default_rng(0).normal(0, 2, (len(codes), head.size))
    weights = np.random.default_rng(1).uniform(0, 3, codes.shape)
    answered = probabilities_of(LabelSpace((head,)), scores)
    hidden = codes.copy()
    hidden[:20] = -1
    if head.kind == "multiclass":
        wanted = log_loss(codes[20:], answered[20:], sample_weight=weights[20:], normalize=False)
    else:
        cells = codes[20:].ravel(), answered[20:].ravel()
        wanted = log_loss(*cells, sample_weight=weights[20:].ravel(), normalize=False)
    assert validation_loss(head, hidden, scores, weights) == pytest.approx(wanted, rel=1e-5)


def test_a_choice_among_chances_gains_nothing_when_cross_fitted() -> None:
    """The best of many answers that know nothing looks good where it was chosen, and only there."""
    head, generator = Head("k", ("a", "b")), np.random.default_rng(0)
    inside, honest = [], []
    for seed in range(20):
        codes = generator.integers(0, 2, 100)
        answers = [generator.normal(0, 1, (100, 2)).astype(np.float32) for _ in range(30)]
        found = choose_head(
            ValidationSet(head, codes, np.ones(100), "balanced_accuracy"),
            [Way([scores]) for scores in answers],
            folds=5,
            seed=seed,
        )
        inside.append(balanced(head, codes, answers[found.best.way]))
        honest.append(balanced(head, codes, found.logits))
    assert np.mean(inside) > 0.57
    assert abs(np.mean(honest) - 0.5) < 0.03
