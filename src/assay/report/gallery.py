"""The images of a page: numbered as sections ask for them, fetched as tiles of a few shared sheets, captioned."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from assay.arrays import Bools, Pixels, Reals
from assay.errors import ImageError
from assay.images.cache import StoredCache, find_caches
from assay.images.decode import Resize, read_square, size_of
from assay.images.rgb_square import Levels
from assay.labels.samples import Samples
from assay.labels.shards import ImageFile
from assay.labels.space import Codes, Head, LabelSpace
from assay.messages import SPLITS, plain
from assay.run.contents import RunContents

MAX_LARGE = 420
BUDGETS = {"large": 1_700_000, "small": 2_200_000}  # bytes; a third more in base64
SQUARE = 0.02  # of its longer side that a square image may differ
GREY = 128
COLUMNS = 24
TILES = 24 * 24  # of a full sheet: at 64 pixels 2.4 million pixels, which a phone can hold
SMALL_SIDE = ((64, 70), (56, 60), (48, 55), (40, 45), (32, 35), (24, 25), (16, 20))
LARGE_SIDE = ((224, 72), (176, 72), (144, 72), (112, 72), (96, 60), (80, 50), (64, 40), (48, 30), (32, 20))
"""Sides in pixels and qualities of WebP, from the best to what thousands of the noisiest images need."""


class Gallery:
    """Numbers for images, in the order asked for. The first 420 of those to be large come in a larger size."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._large: dict[int, None] = {}  # an ordered set

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def large(self) -> list[int]:
        return list(self._large)

    def add(self, ids: Iterable[str], *, large: bool = False) -> list[int]:
        """Return the numbers of these images."""
        numbers = [self.numbers.setdefault(id_, len(self.numbers)) for id_ in ids]
        for number in numbers if large else ():
            if len(self._large) < MAX_LARGE:
                self._large[number] = None
        return numbers


@dataclass(frozen=True)
class Sheet:
    """One WebP of tiles of `side` pixels, `columns` in each of its `rows`."""

    data: bytes
    side: int
    columns: int
    rows: int

    @property
    def url(self) -> str:
        return data_url(self.data)


@dataclass(frozen=True)
class Thumbnails:
    """The thumbnails of a gallery: sheets, and for each image (sheet, tile), None where it is no longer there."""

    sheets: list[Sheet]
    tiles: list[tuple[int, int] | None]


def fetch(gallery: Gallery, reader: Reader) -> Thumbnails:
    """Return thumbnails of all images of a gallery, from caches, else from the images themselves."""
    ids = list(gallery.numbers)
    tile_of: list[tuple[int, int] | None] = [None] * len(ids)
    made: list[Sheet] = []
    large = gallery.large
    small = sorted(set(range(len(ids))) - set(large))
    for numbers, options, budget in ((large, LARGE_SIDE, "large"), (small, SMALL_SIDE, "small")):
        tiles, readable = reader.tiles([ids[number] for number in numbers], side=options[0][0])
        for tile, row in enumerate(np.flatnonzero(readable).tolist()):
            tile_of[numbers[row]] = (len(made) + tile // TILES, tile % TILES)
        made += sheets(tiles, budget=BUDGETS[budget], options=options)
    return Thumbnails(made, tile_of)


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads images at any small size, in their proportions where the file is still there."""

    samples: Samples
    caches: list[StoredCache]
    levels: Levels | None = None  # of images of more than 8 bits

    @staticmethod
    def of(run: RunContents) -> Reader:
        """Return a reader of all images of a run, and of those that its steps made."""
        return replace(Reader.of_samples(run.as_read, run.folder / "cache"), samples=run.samples)

    @staticmethod
    def of_samples(samples: Samples, folder: Path) -> Reader:
        """Return a reader of these images, by their caches in `folder` where there are any."""
        kept = find_caches(folder, samples.names, hashes=samples.hash_names)
        return Reader(samples, kept, next((one.resize.levels for one in kept), None))

    def tiles(self, ids: Sequence[str], *, side: int, padded: bool = True) -> tuple[Pixels, Bools]:
        """Return the readable images (n, side, side, 3), and which of the `ids` (N,) these are.

        Unless `padded`, they fill their squares: as in the cache, or the centre of the file.
        """
        cache = next((one for one in self.caches if one.cache.side >= side), self.caches[-1] if self.caches else None)
        files = zip(ids, self.samples.take(self.samples.rows_of(ids)).paths, strict=True)
        images = [self._read(id_, path, side, cache, padded=padded) for id_, path in files]
        kept = [image for image in images if image is not None]
        side = min(side, max((image.shape[0] for image in kept), default=side))
        out = np.empty((len(kept), side, side, 3), np.uint8)
        for row, image in enumerate(kept):
            # Enlarged by whole pixels, so that a tiny image stays crisp.
            pixels = np.arange(side) * image.shape[0] // side
            out[row] = image[pixels][:, pixels]
        return out, np.array([image is not None for image in images], dtype=np.bool_)

    def _read(self, id_: str, path: ImageFile, side: int, stored: StoredCache | None, *, padded: bool) -> Pixels | None:
        if stored is None or id_ not in stored.cache.rows:
            return read_thumbnail(path, side, padded=padded, levels=self.levels)
        if stored.cache.side < side or (padded and not _is_whole(path, stored.resize)):
            image = read_thumbnail(path, side, padded=padded, levels=self.levels)
            if image is not None:
                return image
        return shrink(np.asarray(stored.cache.pixels[stored.cache.rows[id_]]), side)


def _is_whole(path: ImageFile, policy: Resize) -> bool:
    """Return whether a cache has an image in its proportions, and whole; also where its file is gone."""
    if policy.policy == "pad" and policy.centre_crop is None:
        return True
    try:
        width, height = size_of(path)
    except ImageError:
        return True
    return abs(width / height - 1) < SQUARE and policy.centre_crop is None


def read_thumbnail(path: ImageFile, side: int, *, padded: bool = True, levels: Levels | None = None) -> Pixels | None:
    """Return an image file as a small square, padded or its centre; None where it cannot be read, gone or broken."""
    settings = Resize(policy="pad" if padded else "crop", fill=(GREY, GREY, GREY), levels=levels)
    try:
        return read_square(path, min(side, max(size_of(path))), settings=settings)
    except ImageError:
        return None


def sheets(tiles: Pixels, *, budget: int, options: Sequence[tuple[int, int]] = SMALL_SIDE) -> list[Sheet]:
    """Return tiles (N, S, S, 3) in sheets of 576 at the first of these options that takes at most `budget` bytes.

    Tile n is number n % 576 of sheet n // 576, counted along the rows. The last option is taken where none fits.
    """
    made: list[Sheet] = []
    for number, (side, quality) in enumerate(options):
        last = number == len(options) - 1
        first = _sheet(tiles[:TILES], side, quality)
        if not last and len(first.data) * len(tiles) > 1.1 * budget * min(TILES, len(tiles)):
            continue  # by the first sheet all of them are too much
        rest = range(TILES, len(tiles), TILES)
        made = [first, *(_sheet(tiles[start : start + TILES], side, quality) for start in rest)]
        if last or sum(len(sheet.data) for sheet in made) <= budget:
            break
    return made if len(tiles) else []


def shrink(image: Pixels, side: int) -> Pixels:
    """Return a square image at `side` pixels, or as it is where it has no more: enlarging is the browser's."""
    if image.shape[0] <= side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0))


def encode(image: Pixels | Image.Image, *, quality: int, kind: str = "webp") -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    drawn = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    drawn.save(buffer, kind, quality=quality, method=3)  # of a WebP: the fourth way takes half as long again
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "webp") -> str:
    """Return the address that holds the bytes of an image."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")


def _sheet(tiles: Pixels, side: int, quality: int) -> Sheet:
    side = min(side, tiles.shape[1]) if len(tiles) else side
    columns = max(1, min(COLUMNS, len(tiles)))
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * side, columns * side, 3), GREY, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = side * (number // columns), side * (number % columns)
        canvas[top : top + side, left : left + side] = shrink(tile, side)
    return Sheet(encode(canvas, quality=quality) if canvas.size else b"", side, columns, rows)


# Labels and predictions of images as text, for pages and notebooks.


def label_text(head: Head, codes: Codes, row: int) -> str:
    """Return the label of an image under a head; nothing where it is unknown."""
    return plain(head.labels_text(codes[row], none="no tag"))


def prediction_text(head: Head, probabilities: Reals, thresholds: Reals, row: int) -> str:
    """Return the predicted classes of an image with their probabilities, from (N, K) arrays of a head."""
    decided = head.decide(probabilities[row : row + 1], thresholds[row : row + 1])[0]
    classes = head.classes_of(decided)
    return ", ".join(f"{plain(head.classes[one])} {100 * probabilities[row, one]:.0f} %" for one in classes) or "no tag"


def labels_text(space: LabelSpace, codes: Sequence[Codes], row: int) -> str:
    """Return the labels of an image under all heads."""
    return _joined([(head, label_text(head, known, row)) for head, _, known in space.each(codes)])


def predictions_text(space: LabelSpace, probabilities: Reals, thresholds: Reals, row: int) -> str:
    """Return the predictions for an image under all heads, from probabilities (N, W) and thresholds (W,) or (N, W)."""
    cuts = np.broadcast_to(thresholds, probabilities.shape)
    return _joined([(head, prediction_text(head, probabilities[:, at], cuts[:, at], row)) for head, at in space.each()])


def captions(
    gallery: Gallery, thumbnails: Thumbnails, samples: Samples, predictions: Mapping[str, str]
) -> dict[str, list[Any]]:
    """Return what the script of a page shows of each image: its tile, name, part, label and prediction, by id."""
    named = list(gallery.numbers)
    some = samples.take(samples.rows_of(named))
    splits, codes = some.table["split"].to_list(), some.codes()
    return {
        "tile": [list(tile) if tile else None for tile in thumbnails.tiles],
        "name": [plain(id_) for id_ in named],
        "part": [SPLITS.get(split or "", "") for split in splits],
        "label": [labels_text(samples.space, codes, row) for row in range(len(named))],
        "prediction": [predictions.get(id_, "") for id_ in named],
    }


def _joined(texts: Iterable[tuple[Head, str]]) -> str:
    by_head = list(texts)
    if len(by_head) == 1:
        return by_head[0][1]
    return " · ".join(f"{plain(head.name)}: {text}" for head, text in by_head if text)
