"""Images of a data set too large for a cache: decoded as they are needed, in processes of their own, ahead of use.

They are the bytes that a cache would hold. Which images cannot be read is known from one pass over all of them: it is
kept in `KEY.streamed.json`, where the cache would lie, which is also the sign that these images are streamed.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from assay.arrays import Ints, Pixels
from assay.errors import DataError, TrainingError
from assay.files import free_space, write_json
from assay.images.cache import (
    MULTIPLE,
    REPORT,
    Cache,
    Progress,
    build,
    cache_key,
    in_order,
    read_image,
    settings_of,
    stored_side,
    with_numbers,
)
from assay.images.decode import Resize
from assay.labels.left_out import LeftOut
from assay.labels.samples import RowIndex
from assay.labels.shards import ImageFile, forget_open_shards
from assay.progress import cores, kept_handler
from assay.settings import Settings

USUAL_LIMIT = 20e9  # bytes of a cache
FEWEST = 4  # batches for which starting processes is worth it


@dataclass(frozen=True, eq=False)
class _Decoder(Dataset[Tensor | str]):
    """Decoded images (S, S, 3) by row; the reason where a shard is gone or has changed."""

    files: Sequence[ImageFile]
    side: int
    size: int
    resize: Resize

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor | str:
        try:
            image = read_image(self.files[row], side=self.side, size=self.size, resize=self.resize)
        except DataError as error:
            return str(error)
        return torch.from_numpy(_black(self.side) if isinstance(image, str) else image)


def _black(side: int) -> Pixels:
    """Return what stands for an image that could be read once and cannot any more."""
    return np.zeros((side, side, 3), np.uint8)


def _joined(images: list[Tensor | str]) -> Tensor | str:
    """Return images as a batch (B, S, S, 3), or why there is none."""
    reason = next((image for image in images if isinstance(image, str)), None)
    return reason or torch.stack([image for image in images if not isinstance(image, str)])


@dataclass
class _Ahead:
    """The batches that are being decoded: their rows, and their images in the same order."""

    rows: Iterator[Ints] = field(default_factory=lambda: iter(()))
    images: Iterator[Tensor | str] | None = None
    next: Ints | None = None


@dataclass(frozen=True, eq=False)
class StreamedImages(Cache):
    """Images that are decoded on access, to the bytes that a cache would hold; ahead of it where they are expected."""

    files: Sequence[ImageFile] = ()  # of the rows
    size: int = 0
    resize: Resize = field(default_factory=Resize)
    ahead: _Ahead = field(default_factory=_Ahead)

    def expect(self, batches: Iterable[Ints]) -> None:
        """Begin to decode these batches, in order, in as many processes as there are cores."""
        rows = [batch for batch in batches if len(batch)]
        self.ahead.images = None  # ends the processes of the batches before
        self.ahead.rows = iter(rows)
        self.ahead.next = next(self.ahead.rows, None)
        if len(rows) >= FEWEST and sys.platform == "linux":
            # torch's would raise the end of a process wherever the first one is; asked for an image, it tells it too
            with _killed_as_error(), kept_handler(signal.SIGCHLD):
                self.ahead.images = iter(self._loader(rows))

    def gather(self, rows: ArrayLike) -> Tensor:
        """Return rows as uint8 (B, 3, S, S), channels last in memory; decoded now where they were not expected next.

        Raises DataError for a shard that is gone or has changed, TrainingError where a process was killed.
        """
        wanted, ahead = np.asarray(rows, np.int64), self.ahead
        if ahead.images is None or ahead.next is None or not np.array_equal(ahead.next, wanted):
            read = partial(read_image, side=self.side, size=self.size, resize=self.resize)
            decoded = in_order(read, [self.files[row] for row in wanted.tolist()])
            images = [_black(self.side) if isinstance(image, str) else image for image in decoded]
            batch = np.stack(images) if images else np.empty((0, self.side, self.side, 3), np.uint8)
            return torch.from_numpy(batch).permute(0, 3, 1, 2)
        with _killed_as_error():
            decoded_ahead = next(ahead.images)
        ahead.next = next(ahead.rows, None)
        if isinstance(decoded_ahead, str):
            raise DataError(decoded_ahead)
        return decoded_ahead.permute(0, 3, 1, 2)

    def _loader(self, batches: list[Ints]) -> DataLoader[Tensor | str]:
        return DataLoader(
            _Decoder(self.files, self.side, self.size, self.resize),
            batch_sampler=_Lists(batches),
            num_workers=min(cores(), len(batches)),
            collate_fn=_joined,
            worker_init_fn=_begin_process,
            multiprocessing_context=multiprocessing.get_context("fork"),  # others import the user's script again
        )


@dataclass(frozen=True)
class _Lists(Sampler[list[int]]):
    """Batches of rows as lists, each made when it is asked for: those of an epoch would take 40 bytes an image."""

    batches: Sequence[Ints]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)


def _begin_process(number: int) -> None:
    forget_open_shards()  # an open file shares its position with the process that opened it
    for stop in (signal.SIGINT, signal.SIGTERM):  # sent to all processes: the first ends its step, and then this one
        signal.signal(stop, signal.SIG_IGN)


@contextmanager
def _killed_as_error() -> Iterator[None]:
    """Raise TrainingError where a process that decodes images was killed, as torch tells it or by a broken wire."""
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            "A process that decodes images was killed, most likely for want of memory. "
            "Free some, or train with a smaller `batch`."
        ) from error


@dataclass(frozen=True)
class CacheLimit:
    """The bytes above which images are streamed, and where to say so before it begins."""

    bytes: float
    say: Callable[[str], None]


def prepare_images(
    ids: Sequence[str],
    paths: Sequence[ImageFile],
    *,
    hashes: Sequence[str | None],
    size: int,
    resize: Resize,
    folder: Path,
    limit: CacheLimit | None = None,
    progress: Progress | None = None,
) -> tuple[Cache, list[LeftOut]]:
    """Return images as `build` does, streamed where a cache would be larger than the limit (None: there is none).

    What it was once it stays: `folder` has the cache, or the list of the images that cannot be read.
    """
    key = cache_key(ids, paths, hashes, settings=settings_of(size, resize))
    manifest = folder / f"{key}.streamed.json"
    if not manifest.exists():
        side = round(size * MULTIPLE)
        small = limit is None or (folder / f"{key}.json").exists()
        if limit is not None and not small and _cache_bytes(ids, side) > limit.bytes:  # else no header need be read
            side = stored_side(paths, size=size, resize=resize, limit=side)
        needed = _cache_bytes(ids, side)
        if limit is None or small or needed <= limit.bytes:
            return build(ids, paths, hashes=hashes, size=size, resize=resize, folder=folder, progress=progress)
        limit.say(
            f"  a cache of {len(ids):,} images at {side} pixels would be {needed / 1e9:,.1f} GB, and its limit is "
            f"{limit.bytes / 1e9:,.1f} GB (cache.limit): they are decoded as they are needed, after one look at each"
        )
        read = partial(read_image, side=side, size=size, resize=resize)
        left_out = _unreadable(ids, in_order(read, paths), progress)
        write_json(manifest, {"side": side, "left_out": left_out})
    return _streamed(manifest, ids, paths, hashes=hashes, size=size, resize=resize)


def _cache_bytes(ids: Sequence[str], side: int) -> int:
    return len(ids) * side * side * 3


def _unreadable(ids: Sequence[str], images: Iterable[Pixels | str], progress: Progress | None) -> list[tuple[int, str]]:
    """Return the images that cannot be read, and why. Raises DataError where these are all."""
    left_out = []
    for number, image in enumerate(images):
        if isinstance(image, str):
            left_out.append((number, image))
        if progress is not None and ((number + 1) % REPORT == 0 or number + 1 == len(ids)):
            progress(number + 1, len(ids))
    if len(left_out) == len(ids):
        raise DataError(f"None of the {len(ids):,} images can be read. The first: {ids[0]}: {left_out[0][1]}")
    return left_out


@dataclass(frozen=True)
class _Some(Sequence[ImageFile]):
    """The files at these rows of others, each made when it is asked for."""

    files: Sequence[ImageFile]
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> ImageFile: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[ImageFile]: ...
    def __getitem__(self, row: int | slice) -> ImageFile | Sequence[ImageFile]:
        return _Some(self.files, self.rows[row]) if isinstance(row, slice) else self.files[int(self.rows[row])]


def _streamed(
    manifest: Path,
    ids: Sequence[str],
    paths: Sequence[ImageFile],
    *,
    hashes: Sequence[str | None],
    size: int,
    resize: Resize,
) -> tuple[Cache, list[LeftOut]]:
    about = json.loads(manifest.read_text(encoding="utf-8"))
    gone = {int(row): str(reason) for row, reason in about["left_out"]}
    pixels = np.empty((0, about["side"], about["side"], 3), np.uint8)
    files, names = paths, ids
    if gone:
        kept = np.delete(np.arange(len(ids)), list(gone))
        files, names = _Some(paths, kept), [ids[row] for row in kept.tolist()]
    rows = RowIndex(names)
    key = manifest.name.partition(".")[0]
    streamed = StreamedImages(pixels, rows, key, files=files, size=size, resize=resize)
    left_out = [LeftOut(ids[row], reason) for row, reason in gone.items()]
    return with_numbers(streamed, ids, hashes, size=size, resize=resize), left_out


class CacheSettings(Settings):
    """The disk that decoded images may take."""

    limit: float | None = Field(
        default=None,
        ge=0,
        description="Gigabytes of a cache of decoded images; those of a larger one are decoded as they are needed. "
        "Default: 20, or a third of the free disk where that is less.",
    )

    def bytes(self, folder: Path) -> float:
        """Return the limit of a cache in a folder."""
        return min(USUAL_LIMIT, free_space(folder) / 3) if self.limit is None else self.limit * 1e9
