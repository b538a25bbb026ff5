"""Nearest neighbours: the graph against the exact ones."""

from __future__ import annotations

import numpy as np
import pytest

from assay.repair import nearest as module
from assay.repair.nearest import nearest, nearest_to


def copies(*, count: int = 600, width: int = 40, noise: float = 0.05) -> np.ndarray:
    """Return vectors of which row i + count / 2 is nearly row i."""
    generator = np.random.default_rng(0)
    half = generator.normal(size=(count // 2, width))
    return np.concatenate([half, half + generator.normal(0, noise, half.shape)]).astype(np.float32)


def by_hand(vectors: np.ndarray, count: int) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


@pytest.fixture(params=["exact", "graph"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "graph":
        monkeypatch.setattr(module, "EXACT", 0)
    return str(request.param)


def test_neighbours_are_those_of_all_pairs(way: str) -> None:
    vectors = copies()
    rows, cosines = nearest(vectors, 5)
    assert rows.shape == cosines.shape == (600, 5)
    assert np.mean(rows == by_hand(vectors, 5)) > (0.98 if way == "graph" else 0.9999)
    assert np.array_equal(rows[:, 0], np.arange(600) - 300 + 600 * (np.arange(600) < 300))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, np.einsum("nf,nkf->nk", unit, unit[rows]), atol=1e-5)


def test_the_same_vectors_have_the_same_neighbours(way: str) -> None:
    one, other = nearest(copies(), 4), nearest(copies(), 4)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (1, 0), (3, 2)])
def test_there_are_no_more_neighbours_than_other_rows(rows: int, columns: int) -> None:
    assert nearest(np.ones((rows, 4), np.float32), 5)[0].shape == (rows, columns)


def test_a_row_of_zeros_has_cosine_0(way: str) -> None:
    assert not nearest(np.eye(9, 4, dtype=np.float32)[::-1], 2)[1][0].any()


@pytest.mark.parametrize("graph", [0, 3000])
def test_short_vectors_nearest_to_queries(graph: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRAPH", graph)
    vectors = copies()
    blocks = list(nearest_to(vectors, [3 * vectors[:7], vectors[7:8]], 2))
    rows, cosines = (np.concatenate(part) for part in zip(*blocks, strict=True))
    assert rows.tolist() == [[row, row + 300] for row in range(8)]
    np.testing.assert_allclose(cosines[:, 0], 1, atol=2e-3)
