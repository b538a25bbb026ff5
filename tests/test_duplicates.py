"""Copies among images."""

from __future__ import annotations

import numpy as np
import pytest

from assay.repair.duplicates import (
    best_rows,
    clusters,
    conflicting,
    exact_pairs,
    leaking,
    near_pairs,
    successive,
)


def scenes(count: int, side: int = 40) -> np.ndarray:
    """Return images (N, S, S, 3) of smooth random patches."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 8, 8, 3)).astype(np.float64)
    return np.kron(coarse, np.ones((1, side // 8, side // 8, 1))).astype(np.uint8)


def test_same_content_hash() -> None:
    assert exact_pairs(["a", "b", None, "a", None, "a", "b"]).tolist() == [[0, 3], [0, 5], [1, 6]]
    assert exact_pairs([]).shape == (0, 2)


@pytest.mark.parametrize("change", [lambda one: one, lambda one: one // 2 + 30, lambda one: one[:, ::-1]])
def test_changed_copies_are_near(change: object) -> None:
    images = scenes(60)
    copy = change(images[7])  # type: ignore[operator]
    pairs, similarity = near_pairs(np.concatenate([images, copy[None]]))
    assert pairs.tolist() == [[7, 60]]
    assert similarity[0] > 0.9


def test_many_copies_are_one_cluster() -> None:
    images = scenes(20)
    pairs, _ = near_pairs(images[[0] * 30 + list(range(20))])
    cluster = clusters(pairs, 50)
    assert set(np.flatnonzero(cluster == 0)) == set(range(31))
    assert cluster.max() == 0


def test_clusters_are_numbered_by_first_row() -> None:
    assert clusters(np.array([[4, 5], [1, 3], [3, 6]]), 7).tolist() == [-1, 0, -1, 0, 1, 1, 0]
    assert clusters(np.empty((0, 2), np.int64), 2).tolist() == [-1, -1]


def test_the_best_of_a_cluster_has_the_highest_ranks() -> None:
    cluster = np.array([0, 1, 0, -1, 0, 1])
    width, size = np.array([5, 2, 9, 99, 9, 2]), np.array([1, 1, 1, 99, 2, 1])
    assert best_rows(cluster, width, size).tolist() == [4, 1]


def test_clusters_of_two_labels_and_of_two_sides() -> None:
    cluster = np.array([0, 0, 1, 1, 2, 2, -1])
    assert conflicting(cluster, np.array([3, 4, 5, -1, 6, 6, 9])).tolist() == [True, False, False]
    tags = np.array([[1, -1], [1, 0], [1, 1], [1, 0], [0, 0], [0, 0], [1, 1]])
    assert conflicting(cluster, tags).tolist() == [False, True, False]
    assert leaking(cluster, np.array([0, 0, 0, 1, 1, -1, 2])).tolist() == [False, True, False]


def test_names_of_successive_frames() -> None:
    names = ["a/f9.jpg", "a/f10.jpg", "b/f11.jpg", "a/f08.jpg", "a/f12.jpg", "x", "a/f11.png", "a/f11.jpg"]
    assert successive(names).tolist() == [[0, 1], [1, 7], [0, 3], [4, 7]]
