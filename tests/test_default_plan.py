"""The plan made for data that comes without one."""

import numpy as np
import pytest

from assay.default_plan import ENOUGH, default_steps, flips
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


class Labelled:
    def __init__(self, count: int) -> None:
        self.count = count

    def part(self, name: str) -> "Labelled":
        return self

    def labelled(self) -> np.ndarray:
        return np.ones(self.count, dtype=bool)


@pytest.mark.parametrize(("pictures", "epochs"), [(20, 8), (3_000, 8), (6_500, 4), (200_000, 3)])
def test_the_fit_is_sized_to_the_data(pictures, epochs):
    probe, fit = default_steps(Labelled(pictures), flip="both")
    assert list(probe) == ["probe"]
    assert fit["fit"]["epochs"] == epochs
    assert fit["fit"]["augment"]["flip"] == "both"
