"""The bootstrap of the tables in docs/RESULTS.md."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import trainings
from benchmarks.trainings import compare, draws, interval, mean_text, with_interval

from assay.metrics.intervals import Metric


def test_draws_are_resamples() -> None:
    block = np.concatenate(list(draws(50, 20, seed=3)), axis=1)
    assert block.shape == (50, 20)
    assert (block.sum(axis=0) == 50).all()
    assert block.mean() == 1


def test_draws_follow_the_seed_and_not_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draws(30, 25, seed=1)), axis=1)
    monkeypatch.setattr(trainings, "CELLS", 30 * 4)
    blocks = list(draws(30, 25, seed=1))
    assert len(blocks) == 7
    assert np.array_equal(np.concatenate(blocks, axis=1), whole)
    assert not np.array_equal(np.concatenate(list(draws(30, 25, seed=2)), axis=1), whole)


def test_no_images_no_draws() -> None:
    assert list(draws(0, 10, seed=0)) == []
    assert list(draws(10, 0, seed=0)) == []


def test_interval_agrees_with_theory_for_a_share() -> None:
    hits = (np.arange(400) < 300).astype(np.float32)
    shares = np.concatenate([hits @ weights / 400 for weights in draws(400, 2000, seed=0)])
    low, high = interval(shares)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.006)
    assert high == pytest.approx(0.75 + half, abs=0.006)


def test_undefined_resamples_are_left_out() -> None:
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert interval(np.array([np.nan])) is None
    assert with_interval(0.5, 3, np.empty(0)) == Metric(0.5, 3, None, None)


def test_means_over_seeds_are_held_against_the_base_image_by_image() -> None:
    hits = {"a": [[1, 0, 0, 1], [0, 1, 0, 1]], "b": [[1, 1, 0, 1], [1, 1, 0, 1]]}
    records = [
        {"name": name, "seed": seed, "hits": row} for name, rows in hits.items() for seed, row in enumerate(rows)
    ]
    texts = compare(
        records, lambda record, weights: np.array([record["hits"]]) @ weights / 4, images=4, base="a", resamples=50
    )
    assert texts["a"][0][0].startswith("0.500 [")
    assert texts["a"][0][1] == ""
    assert texts["b"][0][0].startswith("0.750 [")
    assert texts["b"][0][1].startswith("+0.250 [+")


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), ([0.1], "+0.10"), ([0.1, 0.1], "+0.10 [+0.10, +0.10]"), ([0.0, 0.2], "+0.10 [-1.17, +1.37]")],
)
def test_a_mean_over_seeds_has_an_interval_where_there_are_several(values: list[float], text: str) -> None:
    assert mean_text(values, "+.2f") == text
