"""Every loss under one contract."""

from __future__ import annotations

from functools import partial
from inspect import Parameter, signature
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from sklearn.metrics import brier_score_loss
from torchvision.ops import sigmoid_focal_loss

from assay.errors import PlanError
from assay.labels.space import Head, LabelSpace
from assay.training.losses import (
    LOSSES,
    ONLY_FOR,
    Asymmetric,
    BinaryCrossEntropy,
    ByHead,
    CrossEntropy,
    Focal,
    LossSettings,
    asymmetric,
    binary_cross_entropy,
    cross_entropy,
    focal,
    generalised_cross_entropy,
    head_losses,
    mean_squared_error,
    most_probable,
)
from assay.training.objective import dense

ADAPTER = TypeAdapter(LossSettings)
SPACE = LabelSpace(
    (
        Head("season", ("spring", "summer", "autumn", "winter")),
        Head("tags", ("sea", "city", "dog"), "multilabel"),
        Head("day", ("day", "night")),
    )
)
OPTIONS = {
    "cross_entropy": [{}, {"smoothing": 0.1}, {"smoothing": 0.1, "spread": "half"}],
    "binary_cross_entropy": [{}, {"smoothing": 0.1}],
    "mean_squared_error": [{}],
    "focal": [{}, {"gamma": 0.5}, {"gamma": 0.0}],
    "asymmetric": [{}, {"gamma_negative": 0.5, "gamma_positive": 0.5}, {"gamma_positive": 0.0, "shift": 0.0}],
    "generalised_cross_entropy": [{}, {"q": 0.01}, {"q": 1.0}, {"smoothing": 0.1}],
}
CASES = [
    pytest.param(partial(loss, **options), kind, id=f"{name}-{options or 'defaults'}-{kind}")
    for name, loss in LOSSES.items()
    for options in OPTIONS[name]
    for kind in ("multiclass", "multilabel")
    if ONLY_FOR.get(name, kind) == kind
]
CASES.append(pytest.param(partial(focal, alpha=0.25), "multilabel", id="focal-alpha-multi-label"))
each_loss = pytest.mark.parametrize(("loss", "kind"), CASES)


def one_head(kind: str, seed: int = 0, count: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, targets and a mask of one head with 4 classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 4, generator=generator)
    shape = (count,) if kind == "multiclass" else (count, 4)
    codes = torch.randint(-1, 4 if kind == "multiclass" else 2, shape, generator=generator)
    (targets,), (mask,) = dense(LabelSpace((Head("h", tuple("abcd"), kind),)), [codes])
    return logits, targets, mask


def all_known(kind: str, seed: int = 0, count: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and targets of one head with 4 classes, and a mask that knows all of them."""
    logits, _, mask = one_head(kind, seed, count)
    generator = torch.Generator().manual_seed(seed + 1)
    if kind == "multiclass":
        targets = F.one_hot(torch.randint(0, 4, (count,), generator=generator), 4).float()
    else:
        targets = torch.randint(0, 2, (count, 4), generator=generator).float()
    return logits, targets, torch.ones_like(mask)


def gradient(loss: Any, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> Any:
    logits = logits.clone().requires_grad_()
    loss(logits, targets, mask).sum().backward()
    return logits.grad


DEFAULT = head_losses(SPACE, ByHead())


@each_loss
@pytest.mark.parametrize("unknown", [float("nan"), float("inf")])
def test_unknown_cells_give_nothing_and_get_no_gradient(loss: Any, kind: Any, unknown: Any) -> None:
    logits, targets, mask = one_head(kind)
    cells = ~(mask[:, None].expand_as(logits) if kind == "multiclass" else mask)
    clean = loss(logits, targets, mask)
    logits = logits.masked_fill(cells, unknown).requires_grad_()
    got = loss(logits, targets.masked_fill(cells, unknown), mask)
    assert got.shape == mask.shape
    assert (got[~mask] == 0).all()
    assert (got[mask] > 0).all()
    assert torch.equal(got, clean)
    got.sum().backward()
    assert (logits.grad[cells] == 0).all()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[~cells] != 0).any()


@each_loss
@pytest.mark.parametrize("scale", [100.0, 1e30])
def test_extreme_logits_stay_finite(loss: Any, kind: Any, scale: float) -> None:
    logits, targets, mask = all_known(kind)
    for extreme in (logits * scale, (2 * targets - 1) * scale, (1 - 2 * targets) * scale):
        assert torch.isfinite(loss(extreme, targets, mask)).all()
        assert torch.isfinite(gradient(loss, extreme, targets, mask)).all()


@each_loss
def test_order_of_images_does_not_matter(loss: Any, kind: Any) -> None:
    logits, targets, mask = one_head(kind)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(logits, targets, mask)[order], loss(logits[order], targets[order], mask[order]))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(loss: Any, kind: Any, dtype: torch.dtype) -> None:
    logits, targets, mask = one_head(kind)
    got = loss(logits.to(dtype), targets, mask)
    assert got.dtype == torch.float32
    assert torch.equal(got, loss(logits.to(dtype).float(), targets, mask))


@each_loss
def test_the_right_answer_costs_less_than_a_wrong_one(loss: Any, kind: Any) -> None:
    _, targets, mask = all_known(kind)
    right, unsure, wrong = (loss(sign * (2 * targets - 1) * 2, targets, mask) for sign in (1, 0, -1))
    assert (right < unsure).all()
    assert (unsure < wrong).all()


@each_loss
def test_a_soft_target_is_an_expectation_over_labels(loss: Any, kind: Any) -> None:
    logits, one, mask = all_known(kind)
    other = all_known(kind, seed=5)[1]
    parts = [loss(logits, targets, mask) for targets in (one, other)]
    whole = loss(logits, 0.3 * one + 0.7 * other, mask)
    expected = 0.3 * parts[0] + 0.7 * parts[1]
    if loss.func is mean_squared_error:  # the variance of the label, which no logit changes
        variance = 0.21 * (one - other).square()
        expected = expected - (variance.sum(1) if kind == "multiclass" else variance)
    torch.testing.assert_close(whole, expected)
    slopes = [gradient(loss, logits, targets, mask) for targets in (one, other)]
    mixed = gradient(loss, logits, 0.3 * one + 0.7 * other, mask)
    torch.testing.assert_close(mixed, 0.3 * slopes[0] + 0.7 * slopes[1])


@each_loss
def test_a_step_downhill_costs_less(loss: Any, kind: Any) -> None:
    logits, targets, mask = all_known(kind)
    step = logits - 0.05 * gradient(loss, logits, targets, mask)
    assert loss(step, targets, mask).sum() < loss(logits, targets, mask).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_equals_torchs(smoothing: float) -> None:
    logits, codes = (
        torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 3, 1, 1, 2]),
    )
    got = cross_entropy(logits, F.one_hot(codes, 4).float(), torch.ones(5, dtype=torch.bool), smoothing=smoothing)
    torch.testing.assert_close(got, F.cross_entropy(logits, codes, reduction="none", label_smoothing=smoothing))


def test_half_smoothing_adds_half_of_it_to_every_class() -> None:
    logits, targets, known = all_known("multiclass")
    published = targets * (1 - 0.2) + 0.5 * 0.2  # of 4 classes, a sum of 1.2
    expected = -(published * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(cross_entropy(logits, targets, known, smoothing=0.2, spread="half"), expected)


@pytest.mark.parametrize(("spread", "most"), [("even", 0.925), ("half", 0.95 / 1.1)])
def test_smoothing_bounds_the_probabilities_that_are_taught(spread: Any, most: float) -> None:
    assert most_probable(CrossEntropy(smoothing=0.1, spread=spread), 4) == pytest.approx(most)
    assert most_probable(Focal(), 4) == 1.0


def test_binary_cross_entropy_equals_torchs() -> None:
    logits, targets, _ = one_head("multilabel")
    known = torch.ones_like(targets, dtype=torch.bool)
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, targets, known), expected)
    torch.testing.assert_close(binary_cross_entropy(logits, targets, known[:, 0]), expected.mean(1))
    smoothed = F.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, targets, known, smoothing=0.2), smoothed)


def test_mean_squared_error_is_that_of_probabilities() -> None:
    logits, targets, known = all_known("multilabel")
    assert mean_squared_error(logits, targets, known).mean().item() == pytest.approx(
        np.mean((scipy.special.expit(logits.numpy()) - targets.numpy()) ** 2), rel=1e-5
    )
    logits, targets, known = all_known("multiclass")
    brier = brier_score_loss(
        targets.argmax(1).numpy(), scipy.special.softmax(logits.numpy(), 1), labels=range(4), scale_by_half=False
    )
    assert mean_squared_error(logits, targets, known).mean().item() == pytest.approx(brier, rel=1e-5)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, None), (2.0, 0.25), (0.5, 0.9), (0.0, None)])
def test_focal_equals_torchvisions(gamma: float, alpha: float | None) -> None:
    logits, targets, known = all_known("multilabel")
    expected = sigmoid_focal_loss(logits, targets, alpha=-1 if alpha is None else alpha, gamma=gamma)
    torch.testing.assert_close(focal(logits, targets, known, gamma=gamma, alpha=alpha), expected)


def test_focal_of_a_softmax_equals_its_formula() -> None:
    logits, targets, known = all_known("multiclass")
    p = (logits.softmax(1) * targets).sum(1)
    torch.testing.assert_close(focal(logits, targets, known, gamma=3.0), -((1 - p) ** 3) * p.log())


def test_focal_without_focus_is_cross_entropy() -> None:
    for kind, same in (("multiclass", cross_entropy), ("multilabel", binary_cross_entropy)):
        logits, targets, mask = one_head(kind)
        torch.testing.assert_close(focal(logits, targets, mask, gamma=0.0), same(logits, targets, mask))


def test_asymmetric_equals_the_published_code() -> None:
    logits, targets, known = all_known("multilabel", count=50)
    logits = 3 * logits
    p = logits.double().sigmoid()  # as in github.com/Alibaba-MIIL/ASL
    rest = (1 - p + 0.05).clamp(max=1)
    cells = targets * p.log() + (1 - targets) * rest.log()
    right = p * targets + rest * (1 - targets)
    expected = -cells * (1 - right) ** (1 * targets + 4 * (1 - targets))
    torch.testing.assert_close(asymmetric(logits, targets, known), expected.float(), rtol=1e-4, atol=1e-7)


def test_asymmetric_without_asymmetry_is_binary_cross_entropy() -> None:
    logits, targets, mask = one_head("multilabel")
    plain = partial(asymmetric, gamma_negative=0.0, gamma_positive=0.0, shift=0.0)
    for scale in (1, 100):
        torch.testing.assert_close(
            plain(logits * scale, targets, mask), binary_cross_entropy(logits * scale, targets, mask)
        )


def test_asymmetric_lets_go_of_negatives_below_the_margin() -> None:
    logits = torch.tensor([[-4.0, -2.0]]).requires_grad_()  # probabilities 0.018 and 0.12
    loss = asymmetric(logits, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), shift=0.05)
    loss.sum().backward()
    assert loss[0, 0] == 0
    assert logits.grad[0, 0] == 0
    assert loss[0, 1] > 0


def test_generalised_cross_entropy_lies_between_cross_entropy_and_absolute_error() -> None:
    for kind, limit in (("multiclass", cross_entropy), ("multilabel", binary_cross_entropy)):
        logits, targets, known = all_known(kind)
        p = (logits.softmax(1) * targets).sum(1) if kind == "multiclass" else (logits * (2 * targets - 1)).sigmoid()
        near_zero = generalised_cross_entropy(logits, targets, known, q=1e-5)
        torch.testing.assert_close(near_zero, limit(logits, targets, known), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(generalised_cross_entropy(logits, targets, known, q=1.0), 1 - p)
        torch.testing.assert_close(generalised_cross_entropy(logits, targets, known), (1 - p**0.7) / 0.7)


@each_loss
def test_class_weights_are_of_the_given_class_or_of_positives(loss: Any, kind: Any) -> None:
    logits, targets, mask = one_head(kind)
    space = LabelSpace((Head("h", tuple("abcd"), kind),))
    name = next(name for name, function in LOSSES.items() if function is loss.func)
    chosen = ADAPTER.validate_python({"kind": name, **loss.keywords})
    weights = torch.tensor([0.5, 1.0, 2.0, 30.0], dtype=torch.float64)
    (weighted,) = head_losses(space, chosen, class_weights=[weights])
    unknown = ~(mask[:, None] if kind == "multiclass" else mask)
    of_target = weights[targets.argmax(1)] if kind == "multiclass" else torch.where(targets == 1, weights, 1.0)
    got = weighted(logits.masked_fill(unknown, float("nan")), targets.masked_fill(unknown, float("nan")), mask)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, loss(logits, targets, mask) * of_target.float())


def test_the_class_weight_multiplies_the_smoothed_part_too() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    weights = torch.tensor([3.0, 1.0, 5.0])
    space = LabelSpace((Head("h", tuple("abc")),))
    (loss,) = head_losses(space, CrossEntropy(smoothing=0.3), class_weights=[weights])
    expected = -3.0 * (torch.tensor([0.8, 0.1, 0.1]) * logits[0].log_softmax(0)).sum()
    known = torch.ones(1, dtype=torch.bool)
    torch.testing.assert_close(loss(logits, torch.tensor([[1.0, 0, 0]]), known)[0], expected)
    soft = loss(logits, torch.tensor([[0.5, 0, 0.5]]), known)
    torch.testing.assert_close(soft, 4.0 * cross_entropy(logits, torch.tensor([[0.5, 0, 0.5]]), known, smoothing=0.3))


def test_weights_of_one_or_none_leave_a_loss_as_it_is() -> None:
    logits, targets, mask = one_head("multiclass")
    heads = LabelSpace((Head("weighted", tuple("abcd")), Head("plain", tuple("abcd"))))
    weighted, plain = head_losses(heads, ByHead(), class_weights=[torch.ones(4), None])
    assert plain.func is cross_entropy
    assert torch.equal(weighted(logits, targets, mask), plain(logits, targets, mask))


def test_each_head_takes_its_own_loss() -> None:
    assert [loss.func for loss in DEFAULT] == [cross_entropy, binary_cross_entropy, cross_entropy]
    everywhere = head_losses(SPACE, BinaryCrossEntropy(smoothing=0.1))
    assert [(loss.func, loss.keywords) for loss in everywhere] == [(binary_cross_entropy, {"smoothing": 0.1})] * 3


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (CrossEntropy(), "cross_entropy is for multiclass heads, and head 'tags' is multilabel. Leave the kind out"),
        (Asymmetric(), "asymmetric is for multilabel heads, and head 'season' is multiclass. Leave the kind out"),
        (
            Focal(alpha=0.25),
            "alpha weighs positives against negatives, and head 'season' is multi-class.*Leave alpha out",
        ),
    ],
)
def test_a_loss_for_another_kind_of_head_is_refused(loss: Asymmetric | CrossEntropy | Focal, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        head_losses(SPACE, loss)


def test_every_loss_has_settings_with_its_options() -> None:
    for name, loss in LOSSES.items():
        chosen = ADAPTER.validate_python(name)
        defaults = {key: parameter.default for key, parameter in signature(loss).parameters.items()}
        options = {k: v for k, v in defaults.items() if v is not Parameter.empty and k != "class_weights"}
        assert {"kind": name} | options == chosen.model_dump(exclude={"mean"})  # which hands on the weights or not


def test_a_loss_in_a_plan() -> None:
    assert ADAPTER.validate_python("cross_entropy") == CrossEntropy()
    assert ADAPTER.validate_python({"smoothing": 0.1}) == ByHead(smoothing=0.1)
    assert ADAPTER.validate_python({"kind": "cross_entropy", "smoothing": 0.1}) == CrossEntropy(smoothing=0.1)
    assert ADAPTER.validate_python({"kind": "focal", "gamma": 1}) == Focal(gamma=1.0)
    for wrong in ("crossentropy", {"smoothing": 1.0}, {"smoothing": -0.1}, {"gamma": 2}, 3):
        with pytest.raises(ValidationError):
            ADAPTER.validate_python(wrong)
    for wrong in (
        {"kind": "generalised_cross_entropy", "q": 0},
        {"kind": "focal", "gamma": -1},
        {"kind": "focal", "alpha": 1},
    ):
        with pytest.raises(ValidationError):
            ADAPTER.validate_python(wrong)
