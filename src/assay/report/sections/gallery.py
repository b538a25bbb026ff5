"""The images of a page: numbered as its sections ask for them, and then fetched as thumbnails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.arrays import Bools, Pixels
from assay.errors import ImageError
from assay.images.cache import Cache, find_caches
from assay.images.decode import Resize, read_square
from assay.report.thumbnails import LARGE_SIDE, SMALL_SIDE, TILES, Sheet, sheets, shrunk
from assay.run.contents import RunContents

MOST_LARGE = 420
BUDGETS = {"large": 1_300_000, "small": 3_000_000}  # bytes; a third more in base64


class Gallery:
    """The images shown, in the order asked for. The first 420 that are looked at closely come in a larger size."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.close: list[int] = []
        self._close: set[int] = set()

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, ids: Iterable[str], *, close: bool = False) -> list[int]:
        """The numbers of these images; `close` ones are shown large."""
        found = [self.numbers.setdefault(id_, len(self.numbers)) for id_ in ids]
        for number in found if close else []:
            if number not in self._close and len(self.close) < MOST_LARGE:
                self._close.add(number)
                self.close.append(number)
        return found


@dataclass(frozen=True)
class Shown:
    """The thumbnails of a gallery: sheets, and for each image (sheet, tile), None where it is no longer there."""

    sheets: list[Sheet]
    places: list[tuple[int, int] | None]


def fetch(gallery: Gallery, run: RunContents) -> Shown:
    """Thumbnails of all images of a gallery, from the run's caches, else from the images themselves."""
    ids = list(gallery.numbers)
    reader = Reader.of(run)
    places: list[tuple[int, int] | None] = [None] * len(ids)
    made: list[Sheet] = []
    close = set(gallery.close)
    small = [number for number in range(len(ids)) if number not in close]
    for numbers, options, budget in ((gallery.close, LARGE_SIDE, "large"), (small, SMALL_SIDE, "small")):
        tiles, there = reader.tiles([ids[number] for number in numbers], side=options[0][0])
        own = sheets(tiles, budget=BUDGETS[budget], options=options)
        for tile, row in enumerate(np.flatnonzero(there).tolist()):
            places[numbers[row]] = (len(made) + tile // TILES, tile % TILES)
        made += own
    return Shown(made, places)


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads images of a run, at any small size."""

    paths: dict[str, Path]
    caches: list[Cache]

    @staticmethod
    def of(run: RunContents) -> Reader:
        found = find_caches(run.paths.cache, run.as_read.ids, hashes=run.as_read.hashes)
        paths = dict(zip(run.samples.ids, run.samples.paths, strict=True))
        return Reader(paths, [kept.cache for kept in found])

    def tiles(self, ids: Sequence[str], *, side: int) -> tuple[Pixels, Bools]:
        """The images that are there, (n, side, side, 3), and which of the `ids` (N,) these are."""
        cache = next((own for own in self.caches if own.side >= side), self.caches[-1] if self.caches else None)
        found = [self._read(id_, side, cache) for id_ in ids]
        there = np.array([image is not None for image in found], dtype=np.bool_)
        kept = [image for image in found if image is not None]
        side = min(side, max((image.shape[0] for image in kept), default=side))
        out = np.empty((len(kept), side, side, 3), np.uint8)
        for row, image in enumerate(kept):
            out[row] = image if image.shape[0] == side else _enlarged(image, side)
        return out, there

    def _read(self, id_: str, side: int, cache: Cache | None) -> Pixels | None:
        if cache is not None and id_ in cache.rows:
            return shrunk(np.asarray(cache.pixels[cache.rows[id_]]), side)
        try:
            return read_square(self.paths[id_], side, settings=Resize(policy="crop"))
        except ImageError:
            return None  # deleted since, or spoilt: the page says so in its place


def _enlarged(image: Pixels, side: int) -> Pixels:
    """By whole pixels where that fits, so that a tiny image stays crisp."""
    rows = np.arange(side) * image.shape[0] // side
    enlarged: Pixels = image[rows][:, rows]
    return enlarged
