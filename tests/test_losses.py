"""Every loss under one contract."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from assay.errors import PlanError
from assay.labels.space import Head, LabelSpace
from assay.training.losses import (
    LOSSES,
    BinaryCrossEntropy,
    ByHead,
    CrossEntropy,
    LossSettings,
    binary_cross_entropy,
    cross_entropy,
    head_losses,
)
from assay.training.objective import dense

ADAPTER = TypeAdapter(LossSettings)
SPACE = LabelSpace(
    (
        Head("season", ("spring", "summer", "autumn", "winter")),
        Head("tags", ("sea", "city", "dog"), "independent"),
        Head("day", ("day", "night")),
    )
)
CASES = [(name, kind) for name in LOSSES for kind in ("exclusive", "independent")]
CASES.remove(("cross_entropy", "independent"))


def one_head(kind, seed=0, count=7):
    """Logits, targets and a mask of one head with 4 classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 4, generator=generator)
    shape = (count,) if kind == "exclusive" else (count, 4)
    codes = torch.randint(-1, 4 if kind == "exclusive" else 2, shape, generator=generator)
    (targets,), (mask,) = dense(LabelSpace((Head("h", tuple("abcd"), kind),)), [codes])
    return logits, targets, mask


DEFAULT = head_losses(SPACE, ByHead())


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_unknown_cells_give_nothing_and_get_no_gradient(name, kind, smoothing):
    logits, targets, mask = one_head(kind)
    cells = ~(mask[:, None].expand_as(logits) if kind == "exclusive" else mask)
    logits = logits.masked_fill(cells, float("nan")).requires_grad_()
    loss = LOSSES[name](logits, targets.masked_fill(cells, float("nan")), mask, smoothing=smoothing)
    assert loss.shape == mask.shape
    assert (loss[~mask] == 0).all()
    assert (loss[mask] > 0).all()
    loss.sum().backward()
    assert (logits.grad[cells] == 0).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_extreme_logits_stay_finite(name, kind):
    logits, targets, mask = one_head(kind)
    logits = (logits * 1e30).requires_grad_()
    loss = LOSSES[name](logits, targets, mask, smoothing=0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_order_of_pictures_does_not_matter(name, kind):
    logits, targets, mask = one_head(kind)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        LOSSES[name](logits, targets, mask)[order], LOSSES[name](logits[order], targets[order], mask[order])
    )


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_half_precision_is_computed_in_full(name, kind):
    logits, targets, mask = one_head(kind)
    loss = LOSSES[name](logits.bfloat16(), targets, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](logits.bfloat16().float(), targets, mask))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_equals_torchs(smoothing):
    logits, codes = (
        torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 3, 1, 1, 2]),
    )
    got = cross_entropy(logits, F.one_hot(codes, 4).float(), torch.ones(5, dtype=torch.bool), smoothing=smoothing)
    torch.testing.assert_close(got, F.cross_entropy(logits, codes, reduction="none", label_smoothing=smoothing))


def test_binary_cross_entropy_equals_torchs():
    logits, targets, _ = one_head("independent")
    known = torch.ones_like(targets, dtype=torch.bool)
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, targets, known), expected)
    torch.testing.assert_close(binary_cross_entropy(logits, targets, known[:, 0]), expected.mean(1))
    smoothed = F.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, targets, known, smoothing=0.2), smoothed)


def test_each_head_takes_its_own_loss():
    assert [loss.func for loss in DEFAULT] == [cross_entropy, binary_cross_entropy, cross_entropy]
    everywhere = head_losses(SPACE, BinaryCrossEntropy(smoothing=0.1))
    assert [(loss.func, loss.keywords) for loss in everywhere] == [(binary_cross_entropy, {"smoothing": 0.1})] * 3


def test_cross_entropy_on_an_independent_head_is_refused():
    with pytest.raises(PlanError, match=r"head 'tags' is independent. Leave the kind out"):
        head_losses(SPACE, CrossEntropy())


def test_a_loss_in_a_plan():
    assert ADAPTER.validate_python("cross_entropy") == CrossEntropy()
    assert ADAPTER.validate_python({"smoothing": 0.1}) == ByHead(smoothing=0.1)
    assert ADAPTER.validate_python({"kind": "cross_entropy", "smoothing": 0.1}) == CrossEntropy(smoothing=0.1)
    for wrong in ("crossentropy", {"smoothing": 1.0}, {"smoothing": -0.1}, {"gamma": 2}, 3):
        with pytest.raises(ValidationError):
            ADAPTER.validate_python(wrong)
