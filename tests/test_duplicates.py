"""Copies among images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from assay.labels.space import conflicting
from assay.repair.duplicates import (
    best_rows,
    clusters,
    exact_pairs,
    near_pairs,
    standing_out,
)


def scenes(count: int, side: int = 64) -> np.ndarray:
    """Return images (N, S, S, 3) of random patches of all sizes, as natural images have them."""
    generator = np.random.default_rng(0)
    images = np.zeros((count, side, side, 3))
    for cells in (4, 8, 16, 32):
        images += np.kron(
            generator.normal(0, 40, (count, cells, cells, 1)), np.ones((1, side // cells, side // cells, 3))
        )
    return np.clip(images + 128, 0, 255).astype(np.uint8)


def changed(image: np.ndarray, how: str) -> np.ndarray:
    whole = Image.fromarray(image)
    side = whole.width
    match how:
        case "cropped":
            whole = whole.crop((12, 3, side - 2, side - 11)).resize((side, side))
        case "rotated":
            whole = whole.rotate(5, Image.Resampling.BICUBIC).crop((4, 4, side - 4, side - 4)).resize((side, side))
        case "mirrored":
            whole = ImageOps.mirror(whole)
        case "dark":
            return image // 2
        case "blurred":
            whole = whole.filter(ImageFilter.GaussianBlur(1.2))
        case "framed":
            whole = ImageOps.expand(whole.resize((side - 12, side - 12)), 6, (255, 255, 255))
    return np.asarray(whole)


CHANGES = ("none", "cropped", "rotated", "mirrored", "dark", "blurred", "framed")


def test_changed_copies_are_near_and_nothing_else_is() -> None:
    images = scenes(60)
    copies = np.stack([changed(images[row], how) for row, how in enumerate(CHANGES)])
    pairs, similarity = near_pairs(np.concatenate([images, copies]))
    assert sorted(pairs.tolist()) == [[row, 60 + row] for row in range(len(CHANGES))]
    assert (similarity > 0.74).all()
    assert similarity[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_blank_images_are_no_copies(count: int) -> None:
    pairs, similarity = near_pairs(np.full((count, 40, 40, 3), 200, np.uint8))
    assert pairs.shape == (0, 2)
    assert similarity.shape == (0,)


@pytest.mark.parametrize(
    ("similarity", "copies"),
    [
        ([0.9, 0.5], [True, False]),  # the first stands out
        ([0.9, 0.88], [True, True]),  # both do
        ([0.7, 0.65], [False, False]),
        ([0.9, 0.0], [True, False]),
        ([0.0, 0.0], [False, False]),
    ],
)
def test_copies_disagree_far_less_than_the_next_candidate(similarity: list[float], copies: list[bool]) -> None:
    pairs = np.array([[0, 1], [2, 0]])
    assert standing_out(pairs, np.array(similarity), count=3, unique=0.6).tolist() == copies


def test_images_that_are_all_alike_are_no_copies_but_for_one_pair() -> None:
    pairs = np.array([(one, other) for one in range(9) for other in range(one)])
    alike = np.full(len(pairs), 0.9)
    assert not standing_out(pairs, alike, count=9, unique=0.6).any()
    alike[5] = 0.97
    assert standing_out(pairs, alike, count=9, unique=0.6).nonzero()[0].tolist() == [5]


def test_frames_of_a_slow_pan_are_one_cluster_among_other_images() -> None:
    wide = np.asarray(Image.fromarray(scenes(1)[0]).resize((96, 96)))
    noise = np.random.default_rng(1).normal(0, 3, (8, 64, 64, 3))
    frames = np.stack([wide[10:74, 2 * step : 2 * step + 64] for step in range(8)]) + noise
    pairs, _ = near_pairs(np.concatenate([np.clip(frames, 0, 255).astype(np.uint8), scenes(200)[1:]]))
    assert np.flatnonzero(clusters(pairs, 207) >= 0).tolist() == list(range(8))


def test_progress_counts_images_up_to_all() -> None:
    calls: list[tuple[int, int]] = []
    near_pairs(scenes(5), progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert {total for _, total in calls} == {5}
    assert calls[-1][0] == 5


def test_many_copies_are_one_cluster() -> None:
    images = scenes(20)
    pairs, _ = near_pairs(images[[0] * 15 + list(range(20))])
    cluster = clusters(pairs, 35)
    assert set(np.flatnonzero(cluster == 0)) == set(range(16))
    assert cluster.max() == 0


def test_same_content_hash() -> None:
    assert exact_pairs(["a", "b", None, "a", None, "a", "b"]).tolist() == [[0, 3], [0, 5], [1, 6]]
    assert exact_pairs([]).shape == (0, 2)


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
    assert conflicting(cluster, np.array([0, 0, 0, 1, 1, -1, 2])).tolist() == [False, True, False]
