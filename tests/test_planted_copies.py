"""Copies that the benchmark of the audit plants, and how it scores what is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.audit import KINDS, STRENGTHS, Planted, scores
from PIL import Image

from factories import noise_pixels


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_seeded_and_keeps_most_of_the_size(kind: str) -> None:
    image = Image.fromarray(noise_pixels(1, 60)[0])
    weak, strong = (KINDS[kind](image, strength, np.random.default_rng(3)) for strength in range(len(STRENGTHS)))
    assert np.array_equal(np.asarray(weak), np.asarray(KINDS[kind](image, 0, np.random.default_rng(3))))
    assert min(*weak.size, *strong.size) >= 24
    assert strong.mode == "RGB"


def test_pairs_with_a_copy_are_right_where_they_are_planted() -> None:
    planted = Planted([Path(str(row)) for row in range(8)], np.array([0, 3, 4]), [("crop", "weak")] * 3)
    result = scores(planted, np.array([[0, 5], [3, 6], [1, 6], [1, 2]]), seed=0, alone=np.ones(5, np.bool_))
    assert result["recall"] == result["precision"] == pytest.approx(2 / 3)
    assert result["kinds"]["crop weak"] == pytest.approx(2 / 3)


def test_copies_of_images_that_are_not_alone_are_left_out() -> None:
    planted = Planted([Path(str(row)) for row in range(8)], np.array([0, 3, 4]), [("crop", "weak")] * 3)
    alone = np.array([False, True, True, True, True])
    result = scores(planted, np.array([[0, 5], [3, 6], [1, 5], [5, 6]]), seed=0, alone=alone)
    assert (result["planted"], result["recall"], result["precision"]) == (2, 0.5, 1)
