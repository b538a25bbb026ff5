"""Many small images in a few shared ones, so that a page of thousands stays light."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from assay.arrays import Pixels

COLUMNS = 24
TILES = 24 * 24  # of a full sheet: at 64 pixels 2.4 million pixels, which a phone can hold
SMALL_SIDE = ((64, 70), (56, 60), (48, 55), (40, 45), (32, 35), (24, 25), (16, 20))
LARGE_SIDE = ((112, 72), (96, 60), (80, 50), (64, 40), (48, 30), (32, 20))
"""Sides in pixels and qualities of WebP, from the best to what thousands of the noisiest images need."""


@dataclass(frozen=True)
class Sheet:
    """One WebP of tiles of `side` pixels, `columns` in each of its `rows`."""

    data: bytes
    side: int
    columns: int
    rows: int

    @property
    def url(self) -> str:
        return "data:image/webp;base64," + base64.b64encode(self.data).decode("ascii")


def sheets(tiles: Pixels, *, budget: int, options: Sequence[tuple[int, int]] = SMALL_SIDE) -> list[Sheet]:
    """Tiles (N, S, S, 3) in sheets of 576 at the first of these options that takes at most `budget` bytes.

    Tile n is number n % 576 of sheet n // 576, counted along the rows. The last option is taken where none fits.
    """
    made: list[Sheet] = []
    for number, (side, quality) in enumerate(options):
        last = number == len(options) - 1
        first = _sheet(tiles[:TILES], side, quality)
        if not last and len(first.data) * len(tiles) > 1.1 * budget * min(TILES, len(tiles)):
            continue  # the first sheet tells that all of them are too much
        made = [
            first,
            *(_sheet(tiles[start : start + TILES], side, quality) for start in range(TILES, len(tiles), TILES)),
        ]
        if last or sum(len(sheet.data) for sheet in made) <= budget:
            break
    return made if len(tiles) else []


def shrunk(image: Pixels, side: int) -> Pixels:
    """A square image at `side` pixels, or as it is where it has no more: enlarging is the browser's."""
    if image.shape[0] <= side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0))


def _sheet(tiles: Pixels, side: int, quality: int) -> Sheet:
    side = min(side, tiles.shape[1]) if len(tiles) else side
    columns = max(1, min(COLUMNS, len(tiles)))
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * side, columns * side, 3), 128, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = side * (number // columns), side * (number % columns)
        canvas[top : top + side, left : left + side] = shrunk(tile, side)
    buffer = io.BytesIO()
    if canvas.size:
        Image.fromarray(canvas).save(buffer, "WEBP", quality=quality, method=3)
    return Sheet(buffer.getvalue(), side, columns, rows)


# Sheets of images: rows of equal squares in one PNG.
