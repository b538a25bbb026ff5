"""Weights of an ensemble and picks of a soup, by validation alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from assay.labels.space import Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.models.combiners import mean_prediction
from assay.predictions.cross_fitting import folds_of
from assay.predictions.ensemble_weights import best_weights, cross_fitted_weights, greedy, head_loss

SPACE = LabelSpace((Head("label", ("a", "b", "c")), Head("tags", ("sea", "sky"), "multilabel")))
both = pytest.mark.parametrize("of", ["probabilities", "logits"])


def planted(*noise: float, images: int = 200, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Codes, some of them unknown, and the logits of a member for each level of noise."""
    generator = np.random.default_rng(seed)
    codes = [generator.integers(0, 3, images), (generator.random((images, 2)) < 0.4).astype(np.int64)]
    truth = np.concatenate([np.eye(3)[codes[0]], codes[1] - 0.5], axis=1)
    logits = [2 * truth + generator.normal(0, level, truth.shape) for level in noise]
    codes[0][generator.random(images) < 0.2] = -1
    codes[1][generator.random((images, 2)) < 0.2] = -1
    return codes, logits


def loss(codes: list[np.ndarray], logits: list[np.ndarray], weights: np.ndarray, of: str) -> float:
    """The sum over heads of the mean loss of what is known, the long way round."""
    shown = probabilities_of(SPACE, mean_prediction(SPACE, logits, of=of, weights=weights)).astype(np.float64)
    known, cells = codes[0] >= 0, codes[1] >= 0
    tags = np.where(codes[1] == 1, shown[:, 3:], 1 - shown[:, 3:])
    rows = np.arange(len(known))[known]
    return float(-np.log(shown[rows, codes[0][known]]).mean() - np.log(tags[cells]).mean())


@both
@settings(max_examples=15)
@given(seed=st.integers(0, 1000), count=st.integers(1, 4))
def test_no_other_weights_lose_less(of: str, seed: int, count: int) -> None:
    codes, logits = planted(*np.linspace(0.5, 2, count), seed=seed, images=60)
    weights = best_weights(SPACE, codes, logits, of=of)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    least = loss(codes, logits, weights, of)
    generator = np.random.default_rng(seed)
    others = [*np.eye(count), *generator.dirichlet(np.ones(count), 30)]
    others += [0.95 * weights + 0.05 * other for other in others]
    assert min(loss(codes, logits, other, of) for other in others) >= least - 1e-6


@both
def test_weights_go_to_those_that_know(of: str) -> None:
    codes, logits = planted(0.5, 0.5, 8.0, images=1000)
    weights = best_weights(SPACE, codes, logits, of=of)
    assert weights[2] < 0.1
    assert weights[:2].min() > 0.1


@both
def test_what_is_unknown_does_not_count(of: str) -> None:
    codes, logits = planted(0.5, 1.0)
    plain = best_weights(SPACE, codes, logits, of=of)
    more = [np.concatenate([known, np.full_like(known, -1)]) for known in codes]
    longer = [np.concatenate([own, -own]) for own in logits]
    np.testing.assert_allclose(best_weights(SPACE, more, longer, of=of), plain, atol=1e-4)
    none = [np.full_like(known, -1) for known in codes]
    assert best_weights(SPACE, none, logits, of=of).tolist() == [0.5, 0.5]


@both
def test_slopes_are_those_of_the_losses(of: str) -> None:
    codes, logits = planted(0.5, 1.0, 2.0, images=30)
    for head, columns, known in SPACE.each(codes):
        loss = head_loss(head, known, np.stack(logits)[:, :, columns], of)  # type: ignore[arg-type]
        weights = np.array([0.2, 0.5, 0.3])
        assert check_grad(lambda w, loss=loss: loss(w)[0], lambda w, loss=loss: loss(w)[1], weights) < 1e-5


@both
def test_a_image_has_no_say_in_its_own_weights(of: str) -> None:
    codes, logits = planted(0.5, 1.0, 1.5)
    weights = cross_fitted_weights(SPACE, codes, logits, of=of, folds=4, seed=3)
    fold = folds_of(200, 4, seed=3)
    for number in range(4):
        others = fold != number
        chosen = best_weights(SPACE, [known[others] for known in codes], [own[others] for own in logits], of=of)
        np.testing.assert_allclose(weights[:, ~others], np.repeat(chosen[:, None], (~others).sum(), axis=1))
    assert weights.shape == (3, 200)


def test_certain_answers_have_finite_weights() -> None:
    codes = [np.array([0, 1]), np.full((2, 2), -1)]
    sure = np.array([[1e4, -1e4, 0, 0, 0], [1e4, -1e4, 0, 0, 0]])
    for of in ("probabilities", "logits"):
        assert np.isfinite(best_weights(SPACE, codes, [sure, -sure, 0 * sure], of=of)).all()


def test_a_greedy_soup_begins_with_the_best_and_takes_whom_it_gains_by() -> None:
    worth = {(0,): 1.0, (1,): 3.0, (2,): 2.0, (3,): 0.0}
    together = {(1, 2): 4.0, (0, 1, 2): 3.5, (1, 2, 3): 4.0}
    asked = []

    def value_of(members: Any) -> float:
        asked.append(members)
        return (worth | together)[members]

    assert greedy([worth[(member,)] for member in range(4)], value_of) == (1, 2, 3)
    assert asked == [(1, 2), (0, 1, 2), (1, 2, 3)]
