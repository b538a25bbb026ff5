"""Dark, bright, blurred, plain, grey and oddly shaped images are named; a set that looks so as a whole is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from assay.arrays import Pixels
from assay.images.file_facts import FileFacts, read_file_facts
from assay.repair.image_quality import Quality, low_quality, measure, odd_shapes, reduced

FAULTS = {
    "dark": lambda image: image * 0.15,
    "bright": lambda image: 255 - (255 - image) * 0.15,
    "low_information": lambda image: 120 + (image - image.mean()) * 0.04,
    "blurred": lambda image: gaussian_filter(image, (5, 5, 0)),
    "greyscale": lambda image: image.mean(axis=2, keepdims=True).repeat(3, axis=2),
}


def photographs(count: int, *, side: int = 96, seed: int = 0) -> Pixels:
    """Return images with detail at every scale, as photographs have it, from black to white and in colour."""
    random, images = np.random.default_rng(seed), np.zeros((count, side, side, 3))
    for scale in (1, 2, 4, 8, 16):
        noise = random.normal(size=images.shape)
        images += gaussian_filter(noise, (0, scale, scale, 0)) * scale**1.7
    low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
    return np.rint(255 * (images - low) / (high - low)).astype(np.uint8)


@pytest.fixture(scope="module")
def plain() -> Pixels:
    return photographs(60)


@pytest.mark.parametrize("kind", FAULTS)
def test_planted_faults_are_named_and_nothing_else(plain: Pixels, kind: Quality) -> None:
    images = plain.copy()
    images[:3] = [np.rint(FAULTS[kind](image.astype(float))).clip(0, 255) for image in images[:3]]
    flagged = {name: sorted(one.rows.tolist()) for name, one in low_quality(measure(images)).items()}
    assert flagged == {name: [0, 1, 2] if name == kind else [] for name in flagged}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_set_that_looks_so_as_a_whole_is_not_named(plain: Pixels, kind: Quality) -> None:
    images = np.stack([np.rint(FAULTS[kind](image.astype(float))).clip(0, 255) for image in plain]).astype(np.uint8)
    assert not low_quality(measure(images))[kind].rows.size


@pytest.mark.parametrize("head", [0, 1])
def test_a_class_of_any_head_that_looks_so_is_not_named_and_its_outliers_are(plain: Pixels, head: int) -> None:
    images, rows, one_hot = plain.copy(), np.arange(60), np.eye(2, dtype=np.bool_)
    classes = np.roll(np.concatenate([one_hot[rows // 30], one_hot[rows % 2]], axis=1), 2 * head, axis=1)
    images[:30] = (images[:30] * 0.2).astype(np.uint8)
    images[0] //= 6
    assert low_quality(measure(images), classes=classes)["dark"].rows.tolist() == [0]


def test_saturated_colours_are_neither_dark_nor_bright(plain: Pixels) -> None:
    images = plain.copy()
    images[0, ..., 1:] = 0  # red alone
    images[1, ..., :2] = 255  # yellow to white
    named = low_quality(measure(images))
    assert not named["dark"].rows.size
    assert not named["bright"].rows.size


def test_scores_are_sorted_and_texts_say_the_value(plain: Pixels) -> None:
    images = plain.copy()
    images[4], images[7] = images[4] * 0.2, images[7] * 0.05
    dark = low_quality(measure(images))["dark"]
    assert dark.rows.tolist() == [7, 4]
    assert 1 > dark.scores[0] > dark.scores[1] > 0
    assert dark.texts[0].startswith("99 % of its pixels are darker than 1")


def test_measures_do_not_depend_on_the_resolution(plain: Pixels) -> None:
    large = plain[:8].repeat(2, axis=1).repeat(2, axis=2)
    small, wide = measure(reduced(plain[:8])), measure(large)
    assert np.allclose(small.light, wide.light, atol=3)
    assert np.allclose(small.sharpness, wide.sharpness, atol=0.1)


def test_odd_aspects_and_sizes_are_far_from_the_middle() -> None:
    widths = np.array([100 + k for k in range(30)] + [400, 20])
    heights = np.array([100 + k for k in range(30)] + [100, 20])
    facts = FileFacts(widths, heights, widths, ("JPEG RGB",) * 32, ("",) * 32)
    shapes = odd_shapes(facts)
    assert shapes["odd_aspect"].rows.tolist() == [30]
    assert shapes["odd_size"].rows.tolist() == [31]
    assert shapes["odd_aspect"].texts[0] == "4.00 times as wide as high; the middle of the data is 1.00"


def test_no_images_have_no_faults() -> None:
    assert all(not one.rows.size for one in low_quality(measure(np.empty((0, 32, 32, 3), np.uint8))).values())


def test_facts_of_files(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (40, 30)), Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = 6, "Maker", "One"
    image.save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (8, 9)).save(tmp_path / "b.png")
    facts = read_file_facts([tmp_path / "a.jpg", tmp_path / "b.png"])
    assert facts.widths.tolist() == [30, 8]  # upright
    assert facts.heights.tolist() == [40, 9]
    assert facts.formats == ("JPEG RGB", "PNG L")
    assert facts.cameras == ("Maker One", "")
    assert facts.sizes.tolist() == [(tmp_path / name).stat().st_size for name in ("a.jpg", "b.png")]
