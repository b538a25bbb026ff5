"""Images of more than 8 bits a channel: black and white by the values of the data set; pages and bands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from assay.arrays import Doubles
from assay.errors import ImageError
from assay.images.cache import in_order
from assay.images.decode import from_image
from assay.images.rgb_square import Levels, deep_values, is_deep, raw_mode
from assay.labels.shards import ImageFile

Trait = Literal["deep", "pages", "bands"]

MEASURED = 200  # images whose values are read
PIXELS = 20_000  # values of an image that count
TAILS = (0.02, 99.98)  # percentiles: a few dead or saturated pixels decide nothing
JPEG, PNG = b"\xff\xd8", b"\x89PNG"


def traits(paths: Sequence[ImageFile]) -> list[frozenset[Trait]]:
    """Return what is unusual in each image by its header: more than 8 bits, several pages, more than four bands."""
    return list(in_order(_traits, paths))


def measure_levels(paths: Sequence[ImageFile]) -> Levels | None:
    """Return black and white by the values of up to 200 of these deep images; None where none can be read.

    They are the percentiles 0.02 and 99.98 of all values, whole numbers; the extremes where these are equal.
    """
    chosen = paths[:: -(-len(paths) // MEASURED)] if paths else []
    read = [values for values in in_order(_sample, chosen) if len(values)]
    if not read:
        return None
    values = np.concatenate(read)
    low, high = np.percentile(values, TAILS, method="nearest")
    if low == high:
        low, high = values.min(), values.max()
    if all(np.array_equal(part, np.rint(part)) for part in read):
        low, high = np.floor(low), np.ceil(high)
    return float(low), float(high) if high > low else float(low) + 1


def notes(headers: Sequence[frozenset[Trait]], levels: Levels | None, *, measured: int) -> Iterator[str]:
    """Yield what happens to unusual images; `levels` are of `measured` images, 0 where a plan gives them."""
    counts = Counter(trait for one in headers for trait in one)
    if deep := counts["deep"]:
        low, high = levels or (0, 65535)
        if not levels:
            source = "the full range of 16 bits; their own values cannot be read"
        else:
            source = f"measured on {measured:,} of them" if measured else "as data.levels says"
        rest = f" The other {len(headers) - deep:,} are read as they are." if deep < len(headers) else ""
        images = "image has" if deep == 1 else "images have"
        yield (
            f"{deep:,} {images} more than 8 bits a channel: their values from {low:,g} to {high:,g} become black to "
            f"white ({source}). Other values: data.levels: [BLACK, WHITE].{rest}"
        )
    if pages := counts["pages"]:
        files = "file has" if pages == 1 else "files have"
        yield f"{pages:,} {files} several pages or frames, and the first of each is read."
    if bands := counts["bands"]:
        images = "image has" if bands == 1 else "images have"
        yield f"{bands:,} {images} more than four bands, and the first three are read as red, green and blue."


def _traits(path: ImageFile) -> frozenset[Trait]:
    try:
        with path.open("rb") as file:
            first = file.read(25)
        if first.startswith(JPEG) or (first.startswith(PNG) and first[24] != 16):
            return frozenset()  # in microseconds: nearly all images are such
        return from_image(path, lambda image, _: _of_header(image))
    except (ImageError, OSError, IndexError):  # left out, with the reason, when it is decoded
        return frozenset()


def _of_header(image: Image.Image) -> frozenset[Trait]:
    held: dict[Trait, bool] = {
        "deep": is_deep(image),
        "bands": image.mode == "RGB" and raw_mode(image).startswith("RGBXX"),
        "pages": bool(getattr(image, "is_animated", False)),
    }
    return frozenset(trait for trait, holds in held.items() if holds)


def _sample(path: ImageFile) -> Doubles:
    """Return up to 20,000 values of a deep image, those of an alpha channel left out; none where it is unreadable."""
    try:
        values = from_image(path, deep_values)
    except ImageError:
        values = None
    if values is None:
        return np.empty(0)
    numbers = (values[:, :, :3] if values.ndim == 3 else values).reshape(-1).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) > PIXELS:  # at random, since a regular grid may beat with a pattern of the image
        numbers = numbers[np.random.default_rng(0).integers(0, len(numbers), PIXELS)]
    return numbers
