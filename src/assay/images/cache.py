"""Images decoded once, into one memory-mapped file of bytes.

A cache is two files named by its key: `KEY.pixels`, raw bytes (images, side, side, 3), and `KEY.json`, written last,
with its size and the images that could not be read. Channels come last, so a batch is gathered as one run of bytes an
image and becomes a channels-last tensor without a copy.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from assay.arrays import Ints, Pixels
from assay.errors import DataError, ImageError
from assay.files import fingerprint, fingerprint_of, remove_unfinished, require_space, whole, write_json
from assay.images.decode import Resize, read_square, size_of, useful_side
from assay.labels.left_out import LeftOut
from assay.labels.samples import RowIndex
from assay.labels.shards import ImageFile, Member
from assay.progress import cores

VERSION = 1  # raise when the same settings give other pixels, so that older caches are not used
MULTIPLE = 1.25  # of the size of training: a crop of most of an image still has all its detail
BLOCK = 16  # images of a task of a thread
REPORT = 32  # images between two calls of `progress`

Out = TypeVar("Out")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Cache:
    """Square images in a file: `pixels` (M, S, S, 3), and the row of every readable id."""

    pixels: Pixels
    rows: Mapping[str, int]
    key: str = ""  # hash of all that determines the pixels
    added: tuple[Pixels, ...] = ()  # further files, whose rows follow in their order
    numbers: Ints | None = None  # (M,) of the rows: by the file's content and how it was decoded

    @property
    def side(self) -> int:
        """Width and height of the cached images."""
        return int(self.pixels.shape[1])

    def rows_of(self, ids: Sequence[str]) -> Ints:
        """Return the row of each id, in order. Raises KeyError for an image that was left out."""
        if isinstance(self.rows, RowIndex):
            return self.rows.rows_of(ids)
        return np.fromiter((self.rows[id_] for id_ in ids), np.int64, len(ids))

    def numbers_of(self, ids: Sequence[str]) -> Ints:
        """Return a number (N,) for each image, by its content and how it was decoded where the cache knows these."""
        if self.numbers is None:
            return np.array([_number(self.key, _raw(id_)) for id_ in ids], np.int64)
        return self.numbers[self.rows_of(ids)]

    def expect(self, batches: Iterable[Ints]) -> None:
        """Take note of the rows that will be gathered, batch by batch: of use where they are decoded ahead."""

    def gather(self, rows: ArrayLike) -> Tensor:
        """Return a copy of rows as uint8 (B, 3, S, S), channels last in memory."""
        # 0.08 ms for 32 images at 160: torch's index_select took 0.13, a loop of copies 0.10.
        wanted = np.asarray(rows, np.int64)
        batch = self._gathered(wanted) if self.added else np.take(self.pixels, wanted, axis=0)
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def _gathered(self, rows: Ints) -> Pixels:
        batch = np.empty((len(rows), *self.pixels.shape[1:]), np.uint8)
        first = 0
        for part in (self.pixels, *self.added):
            inside = (rows >= first) & (rows < first + len(part))
            batch[inside] = part[rows[inside] - first]
            first += len(part)
        return batch


@dataclass(frozen=True, eq=False)
class LazyImages(Cache):
    """Images decoded on access, to the bytes that `build` would store: for a small part of a data set.

    An unreadable image is black, and its reason is added to `unreadable`.
    """

    names: Sequence[str] = ()
    paths: Sequence[ImageFile] = ()
    size: int = 0
    resize: Resize = field(default_factory=Resize)
    unreadable: dict[str, str] = field(default_factory=dict)
    decoded: dict[int, Pixels | str] = field(default_factory=dict)  # by row; the reason where there is none

    @staticmethod
    def of(
        ids: Sequence[str], paths: Sequence[ImageFile], *, size: int, resize: Resize, unreadable: dict[str, str]
    ) -> LazyImages:
        """Return lazy images; only headers are read, to choose the side."""
        side = stored_side(paths, size=size, resize=resize, limit=round(size * MULTIPLE))
        pixels = np.empty((0, side, side, 3), np.uint8)
        return LazyImages(
            pixels, RowIndex(ids), names=ids, paths=paths, size=size, resize=resize, unreadable=unreadable
        )

    def gather(self, rows: ArrayLike) -> Tensor:
        """Decode rows to a batch like that of `Cache.gather`."""
        batch = np.zeros((np.size(rows), self.side, self.side, 3), np.uint8)
        for index, row in enumerate(np.asarray(rows, np.int64).tolist()):
            if row not in self.decoded:
                self.decoded[row] = read_image(self.paths[row], side=self.side, size=self.size, resize=self.resize)
            image = self.decoded[row]
            if isinstance(image, str):
                self.unreadable[self.names[row]] = image
            else:
                batch[index] = image
        return torch.from_numpy(batch).permute(0, 3, 1, 2)


def build(
    ids: Sequence[str],
    paths: Sequence[ImageFile],
    *,
    hashes: Sequence[str | None],
    size: int,
    resize: Resize,
    folder: Path,
    multiple: float = MULTIPLE,
    progress: Progress | None = None,
) -> tuple[Cache, list[LeftOut]]:
    """Decode the images into `folder`, or reopen their cache; several caches may share the folder.

    The side is `size` times `multiple`, or less where no image has that much detail. Rows keep the order
    of `ids`. Images that cannot be read have no row and are returned, named by id.
    Raises DataError where none could be read; SpaceError.
    """
    if not ids:
        raise DataError("There are no images to prepare. Give a folder or a table with at least one.")
    key = cache_key(ids, paths, hashes, settings=settings_of(size, resize, multiple))
    remove_unfinished(folder, ".*.pixels.*.part")
    cached = _reopen(folder, key, ids)
    if cached is None:
        side = stored_side(paths, size=size, resize=resize, limit=round(size * multiple))
        require_space(folder, len(ids) * side * side * 3, f"preparing {len(ids):,} images at {side} pixels")
        read = partial(read_image, side=side, size=size, resize=resize)
        about = {"side": side, "size": size, "resize": resize.model_dump(mode="json")}
        _write(folder / f"{key}.json", ids, in_order(read, paths), hashes=hashes, about=about, progress=progress)
        cached = _reopen(folder, key, ids)
        if cached is None:
            raise DataError(f"{folder / key}.pixels was changed while it was made. Repeat the command.")
    read_in, left_out = cached
    return with_numbers(read_in, ids, hashes, size=size, resize=resize), left_out


def settings_of(size: int, resize: Resize, multiple: float = MULTIPLE) -> str:
    """Return what decides how the images of a cache are decoded, for its key."""
    return f"{VERSION} {size} {multiple} {resize.model_dump_json()}"


def append_images(cache: Cache, ids: Sequence[str], paths: Sequence[ImageFile], *, size: int, folder: Path) -> Cache:
    """Return a cache with further images in another file of `folder`; they are squares of the model's size already.

    Raises DataError for one that cannot be read; SpaceError.
    """
    key, side = cache_key(ids, paths, [None] * len(ids), settings=f"{VERSION} added {cache.side} {size}"), cache.side
    cached = _reopen(folder, key, ids)
    if cached is None:
        require_space(folder, len(ids) * side * side * 3, f"preparing {len(ids):,} added images at {side} pixels")
        read = partial(read_image, side=side, size=size, resize=Resize())
        _write(folder / f"{key}.json", ids, in_order(read, paths), hashes=[None] * len(ids), about={"side": side})
        cached = _reopen(folder, key, ids)
    if cached is None or cached[1]:
        lost = cached[1][0].path if cached else ids[0]
        raise DataError(
            f"{lost}: this image was added by a step and cannot be read any more. Delete the folder of that step in "
            "the run, and train again: it is made anew."
        )
    more, rows = cached[0], dict(cache.rows)
    numbers = None if cache.numbers is None else np.concatenate([cache.numbers, more.numbers_of(ids)])
    first = len(cache.pixels) + sum(map(len, cache.added))
    rows |= {name: first + row for name, row in more.rows.items()}
    return Cache(cache.pixels, rows, fingerprint(cache.key, key), (*cache.added, more.pixels), numbers)


@dataclass(frozen=True)
class StoredCache:
    """A cache in a folder, with the size and resizing that it was built for."""

    cache: Cache
    size: int
    resize: Resize


def find_caches(folder: Path, ids: Sequence[str], *, hashes: Sequence[str | None]) -> list[StoredCache]:
    """Return the caches in `folder` of exactly these images in this order, the most detailed last."""
    manifests, caches = sorted(folder.glob("*.json")), []
    holds = _holds(ids, hashes) if manifests else ""
    rows: dict[str, int] = {}
    for manifest in manifests:
        try:
            about = json.loads(manifest.read_text(encoding="utf-8"))
            side, size, resize = int(about["side"]), int(about["size"]), Resize.model_validate(about["resize"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version, or damaged: no cache, as for `build`
        pixels = _mapped(manifest.with_suffix(".pixels"), len(ids), side) if about.get("holds") == holds else None
        if pixels is not None:
            rows = rows or {id_: row for row, id_ in enumerate(ids)}
            cache = with_numbers(Cache(pixels, rows, manifest.stem), ids, hashes, size=size, resize=resize)
            caches.append(StoredCache(cache, size, resize))
    return sorted(caches, key=lambda stored: (stored.cache.side, stored.size))


def _holds(ids: Sequence[str], hashes: Sequence[str | None]) -> str:
    """Return a hash of the images of a cache, whatever their size."""
    return fingerprint_of(part for id_, hash_ in zip(ids, hashes, strict=True) for part in (_raw(id_), hash_ or ""))


def cache_key(ids: Sequence[str], paths: Sequence[ImageFile], hashes: Sequence[str | None], *, settings: str) -> str:
    """Return a hash of these images, in this order, under these settings."""
    rows = zip(ids, paths, hashes, strict=True)
    parts = (part for id_, path, hash_ in rows for part in (_raw(id_), hash_ or _state(path)))
    return fingerprint_of(chain([settings], parts))


def with_numbers(cache: Cache, ids: Sequence[str], hashes: Sequence[str | None], *, size: int, resize: Resize) -> Cache:
    """Return the cache with the numbers of its rows, which stand in the order of the ids."""
    decoded = f"{VERSION} {cache.side} {size} {resize.model_dump_json()}"
    everything = len(cache.rows) == len(ids)
    contents = (
        hash_ or _raw(f"{cache.key} {id_}")
        for id_, hash_ in zip(ids, hashes, strict=True)
        if everything or id_ in cache.rows
    )
    numbers = (_number(decoded, content) for content in contents)
    return replace(cache, numbers=np.fromiter(numbers, np.int64, len(cache.rows)))


def _number(decoded: str, content: str | bytes) -> int:
    return int.from_bytes(bytes.fromhex(fingerprint(decoded, content)), "big", signed=True)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # a name on disk need not be UTF-8


def _state(path: ImageFile) -> bytes:
    """Return path, size and time of a file, in place of an unknown content hash."""
    if isinstance(path, Member):
        return _raw(f"{path} {path.offset} {path.shard.state}")
    try:
        state = path.stat()
        return _raw(f"{path} {state.st_size} {state.st_mtime_ns}")
    except (OSError, ValueError):  # missing, or a name that no file can have
        return b"missing"


def _reopen(folder: Path, key: str, ids: Sequence[str]) -> tuple[Cache, list[LeftOut]] | None:
    """Return the cache of this key and the images left out; None where it is missing or incomplete."""
    try:
        about = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        side, reasons = int(about["side"]), {int(row): str(reason) for row, reason in about["left_out"]}
        pixels = _mapped(folder / f"{key}.pixels", len(ids) - len(reasons), side)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if pixels is None:
        return None
    kept = (id_ for number, id_ in enumerate(ids) if number not in reasons)
    left_out = [LeftOut(ids[number], reason) for number, reason in sorted(reasons.items())]
    return Cache(pixels, {id_: row for row, id_ in enumerate(kept)}, key), left_out


def _mapped(path: Path, count: int, side: int) -> Pixels | None:
    """Return the pixels of a cache; None where the file is missing or incomplete."""
    shape = (count, side, side, 3)
    if not path.exists() or os.path.getsize(path) != math.prod(shape):
        return None
    # "c": nothing is written, but torch warns of read-only arrays.
    return np.memmap(path, np.uint8, "c", shape=shape)


def stored_side(paths: Sequence[ImageFile], *, size: int, resize: Resize, limit: int) -> int:
    """Return the side to store: `limit`, or less where the most detailed image needs less.

    Only headers are read, and only up to the first image that needs the limit.
    """
    needed = partial(_needed_side, size=size, resize=resize)
    largest = 1
    for side in in_order(needed, paths):
        largest = max(largest, side)
        if largest >= limit:
            break
    return min(largest, limit)


def _needed_side(path: ImageFile, *, size: int, resize: Resize) -> int:
    try:
        return useful_side(*size_of(path), size=size, settings=resize)
    except ImageError:  # left out, with the reason, when it is decoded
        return 0


def read_image(path: ImageFile, *, side: int, size: int, resize: Resize) -> Pixels | str:
    """Return the decoded image, or the reason why it cannot be read."""
    try:
        return read_square(path, side, settings=resize, size=size)
    except ImageError as error:
        return str(error)


def _write(
    manifest: Path,
    ids: Sequence[str],
    images: Iterator[Pixels | str],
    *,
    hashes: Sequence[str | None],
    about: Mapping[str, object],
    progress: Progress | None = None,
) -> None:
    """Write the pixels beside the manifest, then the manifest."""
    left_out: list[tuple[int, str]] = []
    with whole(manifest.with_suffix(".pixels")) as beside:
        # Written, not mapped: on a full disk that raises, where a mapped page would kill the process.
        with open(beside, "wb") as file:
            for number, image in enumerate(images):
                if isinstance(image, str):
                    left_out.append((number, image))
                else:
                    _append(file, image)
                if progress is not None and ((number + 1) % REPORT == 0 or number + 1 == len(ids)):
                    progress(number + 1, len(ids))
        if len(left_out) == len(ids):
            first = "".join(f"\n  {ids[number]}: {reason}" for number, reason in left_out[:5])
            raise DataError(
                f"None of the {len(ids):,} images can be read; at least one must be. The first of them:{first}"
            )
    gone = {number for number, _ in left_out}
    kept = [number for number in range(len(ids)) if number not in gone]
    holds = _holds([ids[number] for number in kept], [hashes[number] for number in kept])
    write_json(manifest, {**about, "left_out": left_out, "holds": holds})


def _append(file: BinaryIO, image: Pixels) -> None:
    file.write(image.data)


def in_order(work: Callable[[ImageFile], Out], paths: Sequence[ImageFile]) -> Iterator[Out]:
    """Yield the results of work on images, in order; Pillow decodes on all cores, without the interpreter's lock.

    Two blocks a thread are under way at a time, so memory does not grow with the number of images.
    """
    threads = cores()
    pool = ThreadPoolExecutor(threads)
    try:
        blocks = (paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK))
        under_way: deque[Future[list[Out]]] = deque()
        for block in blocks:
            under_way.append(pool.submit(lambda block: [work(path) for path in block], block))
            if len(under_way) > 2 * threads:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
    finally:  # left early, it may be closed in one of its own threads, which cannot wait for itself
        pool.shutdown(wait=False, cancel_futures=True)
