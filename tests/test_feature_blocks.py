from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from assay.arrays import Floats, Ints
from assay.labels.space import Head, LabelSpace
from assay.training import feature_blocks, linear
from assay.training.feature_blocks import Stacked, in_blocks, moments
from assay.training.linear import find_strengths, fit_linear

BOTH = LabelSpace((Head("kind", ("a", "b", "c")), Head("tags", ("p", "q"), "multilabel")))
ROWS, WIDTH = 200, 8


class Noted:
    """A table on disk, as it were, that notes how many of its rows are read at once."""

    def __init__(self, features: Floats) -> None:
        self.features, self.shape, self.most = features, features.shape, 0

    def __getitem__(self, rows: Ints) -> Floats:
        self.most = max(self.most, len(rows))
        return self.features[rows]


def planted() -> Any:
    random = np.random.default_rng(0)
    codes = [random.integers(-1, 3, ROWS), random.integers(-1, 2, (ROWS, 2))]
    features = random.normal(3, 2, (ROWS, WIDTH)).astype(np.float32)
    features[:, :3] += 2 * np.eye(3, dtype=np.float32)[np.maximum(codes[0], 0)]
    return features, codes, random.uniform(0.5, 1.5, (ROWS, 2)).astype(np.float32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of at most so many rows of features."""
    monkeypatch.setattr(feature_blocks, "IN_MEMORY", 100)
    monkeypatch.setattr(feature_blocks, "BLOCK", 16 * WIDTH)
    return 16


def test_a_linear_model_of_many_images_reads_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    features, codes, weights = planted()
    whole = fit_linear(BOTH, features, codes, weights, seed=0)
    monkeypatch.setattr(feature_blocks, "IN_MEMORY", 100)
    monkeypatch.setattr(feature_blocks, "BLOCK", 16 * WIDTH)
    monkeypatch.setattr(linear, "CURVATURE_ROWS", 10)
    table = Noted(features)
    fitted = fit_linear(BOTH, table, codes, weights, seed=0, strengths=whole.strengths)
    assert 0 < table.most <= 16
    assert fitted.logits(features) == pytest.approx(whole.logits(features), abs=2e-2)
    assert find_strengths(BOTH, table, codes, weights, seed=0) == whole.strengths


def test_views_in_blocks_are_those_of_one_array(small: int) -> None:
    features, codes, weights = planted()
    views = [features, features[::-1].copy()]
    strengths = {"kind": (0.1,), "tags": (0.01, 0.1)}
    separate = fit_linear(BOTH, [Noted(view) for view in views], codes, weights, seed=0, strengths=strengths)
    together = fit_linear(BOTH, np.stack(views), codes, weights, seed=0, strengths=strengths)
    assert np.array_equal(separate.coefficients, together.coefficients)


def test_moments_of_blocks_are_those_of_all_rows(small: int) -> None:
    features = planted()[0] + 1000
    mean, scale = Stacked([Noted(features)]).moments()
    assert mean == pytest.approx(features.mean(axis=0, dtype=np.float64), rel=1e-6)
    assert scale == pytest.approx(moments(features.astype(np.float64))[1], rel=1e-4)


def test_rows_come_once_and_in_order(small: int) -> None:
    features = planted()[0]
    blocks = list(in_blocks(Noted(features)))
    assert max(len(some) for _, some in blocks) == small
    assert np.array_equal(np.concatenate([some for _, some in blocks]), features)
