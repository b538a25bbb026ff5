from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

import assay
from assay.images.cache import build, find_caches
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.metrics.intervals import wilson
from assay.report.charts import save
from assay.report.report import map_images
from assay.report.sections.feature_map import agreement, map_chart, palette, rarest_class, stratified_rows, tsne
from fake_steps import samples_of


def groups(count: int = 20, size: int = 12, seed: int = 0) -> Any:
    """Three groups far apart in 6 dimensions, and which image is in which."""
    generator = np.random.default_rng(seed)
    points = np.repeat(np.eye(6)[:3] * size, count, axis=0) + generator.normal(0, 0.3, (3 * count, 6))
    return points.astype(np.float32), np.repeat(np.arange(3), count)


def test_neighbours_stay_neighbours() -> None:
    features, group = groups()
    points = tsne(features, perplexity=10)
    assert points.shape == (60, 2)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (group[distances.argmin(axis=1)] == group).mean() == 1


def test_the_seed_decides_and_few_images_lower_the_perplexity() -> None:
    features, _ = groups(count=2)
    assert np.array_equal(tsne(features, seed=1), tsne(features, seed=1))
    assert np.isfinite(tsne(np.zeros((5, 1), np.float32))).all()


def test_features_that_are_all_alike_have_places_too() -> None:
    assert np.isfinite(tsne(np.full((54, 80), 6, np.float32))).all()


def test_agreement_is_the_share_of_neighbours_with_the_label() -> None:
    features, group = groups(count=11)
    head = Head("h", ("a", "b", "c"))
    assert np.allclose(agreement(head, group, features), 1)
    wrong = group.copy()
    wrong[0] = 2
    shares = agreement(head, wrong, features)
    assert shares[0] == 0
    assert np.allclose(shares[1:11], 0.9)
    unknown = np.where(np.arange(33) < 11, -1, group)
    shares = agreement(head, unknown, features)
    assert np.isnan(shares[:11]).all()
    assert np.allclose(shares[11:], 1)


def test_agreement_of_tags_is_a_mean_over_those_a_image_has() -> None:
    features, group = groups(count=11)
    codes = np.stack([group == 0, np.arange(33) % 2 == 0], axis=1).astype(np.int64)
    shares = agreement(Head("h", ("a", "even"), "multilabel"), codes, features)
    assert np.isnan(shares[12 + (group[12:] > 0).argmax() :][codes[12:].sum(axis=1) == 0]).all()
    both = np.flatnonzero(codes.sum(axis=1) == 2)
    assert np.allclose(shares[both], (1 + 5 / 10) / 2)


@pytest.mark.parametrize("n", [0, 7, 20, 45, 100])
def test_a_sample_keeps_the_shares_of_classes_and_splits(colours: Path, n: int) -> None:
    samples = assay.read(colours)
    rows = stratified_rows(samples, n, seed=3)
    assert len(rows) == min(n, 45)
    assert np.array_equal(rows, np.unique(rows))
    assert np.array_equal(rows, stratified_rows(samples, n, seed=3))
    counts = samples.take(rows).counts(next(iter(samples.space)))
    assert np.ptp(counts) <= 2


def test_a_rare_class_is_drawn_where_its_share_is_nearly_a_image(colours: Path) -> None:
    samples = assay.read(colours)
    keep = [row for row, label in enumerate(samples.table["label:label"]) if label != "red" or row % 15 == 0]
    samples = samples.take(keep)
    samples = replace(samples, table=samples.table.with_columns(pl.lit("train").alias("split")))
    rows = stratified_rows(samples, 24, seed=0)
    assert "red" in samples.take(rows).table["label:label"].to_list()


def test_a_printed_map_keys_the_frequent_and_greys_the_others(tmp_path: Path) -> None:
    names = [f"<{n % 25}>" for n in range(60)]
    chart = map_chart(np.random.default_rng(0).normal(size=(60, 2)), names, title="t", subtitle=["s"])
    (path,) = save(chart, tmp_path / "map.png")
    with Image.open(path) as image:
        assert min(image.size) > 600
    assert {row["name"] for row in chart.datasets["rows"]} >= {"others"}
    assert len(set(palette(60))) == 60


def test_wilson_is_within_bounds_and_holds_the_share() -> None:
    for hits, n in ((0, 1), (1, 1), (5, 8), (8, 8)):
        low, high = wilson(hits, n)
        assert 0 <= low <= hits / n <= high <= 1
        assert high > low
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_a_cache_is_found_again_by_the_images_it_holds(colours: Path, tmp_path: Path) -> None:
    samples = assay.read(colours)
    (tmp_path / "broken.png").write_bytes(b"no image")
    ids, hashes = [*samples.ids, "broken"], [*samples.hashes, "x"]
    for size in (32, 16):
        build(
            ids,
            [*samples.paths, tmp_path / "broken.png"],
            hashes=hashes,
            size=size,
            resize=Resize(),
            folder=tmp_path / "cache",
        )
    found = find_caches(tmp_path / "cache", samples.ids, hashes=samples.hashes)
    assert [(kept.size, kept.cache.side) for kept in found] == [(16, 20), (32, 32)]
    assert len(found[0].cache.rows) == 45
    assert find_caches(tmp_path / "cache", samples.ids[1:], hashes=samples.hashes[1:]) == []
    (tmp_path / "cache" / "other.json").write_text("[]")
    next((tmp_path / "cache").glob("*.pixels")).unlink()
    assert len(find_caches(tmp_path / "cache", samples.ids, hashes=samples.hashes)) == 1


@pytest.mark.parametrize(
    ("seconds", "slower", "size", "images"),
    [(20, 1.0, 128, 2_333), (20, 2.0, 128, 666), (20, 3.0, 128, 0), (60, 0.9, 128, 2_500), (20, 1.0, 224, 861)],
)
def test_a_busy_machine_draws_a_map_of_fewer_images_and_larger_ones_take_longer(
    seconds: float, slower: float, size: int, images: int
) -> None:
    assert map_images(seconds, slower=slower, size=size) == images
    slow = map_images(seconds, slower=slower, size=size, features=0.05)
    assert slow <= images / 2
    assert slow == 0 or 6 * max(slower, 1) + slow * 0.05 <= seconds


def test_an_image_stands_for_the_rarest_class_that_it_has_under_any_head() -> None:
    random = np.random.default_rng(0)
    space = LabelSpace((Head("kind", tuple("abcdef")), Head("tags", tuple("pqrs"), "multilabel")))
    codes = [random.integers(-1, 6, 200), random.integers(-1, 2, (200, 4))]
    counts = np.concatenate([head.counts(known) for head, known in zip(space, codes, strict=True)])
    present = np.concatenate([head.present(known) for head, known in zip(space, codes, strict=True)], axis=1)
    expected = np.where(present, counts, 10**6).argmin(axis=1)  # of equally rare ones the first
    found = rarest_class(samples_of(codes, ["train"] * 200, space))
    assert found.tolist() == np.where(present.any(axis=1), expected, -1).tolist()


def test_images_are_chosen_without_a_cell_for_each_image_and_class() -> None:
    head, codes = Head("kind", tuple(f"c{number:03d}" for number in range(500))), np.arange(8000) % 500
    samples = samples_of([codes], ["train"] * 8000, LabelSpace((head,)))
    tracemalloc.start()
    try:
        assert len(stratified_rows(samples, 1000, seed=0)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 8000 * 500 / 2
    finally:
        tracemalloc.stop()
