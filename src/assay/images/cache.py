"""Images decoded once, into one file of bytes that is mapped into memory.

A cache is two files named by its key: `KEY.pixels`, raw bytes (images, side, side, 3), and `KEY.json`,
written last, which says how many there are and which images could not be read. Channels come last, so a
batch is gathered as one run of bytes an image and handed on as a channels-last tensor without a copy.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from assay.arrays import Ints, Pixels
from assay.errors import DataError, ImageError
from assay.files import fingerprint, require_space, whole, write_json
from assay.images.decode import Resize, read_square, size_of, useful_side
from assay.labels.samples import LeftOut

VERSION = 1  # raise when the same settings give other pixels, so that older caches are made anew
MULTIPLE = 1.25  # of the size of training: a crop of most of an image still has all its detail
BLOCK = 16  # images a thread takes at a time
STALE = 600  # seconds after which an unfinished file that nobody writes to is what a killed run left

REPORT = 32  # images between two calls of `progress`

Out = TypeVar("Out")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Cache:
    """Square images in a file: `pixels` (M, S, S, 3), and the row of every id that could be read."""

    pixels: Pixels
    rows: dict[str, int]
    key: str = ""  # of all that decides what the pixels are
    added: tuple[Pixels, ...] = ()  # further files, whose rows follow in their order

    @property
    def side(self) -> int:
        """Width and height of the cached images."""
        return int(self.pixels.shape[1])

    def rows_of(self, ids: Sequence[str]) -> Ints:
        """Return the row of each id, in the order given. Raises KeyError for an image that was left out."""
        return np.fromiter((self.rows[id_] for id_ in ids), np.int64, len(ids))

    def gather(self, rows: ArrayLike) -> Tensor:
        """Return a batch of its own memory: uint8 (B, 3, S, S), channels last in memory."""
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
    """Images decoded whenever they are asked for, to the bytes that `build` would have stored: to look at a few.

    One that cannot be read is black, and noted with the reason in `unreadable`.
    """

    paths: tuple[Path, ...] = ()
    size: int = 0
    resize: Resize = field(default_factory=Resize)
    unreadable: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(
        ids: Sequence[str], paths: Sequence[Path], *, size: int, resize: Resize, unreadable: dict[str, str]
    ) -> LazyImages:
        """Return all images of a run, none of them read but for the sizes that some headers tell."""
        side = _side(paths, size=size, resize=resize, limit=round(size * MULTIPLE))
        rows, pixels = {id_: row for row, id_ in enumerate(ids)}, np.empty((0, side, side, 3), np.uint8)
        return LazyImages(pixels, rows, paths=tuple(paths), size=size, resize=resize, unreadable=unreadable)

    def gather(self, rows: ArrayLike) -> Tensor:
        """Return a batch as `Cache.gather` gives it."""
        names = list(self.rows)
        batch = np.zeros((np.size(rows), self.side, self.side, 3), np.uint8)
        for place, row in enumerate(np.asarray(rows, np.int64).tolist()):
            found = _read(self.paths[row], side=self.side, size=self.size, resize=self.resize)
            if isinstance(found, str):
                self.unreadable[names[row]] = found
            else:
                batch[place] = found
        return torch.from_numpy(batch).permute(0, 3, 1, 2)


def build(
    ids: Sequence[str],
    paths: Sequence[Path],
    *,
    hashes: Sequence[str | None],
    size: int,
    resize: Resize,
    folder: Path,
    multiple: float = MULTIPLE,
    progress: Progress | None = None,
) -> tuple[Cache, list[LeftOut]]:
    """Decode the images into `folder`, or reopen what is there; several caches may share it.

    The side is `size` times `multiple`, or less where no image has that much detail. Rows keep the order
    of `ids`. Images that cannot be read have no row and are returned, named by id.
    Raises DataError where none could be read; SpaceError.
    """
    if not ids:
        raise DataError("There are no images to prepare. Give a folder or a table with at least one.")
    key = _key(ids, paths, hashes, settings=f"{VERSION} {size} {multiple} {resize.model_dump_json()}")
    _sweep(folder)
    found = _reopen(folder, key, ids)
    if found is None:
        side = _side(paths, size=size, resize=resize, limit=round(size * multiple))
        require_space(folder, len(ids) * side * side * 3, f"preparing {len(ids):,} images at {side} pixels")
        read = partial(_read, side=side, size=size, resize=resize)
        about = {"side": side, "size": size, "resize": resize.model_dump(mode="json")}
        _write(folder / f"{key}.json", ids, _in_order(read, paths), hashes=hashes, about=about, progress=progress)
        found = _reopen(folder, key, ids)
        if found is None:
            raise DataError(f"{folder / key}.pixels was changed while it was made. Repeat the command.")
    return found


def append_images(cache: Cache, ids: Sequence[str], paths: Sequence[Path], *, size: int, folder: Path) -> Cache:
    """Return a cache with further images, of a file of their own in `folder`; they are square already, as a model sees them.

    Raises DataError for one that cannot be read; SpaceError.
    """
    key, side = _key(ids, paths, [None] * len(ids), settings=f"{VERSION} added {cache.side} {size}"), cache.side
    found = _reopen(folder, key, ids)
    if found is None:
        require_space(folder, len(ids) * side * side * 3, f"preparing {len(ids):,} added images at {side} pixels")
        read = partial(_read, side=side, size=size, resize=Resize())
        _write(folder / f"{key}.json", ids, _in_order(read, paths), hashes=[None] * len(ids), about={"side": side})
        found = _reopen(folder, key, ids)
    if found is None or found[1]:
        lost = found[1][0].path if found else ids[0]
        raise DataError(
            f"{lost}: this image was added by a step and cannot be read any more. Delete the folder of that step in "
            "the run, and train again: it is made anew."
        )
    more, rows = found[0], dict(cache.rows)
    first = len(cache.pixels) + sum(map(len, cache.added))
    rows |= {name: first + row for name, row in more.rows.items()}
    return Cache(cache.pixels, rows, fingerprint(cache.key, key), (*cache.added, more.pixels))


@dataclass(frozen=True)
class Kept:
    """A cache found in a folder, and what its images were made for."""

    cache: Cache
    size: int
    resize: Resize


def find_caches(folder: Path, ids: Sequence[str], *, hashes: Sequence[str | None]) -> list[Kept]:
    """Return the caches in `folder` of exactly these images in this order, the most detailed last."""
    holds, found = _holds(ids, hashes), []
    for manifest in sorted(folder.glob("*.json")):
        try:
            told = json.loads(manifest.read_text(encoding="utf-8"))
            side, size, resize = int(told["side"]), int(told["size"]), Resize.model_validate(told["resize"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version, or damaged: as `build` takes it, no cache
        pixels = _mapped(manifest.with_suffix(".pixels"), len(ids), side) if told.get("holds") == holds else None
        if pixels is not None:
            found.append(Kept(Cache(pixels, {id_: row for row, id_ in enumerate(ids)}, manifest.stem), size, resize))
    return sorted(found, key=lambda kept: (kept.cache.side, kept.size))


def _holds(ids: Sequence[str], hashes: Sequence[str | None]) -> str:
    """Return a name for the images that a cache holds, whatever their size."""
    return fingerprint(*(part for id_, hash_ in zip(ids, hashes, strict=True) for part in (_raw(id_), hash_ or "")))


def _key(ids: Sequence[str], paths: Sequence[Path], hashes: Sequence[str | None], *, settings: str) -> str:
    """Return a name for these images, in this order, under these settings."""
    rows = zip(ids, paths, hashes, strict=True)
    parts = (part for id_, path, hash_ in rows for part in (_raw(id_), hash_ or _state(path)))
    return fingerprint(settings, *parts)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # a name on disk need not be UTF-8


def _state(path: Path) -> bytes:
    """Return what stands in for a content hash that is not known: the file's place, size and time."""
    try:
        state = path.stat()
        return _raw(f"{path} {state.st_size} {state.st_mtime_ns}")
    except (OSError, ValueError):  # missing, or a name that no file can have
        return b"missing"


def _sweep(folder: Path) -> None:
    """Remove what killed runs left unfinished."""
    for part in folder.glob(".*.pixels.*.part"):
        with suppress(OSError):  # another process was quicker, or the folder is read-only
            if time.time() - part.stat().st_mtime > STALE:
                part.unlink()


def _reopen(folder: Path, key: str, ids: Sequence[str]) -> tuple[Cache, list[LeftOut]] | None:
    """Return the cache of this key, or None where there is none that is whole."""
    try:
        told = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        side, reasons = int(told["side"]), {int(row): str(reason) for row, reason in told["left_out"]}
        pixels = _mapped(folder / f"{key}.pixels", len(ids) - len(reasons), side)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if pixels is None:
        return None
    kept = (id_ for number, id_ in enumerate(ids) if number not in reasons)
    left_out = [LeftOut(ids[number], reason) for number, reason in sorted(reasons.items())]
    return Cache(pixels, {id_: row for row, id_ in enumerate(kept)}, key), left_out


def _mapped(path: Path, count: int, side: int) -> Pixels | None:
    """Return the pixels of a cache, or None where the file is not there or not whole."""
    shape = (count, side, side, 3)
    if not path.exists() or os.path.getsize(path) != math.prod(shape):
        return None
    # "c": nothing is written, but torch warns of an array that could not be written to.
    return np.memmap(path, np.uint8, "c", shape=shape)


def _side(paths: Sequence[Path], *, size: int, resize: Resize, limit: int) -> int:
    """Return the side to store: `limit`, or what the most detailed image needs where that is less.

    Only headers are read, and only until one image is known to need the limit: as a rule the first.
    """
    needed = partial(_needed_side, size=size, resize=resize)
    largest = 1
    for side in _in_order(needed, paths):
        largest = max(largest, side)
        if largest >= limit:
            break
    return min(largest, limit)


def _needed_side(path: Path, *, size: int, resize: Resize) -> int:
    try:
        return useful_side(*size_of(path), size=size, settings=resize)
    except ImageError:  # left out, with the reason, when its turn comes
        return 0


def _read(path: Path, *, side: int, size: int, resize: Resize) -> Pixels | str:
    """Return the image, or the reason why there is none."""
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
    about: dict[str, Any],
    progress: Progress | None = None,
) -> None:
    """Write the pixels beside the manifest, and then the manifest, each whole or not at all."""
    left_out: list[tuple[int, str]] = []
    with whole(manifest.with_suffix(".pixels")) as beside:
        # Written, not mapped: a full disk is then an error, where a mapped page would kill the process.
        with open(beside, "wb") as file:
            for number, image in enumerate(images):
                if isinstance(image, str):
                    left_out.append((number, image))
                else:
                    _append(file, image)
                if progress is not None and ((number + 1) % REPORT == 0 or number + 1 == len(ids)):
                    progress(number + 1, len(ids))
        if len(left_out) == len(ids):
            named = [LeftOut(ids[number], reason) for number, reason in left_out]
            raise DataError(
                f"None of the {len(ids):,} images can be read; at least one must be. "
                f"The first of them:{_listed(named[:5])}"
            )
    gone = {number for number, _ in left_out}
    kept = [number for number in range(len(ids)) if number not in gone]
    holds = _holds([ids[number] for number in kept], [hashes[number] for number in kept])
    write_json(manifest, about | {"left_out": left_out, "holds": holds})


def _append(file: BinaryIO, image: Pixels) -> None:
    file.write(image.data)


def _in_order(work: Callable[[Path], Out], paths: Sequence[Path]) -> Iterator[Out]:
    """Work on images in all cores (Pillow frees the lock while it decodes), and yield in their order.

    Only a few blocks are under way at a time, so memory does not grow with the number of images.
    """
    threads = _cores()
    with ThreadPoolExecutor(threads) as pool:
        blocks = (paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK))
        under_way: deque[Future[list[Out]]] = deque()
        for block in blocks:
            under_way.append(pool.submit(lambda block: [work(path) for path in block], block))
            if len(under_way) > 2 * threads:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()


def _cores() -> int:
    """Return cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _listed(left_out: Sequence[LeftOut]) -> str:
    return "".join(f"\n  {image.path}: {image.reason}" for image in left_out)
