"""Class weights by how many images there are, and the prior that they move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given as given_by
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from sklearn.utils.class_weight import compute_class_weight

from assay.errors import PlanError
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.steps.fit_settings import FitSettings, fit_objective, sampling_plan
from assay.training.class_weights import (
    ClassWeights,
    EffectiveNumber,
    Given,
    Inverse,
    SqrtInverse,
    class_weights,
    given_weights,
    head_weights,
    log_priors,
    logit_shift,
)
from assay.training.losses import ByHead, CrossEntropy, MeanSquaredError, head_losses
from assay.training.sources import LabelTensors
from factories import make_samples

ADAPTER = TypeAdapter(ClassWeights)
SEASON = Head("season", ("spring", "summer", "autumn"))
TAGS = Head("tags", ("beach", "city"), "multilabel")
SPACE = LabelSpace((SEASON, TAGS))
ALL = [Inverse(), Inverse(divisor=7.0), SqrtInverse(), EffectiveNumber(), EffectiveNumber(beta=0.0)]


def codes(*counts: int) -> np.ndarray:
    """Codes of a multi-class head with so many images a class, and two unknown ones."""
    return np.array([-1, *np.repeat(np.arange(len(counts)), counts), -1])


def tags(*, positives: int, negatives: int, unknown: int = 3) -> np.ndarray:
    """Codes of a multi-label head with one class."""
    return np.repeat([1, 0, -1], [positives, negatives, unknown])[:, None]


def multiclass(count: int) -> Head:
    return Head("h", tuple(map(str, range(count))))


ONE_TAG = Head("h", ("beach",), "multilabel")


def test_inverse_is_what_scikit_learn_calls_balanced() -> None:
    known = codes(7, 2, 11)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=known[known >= 0])
    np.testing.assert_allclose(head_weights(Inverse(), multiclass(3), known), expected, rtol=1e-6)


def test_the_published_form_of_inverse() -> None:
    """N / (220 N_i) with N = 5,000, of the `attributes` recipe."""
    counts = np.array([2500, 1500, 900, 75, 25])
    weights = head_weights(Inverse(divisor=220.0), multiclass(5), codes(*counts))
    np.testing.assert_allclose(weights, 5000 / (220 * counts), rtol=1e-6)
    assert weights[-1] == pytest.approx(0.909, abs=1e-3)


def test_inverse_of_tags_is_negatives_over_positives_of_what_is_known() -> None:
    assert head_weights(Inverse(), ONE_TAG, tags(positives=4, negatives=10)) == pytest.approx([2.5])
    assert head_weights(Inverse(divisor=2.0), ONE_TAG, tags(positives=4, negatives=10)) == pytest.approx([1.25])


def test_sqrt_inverse_is_its_root() -> None:
    for head, known in ((multiclass(3), codes(7, 2, 11)), (ONE_TAG, tags(positives=4, negatives=10))):
        np.testing.assert_allclose(
            head_weights(SqrtInverse(), head, known) ** 2, head_weights(Inverse(), head, known), rtol=1e-6
        )


def test_effective_number_equals_its_formula() -> None:
    counts = np.array([5000, 300, 4])
    inverse = (1 - 0.999) / (1 - 0.999**counts)
    got = head_weights(EffectiveNumber(), multiclass(3), codes(*counts))
    np.testing.assert_allclose(got, inverse / inverse.mean(), rtol=1e-5)
    beach = head_weights(EffectiveNumber(), ONE_TAG, tags(positives=4, negatives=5000))
    assert beach == pytest.approx([(1 - 0.999**5000) / (1 - 0.999**4)], rel=1e-5)


@pytest.mark.parametrize(
    ("head", "known"), [(multiclass(3), codes(7, 2, 11)), (ONE_TAG, tags(positives=4, negatives=9))]
)
def test_effective_number_goes_from_alike_to_inverse(head: Any, known: Any) -> None:
    assert head_weights(EffectiveNumber(beta=0.0), head, known) == pytest.approx(np.ones(head.size))
    inverse = head_weights(Inverse(), head, known)
    if head.kind == "multiclass":
        inverse /= inverse.mean()
    np.testing.assert_allclose(head_weights(EffectiveNumber(beta=1 - 1e-9), head, known), inverse, rtol=1e-5)


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_a_class_of_which_nothing_is_to_be_learnt_weighs_one(settings: EffectiveNumber | Inverse | SqrtInverse) -> None:
    weights = head_weights(settings, multiclass(4), codes(7, 0, 2, 0))
    assert weights[[1, 3]].tolist() == [1, 1]
    if isinstance(settings, EffectiveNumber):
        assert weights[[0, 2]].mean() == pytest.approx(1)
    assert head_weights(settings, multiclass(3), np.array([-1, -1])).tolist() == [1, 1, 1]
    for positives, negatives in ((0, 5), (5, 0), (0, 0)):
        assert head_weights(settings, ONE_TAG, tags(positives=positives, negatives=negatives)).tolist() == [1]


@pytest.mark.parametrize("settings", ALL, ids=repr)
@given_by(counts=st.lists(st.integers(0, 300), min_size=1, max_size=6))
def test_weights_are_positive_and_never_lower_for_a_rarer_class(
    settings: EffectiveNumber | Inverse | SqrtInverse, counts: Any
) -> None:
    weights = head_weights(settings, multiclass(len(counts)), codes(*counts))
    assert weights.dtype == np.float32
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    by_count = [weight for count, weight in sorted(zip(counts, weights, strict=True), key=lambda x: x[0]) if count]
    assert (np.diff(by_count) <= 1e-6).all()


def samples() -> Samples:
    table = pl.DataFrame(
        {
            "id": list("abcde"),
            "label:season": ["spring", "spring", "autumn", None, "spring"],
            "label:tags": [["beach"], [], ["city"], None, []],
            "unknown:tags": [None, None, ["beach"], None, None],
        }
    )
    return Samples(table, SPACE, Path())


def test_weights_of_samples_are_a_head_each() -> None:
    season, tagged = class_weights(Inverse(), samples())
    np.testing.assert_allclose(season, [4 / (3 * 3), 1, 4 / 3], rtol=1e-6)
    assert tagged.tolist() == [2, 3]


def test_given_weights() -> None:
    chosen = ADAPTER.validate_python({"kind": "given", "weights": {"season": {"autumn": 4}, "tags": {"city": 0.5}}})
    assert [weights.tolist() for weights in class_weights(chosen, samples())] == [[1, 1, 4], [1, 0.5]]
    assert [weights.tolist() for weights in class_weights(Given(weights={}), samples())] == [[1, 1, 1], [1, 1]]


def test_given_weights_of_the_only_head_by_name_or_number() -> None:
    (one,) = spaces = LabelSpace((Head("label", ("oak", "elm", "ash")),))
    assert one.index == {"oak": 0, "elm": 1, "ash": 2}
    for weights in ({"1": 0.25, "ash": 4}, {"elm": 0.25, "2": 4}, {"label": {"elm": 0.25, "2": 4}}):
        assert Given(weights=weights).weights == weights
        assert given_weights(weights, spaces)[0].tolist() == [1, 0.25, 4]
    digits = LabelSpace((Head("label", ("1", "2", "3")),))
    assert given_weights({"1": 0.25}, digits)[0].tolist() == [0.25, 1, 1]
    with pytest.raises(PlanError, match=r"there is no class '0'\. There are: 1, 2, 3"):
        given_weights({"0": 0.25}, digits)


def test_the_prior_of_classes_is_their_share_and_of_tags_their_odds() -> None:
    season, tagged = np.split(log_priors(samples()), [3])
    np.testing.assert_allclose(np.exp(season), [3 / 5, 1 / 5, 1 / 5], rtol=1e-6)  # none counts as one
    np.testing.assert_allclose(np.exp(tagged), [1 / 2, 1 / 3], rtol=1e-6)
    drawn = log_priors(samples(), [np.array([1, 3, 3]), np.array([2, 1])])
    np.testing.assert_allclose(np.exp(drawn), [1 / 3, 1 / 3, 1 / 3, 1, 1 / 3], rtol=1e-6)


def test_logits_are_adjusted_in_training_and_the_prior_is_as_asked() -> None:
    rows = [{"id": str(number), "season": season} for number, season in enumerate(("spring", "spring", "autumn"))]
    train = make_samples(rows, SEASON)
    offset = log_priors(train)
    for prior, shift in (("data", -offset), ("trained", 0 * offset)):
        settings = FitSettings(size=32, logit_adjust=1.0, prior=prior)
        objective = fit_objective(settings, train, sampling_plan(settings, train, seed=0))
        for one in (objective.training, objective.validation):
            np.testing.assert_array_equal(one.offsets, offset)
        np.testing.assert_array_equal(objective.rule.shift, shift)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"season": {"7": 2}},
            "class_weights, head 'season': there is no class number 7; its 3 are 0 to 2, from "
            "'spring' to 'autumn'. Weigh your classes by name, or set class_weights: inverse.",
        ),
        (
            {"autumn": 2},
            "class_weights: autumn are of no named head, and the data has 2. "
            "Write weights: {HEAD: {CLASS: 2.5}}; the heads are season, tags.",
        ),
        ({"saison": {"autumn": 2}}, "class_weights: there is no head 'saison'. Did you mean 'season'?"),
        ({"x": {}}, "class_weights: there is no head 'x'. There are: season, tags."),
        ({"season": {"autum": 2}}, "class_weights, head 'season': there is no class 'autum'. Did you mean 'autumn'?"),
    ],
)
def test_a_given_weight_of_nothing_is_refused(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as error:
        given_weights(weights, SPACE)
    assert str(error.value) == message


def test_class_weights_in_a_plan() -> None:
    assert ADAPTER.validate_python("inverse") == Inverse()
    assert ADAPTER.validate_python({"kind": "inverse", "divisor": 220}) == Inverse(divisor=220.0)
    assert ADAPTER.validate_python("effective_number") == EffectiveNumber(beta=0.999)
    never = [{"kind": "inverse", "divisor": 0}, {"kind": "effective_number", "beta": 1}, "given", "inverted", 3]
    for wrong in (*never, {"kind": "given", "weights": {"season": {"autumn": 0}}}):
        with pytest.raises(ValidationError):
            ADAPTER.validate_python(wrong)


def test_the_shift_is_the_logarithm_side_by_side() -> None:
    shift = logit_shift([np.array([1, 2, 4], np.float32), np.array([0.5, 1], np.float32)])
    assert shift.dtype == np.float32
    np.testing.assert_allclose(shift, np.log([1, 2, 4, 0.5, 1]), rtol=1e-6)


def train(
    inputs: torch.Tensor, targets: torch.Tensor, head: Head, loss: ByHead | MeanSquaredError, weights: Any = None
) -> np.ndarray:
    """Logits (N, K) of a linear model after full-batch L-BFGS."""
    space = LabelSpace((head,))
    (head_loss,) = head_losses(space, loss, class_weights=None if weights is None else [torch.from_numpy(weights)])
    mask = torch.ones(targets.shape[: 1 if head.kind == "multiclass" else 2], dtype=torch.bool)
    layer = torch.nn.Linear(inputs.shape[1], head.size)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = head_loss(layer(inputs), targets, mask).mean()
        value.backward()
        return value

    optimizer.step(closure)
    return layer(inputs).detach().numpy()


def probabilities(logits: Any, kind: str) -> np.ndarray:
    logits = torch.from_numpy(logits)
    return (logits.softmax(1) if kind == "multiclass" else logits.sigmoid()).numpy()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("loss", [ByHead(), MeanSquaredError()], ids=lambda loss: loss.kind)
def test_less_the_shift_the_prior_is_the_datas_again(kind: str, loss: ByHead | MeanSquaredError) -> None:
    """A model that can fit any probability a group learns the shares of the groups, whatever the weights."""
    generator = np.random.default_rng(0)
    head = Head("h", ("common", "scarce", "rare"), kind)
    groups = np.repeat(np.arange(4), 300)
    if kind == "multiclass":
        shares = np.array([[0.9, 0.08, 0.02], [0.8, 0.15, 0.05], [0.7, 0.1, 0.2], [0.95, 0.03, 0.02]])
        labels = np.array([generator.choice(3, p=shares[group]) for group in groups])
        targets = np.eye(3)[labels]
    else:
        labels = (
            generator.random((1200, 3)) < np.array([0.6, 0.2, 0.05])[None] * (0.5 + 0.3 * groups[:, None])
        ).astype(int)
        targets = labels
    inputs, targets = torch.eye(4)[groups], torch.from_numpy(targets).float()
    weights = head_weights(Inverse(), head, labels)
    assert weights.max() / weights.min() > 5
    plain = probabilities(train(inputs, targets, head, loss), kind)
    logits = train(inputs, targets, head, loss, weights)
    shift = logit_shift([weights])
    assert np.abs(probabilities(logits, kind) - plain).max() > 0.2
    np.testing.assert_allclose(probabilities(logits - shift, kind), plain, atol=2e-3)


def test_less_the_shift_a_logistic_regression_is_close_to_the_unweighted_one() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random(20_000) < 0.05).astype(int)
    inputs = torch.from_numpy(generator.normal(labels[:, None] * [1.5, -1.0], 1.0)).float()
    head = Head("h", ("common", "rare"))
    targets = torch.eye(2)[labels]
    weights = head_weights(Inverse(), head, labels)
    plain = probabilities(train(inputs, targets, head, ByHead()), "multiclass")
    logits = train(inputs, targets, head, ByHead(), weights)
    corrected = probabilities(logits - logit_shift([weights]), "multiclass")
    assert np.abs(probabilities(logits, "multiclass") - plain).mean() > 0.1
    assert np.abs(corrected - plain).mean() < 0.005
    assert corrected[:, 1].mean() == pytest.approx(labels.mean(), abs=0.003)


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("weights", [Inverse(divisor=220), SqrtInverse(), Inverse(divisor=3)], ids=str)
def test_the_mean_over_weights_has_the_gradient_of_torchs(weights: Any, smoothing: float) -> None:
    head, known = multiclass(3), codes(9, 4, 2)
    rows = [{"id": f"{row}", head.name: None if code < 0 else f"{code}"} for row, code in enumerate(known)]
    images = make_samples(rows, head)
    settings = FitSettings(class_weights=weights, loss=ByHead(smoothing=smoothing, mean="weights"))
    objective = fit_objective(settings, images, sampling_plan(settings, images, seed=0))
    targets = LabelTensors(images, class_weights=objective.training_mean).of(np.arange(len(images)))
    logits = torch.randn(len(known), 3, generator=torch.Generator().manual_seed(0))
    ours, torchs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    objective.training(ours, [targets]).loss.backward()
    weight = torch.from_numpy(head_weights(weights, head, known))
    loss = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing, ignore_index=-1)
    loss(torchs, torch.from_numpy(known)).backward()
    torch.testing.assert_close(ours.grad, torchs.grad, rtol=0, atol=1e-6)


def test_the_scale_of_weights_cancels_in_the_mean_over_them() -> None:
    """So N / (220 N_i) trains as N / N_i does."""
    head, known = multiclass(3), codes(9, 4, 2)
    images = make_samples([{"id": f"{row}", "h": f"{code}"} for row, code in enumerate(known[1:-1])], head)
    losses = []
    for divisor in (1.0, 220.0):
        settings = FitSettings(
            class_weights=Inverse(divisor=divisor), loss=CrossEntropy(smoothing=0.01, spread="half", mean="weights")
        )
        objective = fit_objective(settings, images, sampling_plan(settings, images, seed=0))
        targets = LabelTensors(images, class_weights=objective.validation_mean).of(np.arange(len(images)))
        losses.append(objective.validation(torch.eye(3)[known[1:-1]], [targets]).loss)
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "there are none; give class_weights"),
        ({"class_weights": "inverse", "unlabelled": {}}, "unlabelled adds images without; drop one"),
    ],
)
def test_a_mean_over_weights_needs_weights_of_all_images(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FitSettings.model_validate({"loss": {"mean": "weights"}, **changed})


@pytest.mark.parametrize("weights", [None, "sqrt_inverse"])
def test_a_uniform_prior_predicts_as_if_all_classes_were_as_frequent(weights: str | None) -> None:
    """The logits of a model that has learnt shares, weighted or not, less the shift: no class is ahead."""
    settings = FitSettings.model_validate({"class_weights": weights, "prior": "uniform"})
    season = ["spring", "spring", "autumn", None, "spring"]
    given: list[Any] = [["beach"], [], ["city"], None, []]
    lacking = [None, None, ["beach"], None, None]
    rows = zip("abcde", season, given, lacking, strict=True)
    images = make_samples([{"id": i, "season": s, "tags": t, "unknown tags": u} for i, s, t, u in rows], *SPACE)
    objective = fit_objective(settings, images, sampling_plan(settings, images, seed=0))
    of_season, of_tags = (np.ones(3), np.ones(2)) if weights is None else class_weights(SqrtInverse(), images)
    shares = np.array([0.75, 1e-9, 0.25])  # no image in summer, of which nothing can be said
    odds = np.array([1 / 2, 1 / 3])  # of beach and city, whose negatives are 2 and 3
    learnt = np.concatenate([np.log(shares * of_season), np.log(odds * of_tags)])
    adjusted = objective.rule.logits(learnt[None])[0]
    np.testing.assert_allclose(adjusted[[0, 3, 4]], [adjusted[2], 0, 0], atol=1e-6)
