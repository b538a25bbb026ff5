"""The images of a review as JPEG: thumbnails from a cache or the file, and whole ones."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from assay.errors import ImageError
from assay.images.cache import StoredCache
from assay.images.decode import decode
from assay.images.rgb_square import Levels
from assay.labels.samples import Samples
from assay.labels.shards import ImageFile

LARGEST = 1600  # pixels of the longer side of an image that is shown whole
QUALITY = 82
GREY = 200


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The files of the samples, and caches of them; `levels` are the black and white of deep images."""

    samples: Samples
    caches: Sequence[StoredCache] = ()
    levels: Levels | None = None

    def path(self, row: int) -> ImageFile:
        return self.samples.take([row]).paths[0]

    def thumbnail(self, row: int, side: int) -> tuple[bytes, bool]:
        """Return an image in a square of `side` pixels, in its proportions, and whether its file could be read.

        Where the file is gone it comes from a cache; where there is none, it is a grey square with a line on it.
        """
        return self._within(row, side, quality=QUALITY, blank=side)

    def whole(self, row: int) -> tuple[bytes, bool]:
        """Return an image of at most 1600 pixels, and whether its file could be read; else as for a thumbnail."""
        return self._within(row, LARGEST, quality=90, blank=480)

    def note(self, row: int) -> str:
        """Return a line where the file is gone, else nothing."""
        return "" if self.path(row).is_file() else "its file is gone"

    def _within(self, row: int, side: int, *, quality: int, blank: int) -> tuple[bytes, bool]:
        try:
            image = decode(self.path(row), at_least=side, levels=self.levels)
            image.thumbnail((side, side), reducing_gap=2.0)
            return _jpeg(image, quality=quality), True
        except ImageError as error:
            cached = self._cached(row, side)
            return (_jpeg(cached) if cached else placeholder(str(error), blank)), cached is not None

    def _cached(self, row: int, side: int) -> Image.Image | None:
        name = self.samples.table["id"][row]
        for stored in self.caches:
            if name in stored.cache.rows and (stored.cache.side >= side or stored is self.caches[-1]):
                pixels = np.asarray(stored.cache.pixels[stored.cache.rows[name]])
                image = Image.fromarray(pixels)
                image.thumbnail((side, side))
                return image
        return None


@functools.lru_cache(maxsize=64)
def placeholder(text: str, side: int) -> bytes:
    """Return a grey square that says in small letters why there is no image."""
    image = Image.new("RGB", (side, side), (GREY, GREY, GREY))
    words, lines, width = text.split(), [""], max(8, side // 7)
    for word in words:
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [*lines, word]
    ImageDraw.Draw(image).multiline_text((4, 4), "\n".join(lines), fill=(60, 60, 60))
    return _jpeg(image)


def _jpeg(image: Image.Image, *, quality: int = QUALITY) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
