"""How well the audit recognises near duplicates and leaks: changed copies, ten kinds of two strengths.

    python -m benchmarks.audit DATA [--seeds 0 1 2] [--each 40] [--only eurosat]

A copy is an image of the set, changed and stored as JPEG; an image is copied once at most. All images lie on random
sides of a split. Thresholds were chosen on eurosat and flickr. Pairs of two originals are counted, and looked at by eye
(`--sheets DIR` draws the first 50 of each set).
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from assay.labels.readers.read import DataSettings, read
from benchmarks.harness import Options

Change = Callable[[Image.Image, int, np.random.Generator], Image.Image]
Array = npt.NDArray[np.generic]


def crop(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Keep 90 or 75 % of each side, anywhere."""
    width, height = (round(side * (0.9, 0.75)[strength]) for side in image.size)
    left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def resize(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Reduce to 70 or 40 % of each side."""
    return image.resize(tuple(max(1, round(side * (0.7, 0.4)[strength])) for side in image.size), rng.choice([2, 3]))


def recompress(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Store as JPEG of quality 60 or 25."""
    return stored(image, int((60, 25)[strength] + rng.integers(-5, 6)))


def brightness(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Multiply by 1.2 or 1.5, or by 1 / 1.2 or 1 / 1.5."""
    return ImageEnhance.Brightness(image).enhance(float((1.2, 1.5)[strength] ** rng.choice([-1, 1])))


def colour(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Change contrast and saturation by a factor of 1.25 or 1.7, each up or down, and the balance of the channels."""
    factor = (1.25, 1.7)[strength]
    image = ImageEnhance.Contrast(image).enhance(float(factor ** rng.choice([-1, 1])))
    image = ImageEnhance.Color(image).enhance(float(factor ** rng.choice([-1, 1])))
    gains = 1 + rng.uniform(-1, 1, 3) * (0.08, 0.2)[strength]
    return Image.fromarray(np.clip(np.asarray(image) * gains, 0, 255).astype(np.uint8))


def mirror(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Mirror, and when strong crop to 90 % of each side too."""
    return crop(ImageOps.mirror(image), 0, rng) if strength else ImageOps.mirror(image)


def blur(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Blur by a Gaussian of 0.8 or 2 % of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur((0.008, 0.02)[strength] * min(image.size)))


def noise(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Add Gaussian noise of deviation 6 or 15."""
    noisy = np.asarray(image) + rng.normal(0, (6, 15)[strength], (image.height, image.width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def rotate(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Rotate by 3 or 8 degrees, and cut off what lies outside."""
    angle = float((3, 8)[strength] * rng.choice([-1, 1]))
    turned = image.rotate(angle, Image.Resampling.BICUBIC, expand=False)
    slope = np.tan(np.radians(abs(angle)))
    inset = [round(other * slope / 2 + 0.5) for other in (image.height, image.width)]
    return turned.crop((inset[0], inset[1], image.width - inset[0], image.height - inset[1]))


def border(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Add a black, white or grey border of 4 or 10 % of the shorter side."""
    level = int(rng.choice([0, 128, 255]))
    return ImageOps.expand(image, max(1, round((0.04, 0.1)[strength] * min(image.size))), (level,) * 3)


KINDS: Mapping[str, Change] = {
    "crop": crop,
    "resize": resize,
    "recompress": recompress,
    "brightness": brightness,
    "colour": colour,
    "mirror": mirror,
    "blur": blur,
    "noise": noise,
    "rotate": rotate,
    "border": border,
}
STRENGTHS = ("weak", "strong")


class Planted(NamedTuple):
    """Paths of the images and then of the copies; of each copy the row of its original, its kind and strength."""

    paths: list[Path]
    originals: npt.NDArray[np.int64]
    kinds: list[tuple[str, str]]


def stored(image: Image.Image, quality: int) -> Image.Image:
    """Return an image as it comes back from a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def plant(options: Options, name: str, folder: Path, *, each: int, seed: int) -> Planted:
    """Write changed copies of images of a set: `each` of every kind and strength."""
    samples = read(DataSettings.model_validate(options.data_of(name)), base=Path())
    paths, rng = sorted(samples.paths), np.random.default_rng([seed, 16])
    kinds = [(kind, strength) for kind in KINDS for strength in STRENGTHS for _ in range(each)]
    originals = rng.choice(len(paths), len(kinds), replace=False)
    copies = []
    for number, (row, (kind, strength)) in enumerate(zip(originals, kinds, strict=True)):
        image = KINDS[kind](Image.open(paths[row]).convert("RGB"), STRENGTHS.index(strength), rng)
        copies.append(folder / f"{number:04d}-{kind}-{strength}.jpg")
        image.save(copies[-1], "JPEG", quality=92)
    return Planted([*paths, *copies], originals, kinds)
