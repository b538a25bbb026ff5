"""The plan made for data that comes without one."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from assay.default_plan import ENOUGH, default_steps, flips
from assay.labels.samples import Samples
from assay.labels.space import Head, LabelSpace
from assay.pixels.cache import Cache


def cache_of(pixels: np.ndarray) -> tuple[Cache, list[str]]:
    ids = [str(number) for number in range(len(pixels))]
    return Cache(pixels, {name: row for row, name in enumerate(ids)}), ids


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(50, 200, (count, 8, 8, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("brighter", "expected"),
    [
        (np.s_[:0], "both"),
        (np.s_[:, :3], "horizontal"),  # a sky
        (np.s_[:, :, :3], "vertical"),
        (np.s_[:, :3, :3], "none"),
    ],
)
def test_pictures_are_flipped_only_where_that_leaves_them_plausible(brighter, expected):
    pixels = noise(400)
    pixels[brighter] += 50
    assert flips(*cache_of(pixels))[0] == expected


def test_few_pictures_are_not_flipped():
    assert flips(*cache_of(noise(ENOUGH - 1)))[0] == "none"


def labelled(count: int, *, tagged: int = 0) -> Samples:
    """As many training pictures under an exclusive head, and as many validation ones with a tag."""
    lists = pl.List(pl.String)
    rows = count + tagged
    table = pl.DataFrame(
        {
            "split": ["train"] * count + ["val"] * tagged,
            "label:kind": ["a"] * count + [None] * tagged,
            "label:tags": pl.Series([None] * count + [["x"]] * tagged, dtype=lists),
            "unknown:tags": pl.Series([None] * rows, dtype=lists),
        }
    )
    heads = [Head("kind", ("a", "b"))] + [Head("tags", ("x", "y"), "independent")] * (tagged > 0)
    return Samples(table, LabelSpace(tuple(heads)), Path())


@pytest.mark.parametrize(("pictures", "epochs"), [(20, 8), (3_000, 8), (6_500, 4), (200_000, 3)])
def test_the_fit_is_sized_to_the_data(pictures, epochs):
    probe, fit = default_steps(labelled(pictures), flip="both")
    assert list(probe) == ["probe"]
    assert fit["fit"]["epochs"] == epochs
    assert fit["fit"]["augment"]["flip"] == "both"
    assert fit["fit"]["loss"]["smoothing"] == 0.1


def test_tags_are_not_smoothed_and_get_a_threshold_where_there_are_enough():
    _, fit, thresholds = default_steps(labelled(30, tagged=20), flip="none")
    assert fit["fit"]["loss"]["smoothing"] == 0.0
    assert thresholds == {"tune_thresholds": {"heads": ["tags"]}}
    assert len(default_steps(labelled(30, tagged=19), flip="none")) == 2
