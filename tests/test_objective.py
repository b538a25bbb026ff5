"""The sum over heads of which some labels are known, of plain and of mixed images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.labels.space import Head, LabelSpace
from assay.steps.fit import mean_loss
from assay.training.losses import ByHead, head_losses
from assay.training.objective import Objective, Targets, counts, dense
from assay.training.sources import LabelTensors
from factories import make_samples

SPACE = LabelSpace(
    (
        Head("season", ("spring", "summer", "autumn", "winter")),
        Head("tags", ("sea", "city", "dog"), "multilabel"),
        Head("day", ("day", "night")),
    )
)
LOSSES = head_losses(SPACE, ByHead())
OBJECTIVE = Objective(SPACE, LOSSES)
B = 6


def truth_of(seed: int = 0) -> Targets:
    """What is known of six images; some of it is not."""
    generator = torch.Generator().manual_seed(seed)
    codes = [
        torch.randint(-1, 4, (B,), generator=generator),
        torch.randint(-1, 2, (B, 3), generator=generator),
        torch.randint(-1, 2, (B,), generator=generator),
    ]
    return Targets(*dense(SPACE, codes), torch.rand(B, 3, generator=generator))


def logits_of(seed: int = 0) -> Tensor:
    return torch.randn(B, SPACE.width, generator=torch.Generator().manual_seed(100 + seed)).requires_grad_()


def rows_of(truth: Targets, rows: slice | list[int]) -> Targets:
    return Targets([t[rows] for t in truth.targets], [m[rows] for m in truth.masks], truth.weights[rows])


def masked(truth: Targets, head: int) -> Targets:
    """With nothing known of a head."""
    return Targets(truth.targets, [m & (i != head) for i, m in enumerate(truth.masks)], truth.weights)


def means(logits: Tensor, shares: list[tuple[Targets, Tensor]]) -> list[Tensor]:
    """The mean a head over the cells that are known, cell by cell as the formula is written."""
    found = []
    for i, (head, columns) in enumerate(zip(SPACE, SPACE.slices, strict=True)):
        above, below = torch.zeros(()), torch.zeros(())
        for truth, share in shares:
            cells = LOSSES[i](logits[:, columns], truth.targets[i], truth.masks[i])
            for row in range(B):
                weight = truth.weights[row, i] * share[row]
                for place in [row] if head.kind == "multiclass" else [(row, k) for k in range(head.size)]:
                    if truth.masks[i][place]:
                        above, below = above + weight * cells[place], below + weight
        found.append(above / below)
    return found


def test_dense() -> None:
    space = LabelSpace((Head("a", ("x", "y")), Head("b", ("p", "q"), "multilabel")))
    targets, masks = dense(space, [torch.tensor([1, -1]), torch.tensor([[1, -1], [0, 1]])])
    assert [t.tolist() for t in targets] == [[[0, 1], [0, 0]], [[1, 0], [0, 1]]]
    assert [m.tolist() for m in masks] == [[True, False], [[True, False], [True, True]]]
    assert all(t.dtype == torch.float32 for t in targets)


def test_the_loss_is_the_sum_of_weighted_means_over_known_cells() -> None:
    expected = means(logits_of(), [(truth_of(), torch.ones(B))])
    torch.testing.assert_close(OBJECTIVE(logits_of(), [truth_of()]).loss, torch.stack(expected).sum())


def test_factors_weigh_heads() -> None:
    expected = means(logits_of(), [(truth_of(), torch.ones(B))])
    found = Objective(SPACE, LOSSES, (0.5, 0.0, 3.0))(logits_of(), [truth_of()])
    torch.testing.assert_close(found.loss, 0.5 * expected[0] + 3 * expected[2])
    torch.testing.assert_close(found.sums, OBJECTIVE(logits_of(), [truth_of()]).sums)


def test_offsets_are_added_to_the_logits() -> None:
    offsets = torch.linspace(-2, 3, SPACE.width)
    adjusted = Objective(SPACE, LOSSES, offsets=offsets)(logits_of(), [truth_of()])
    torch.testing.assert_close(adjusted.loss, OBJECTIVE(logits_of() + offsets, [truth_of()]).loss)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_the_loss_of_mixed_images_is_the_formula_written_out(seed: int) -> None:
    own, other, share = truth_of(seed), truth_of(seed + 1), torch.rand(B, generator=torch.Generator().manual_seed(seed))
    found = OBJECTIVE(logits_of(), [own.shared(share), other.shared(1 - share)])
    expected = torch.stack(means(logits_of(), [(own, share), (other, 1 - share)]))
    torch.testing.assert_close(found.loss, expected.nan_to_num().sum())  # a head may have nothing known
    torch.testing.assert_close(found.counts, counts([own.shared(share)]) + counts([other.shared(1 - share)]))


def test_a_share_of_all_is_as_good_as_not_mixed() -> None:
    mixed = [truth_of(1).shared(torch.ones(B)), truth_of(2).shared(torch.zeros(B))]
    for one, other in zip(OBJECTIVE(logits_of(), mixed), OBJECTIVE(logits_of(), [truth_of(1)]), strict=True):
        assert torch.equal(one, other)


def test_a_image_mixed_with_itself_counts_once() -> None:
    share = torch.rand(B, generator=torch.Generator().manual_seed(0))
    mixed = OBJECTIVE(logits_of(), [truth_of().shared(share), truth_of().shared(1 - share)])
    for one, other in zip(mixed, OBJECTIVE(logits_of(), [truth_of()]), strict=True):
        torch.testing.assert_close(one, other)


def test_labels_known_of_one_of_two_mixed_images_train_their_heads_in_their_shares() -> None:
    space = LabelSpace((Head("a", ("x", "y")), Head("b", ("p", "q", "r"))))
    objective = Objective(space, head_losses(space, ByHead()))
    first = Targets(*dense(space, [torch.tensor([1]), torch.tensor([-1])]), torch.ones(1, 2))
    second = Targets(*dense(space, [torch.tensor([-1]), torch.tensor([2])]), torch.ones(1, 2))
    logits = torch.zeros(1, 5, requires_grad=True)
    share = torch.tensor([0.3])
    found = objective(logits, [first.shared(share), second.shared(1 - share)], torch.ones(2))
    found.loss.backward()
    torch.testing.assert_close(found.counts, torch.tensor([0.3, 0.7]))
    torch.testing.assert_close(logits.grad, torch.tensor([[0.3 / 2, -0.3 / 2, 0.7 / 3, 0.7 / 3, -1.4 / 3]]))


def test_nothing_known_is_a_loss_of_zero_with_no_gradient() -> None:
    logits, nothing = logits_of(), masked(masked(masked(truth_of(), 0), 1), 2)
    loss = OBJECTIVE(logits, [nothing]).loss
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_an_unknown_head_moves_only_the_others() -> None:
    logits = logits_of()
    OBJECTIVE(logits, [masked(truth_of(), 1)]).loss.backward()
    assert (logits.grad[:, 4:7] == 0).all()
    assert (logits.grad[:, :4] != 0).any()


def test_weights_are_linear_and_only_their_ratio_counts() -> None:
    once = OBJECTIVE(logits_of(), [truth_of()])
    twice = OBJECTIVE(logits_of(), [truth_of().shared(torch.full((B,), 2.0))])
    torch.testing.assert_close(twice.sums, once.sums * 2)
    torch.testing.assert_close(twice.counts, once.counts * 2)
    torch.testing.assert_close(twice.loss, once.loss)


def test_a_weight_of_zero_is_as_good_as_unknown() -> None:
    truth, rest = truth_of(), [0, 1, 3, 4, 5]
    truth.weights[2] = 0
    without = OBJECTIVE(logits_of()[rest], [rows_of(truth, rest)]).loss
    torch.testing.assert_close(OBJECTIVE(logits_of(), [truth]).loss, without)


@pytest.mark.parametrize("mixed", [False, True])
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(1, B - 1))
def test_the_parts_of_a_batch_add_up_to_the_whole(mixed: bool, seed: int, cut: int) -> None:
    share = torch.rand(B, generator=torch.Generator().manual_seed(seed))
    known = [truth_of(seed).shared(share), truth_of(seed + 1).shared(1 - share)] if mixed else [truth_of(seed)]
    whole = OBJECTIVE(logits_of(seed), known)
    over = counts(known)
    parts = [
        OBJECTIVE(logits_of(seed)[rows], [rows_of(truth, rows) for truth in known], over)
        for rows in (slice(None, cut), slice(cut, None))
    ]
    for first, second, both in zip(*parts, whole, strict=True):
        torch.testing.assert_close(first + second, both)


def test_counts_are_of_known_cells() -> None:
    truth = truth_of()
    plain = Targets(truth.targets, truth.masks, torch.ones(B, 3))
    assert counts([plain]).tolist() == [float(mask.sum()) for mask in truth.masks]


def test_the_mean_of_sums_is_that_of_the_whole() -> None:
    found = OBJECTIVE(logits_of(), [truth_of()])
    assert OBJECTIVE.mean(found.sums, found.counts) == found.loss


def test_the_loss_of_many_images_is_that_of_their_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": str(row), "season": ("spring", "winter", None)[row % 3]} for row in range(20)]
    known = LabelTensors(make_samples(rows, *SPACE))
    logits, objective = np.random.default_rng(0).normal(size=(20, SPACE.width)).astype(np.float32), OBJECTIVE
    whole = mean_loss(objective, logits, known)
    monkeypatch.setattr("assay.metrics.tallies.BLOCK", 12)
    assert mean_loss(objective, logits, known) == pytest.approx(whole, rel=1e-6)
    assert math.isfinite(whole)
