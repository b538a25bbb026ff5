"""Every loss under one contract, and the sum over heads of which some labels are known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
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
    counts,
    cross_entropy,
    dense,
    head_losses,
    sums,
    total_loss,
)

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


def batch(seed=0, count=6):
    """Logits, targets, masks and weights of all heads of SPACE."""
    generator = torch.Generator().manual_seed(seed)
    codes = [
        torch.randint(-1, 4, (count,), generator=generator),
        torch.randint(-1, 2, (count, 3), generator=generator),
        torch.randint(-1, 2, (count,), generator=generator),
    ]
    logits = torch.randn(count, SPACE.width, generator=generator)
    return logits, *dense(SPACE, codes), torch.rand(count, 3, generator=generator)


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


def test_dense():
    space = LabelSpace((Head("a", ("x", "y")), Head("b", ("p", "q"), "independent")))
    targets, masks = dense(space, [torch.tensor([1, -1]), torch.tensor([[1, -1], [0, 1]])])
    assert [t.tolist() for t in targets] == [[[0, 1], [0, 0]], [[1, 0], [0, 1]]]
    assert [m.tolist() for m in masks] == [[True, False], [[True, False], [True, True]]]
    assert all(t.dtype == torch.float32 for t in targets)


def test_total_is_the_sum_of_weighted_means_over_known_cells():
    logits, targets, masks, weights = batch()
    expected = 0.0
    for i, (head, columns) in enumerate(zip(SPACE, SPACE.slices, strict=True)):
        cells = DEFAULT[i](logits[:, columns], targets[i], masks[i])
        weight = weights[:, i] if head.kind == "exclusive" else weights[:, i, None].expand(-1, head.size)
        expected += (cells[masks[i]] * weight[masks[i]]).sum() / weight[masks[i]].sum()
    torch.testing.assert_close(total_loss(SPACE, logits, targets, masks, weights, losses=DEFAULT), expected)


def test_nothing_known_is_a_loss_of_zero_with_no_gradient():
    logits, targets, masks, weights = batch()
    logits.requires_grad_()
    loss = total_loss(SPACE, logits, targets, [m & False for m in masks], weights, losses=DEFAULT)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_an_unknown_head_moves_only_the_others():
    logits, targets, masks, weights = batch()
    logits.requires_grad_()
    total_loss(SPACE, logits, targets, [masks[0], masks[1] & False, masks[2]], weights, losses=DEFAULT).backward()
    assert (logits.grad[:, 4:7] == 0).all()
    assert (logits.grad[:, :4] != 0).any()


def test_weights_are_linear_and_only_their_ratio_counts():
    logits, targets, masks, weights = batch()
    once = sums(SPACE, logits, targets, masks, weights, losses=DEFAULT)
    twice = sums(SPACE, logits, targets, masks, weights * 2, losses=DEFAULT)
    torch.testing.assert_close(twice.sums, once.sums * 2)
    torch.testing.assert_close(twice.counts, once.counts * 2)
    torch.testing.assert_close(twice.loss, once.loss)


def test_a_weight_of_zero_is_as_good_as_unknown():
    logits, targets, masks, weights = batch()
    weights[2] = 0
    rest = [0, 1, 3, 4, 5]
    torch.testing.assert_close(
        total_loss(SPACE, logits, targets, masks, weights, losses=DEFAULT),
        total_loss(
            SPACE,
            logits[rest],
            [t[rest] for t in targets],
            [m[rest] for m in masks],
            weights[rest],
            losses=DEFAULT,
        ),
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_the_parts_of_a_batch_add_up_to_the_whole(seed, cut):
    logits, targets, masks, weights = batch(seed)
    whole = sums(SPACE, logits, targets, masks, weights, losses=DEFAULT)
    over = counts(SPACE, masks, weights)
    parts = []
    for rows in (slice(None, cut), slice(cut, None)):
        known = [m[rows] for m in masks]
        parts.append(
            sums(
                SPACE,
                logits[rows],
                [t[rows] for t in targets],
                known,
                weights[rows],
                losses=DEFAULT,
                over=over,
            )
        )
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss)
    torch.testing.assert_close(parts[0].sums + parts[1].sums, whole.sums)
    torch.testing.assert_close(parts[0].counts + parts[1].counts, whole.counts)


def test_counts_are_of_known_cells():
    _, _, masks, weights = batch()
    got = counts(SPACE, masks, torch.ones_like(weights))
    assert got.tolist() == [float(mask.sum()) for mask in masks]


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
