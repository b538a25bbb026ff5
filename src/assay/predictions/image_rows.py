"""Rows of numbers by image, computed once and kept on disk: features, and activations at a boundary.

A table of rows is several files in a folder, `KIND-KEY-*.rows`, where the key is a hash of all that the numbers depend
on but the image. Each file has a block of images: their numbers, their rows, and the scales of the rows, three arrays
in the .npy format one after the other. A file appears whole or not at all, so that a kill costs at most one block, and
what another list of images needs is computed for the images that no earlier list had.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from assay.arrays import Floats, Ints
from assay.errors import RunError
from assay.files import fingerprint, free_space, require_space, whole, writing
from assay.progress import Progress

BATCH = 32  # images of a pass of a network: larger ones fall out of a CPU's cache and are slower
BLOCK = 64 << 20  # bytes of a file, at most
LARGEST = 6e4  # of a number kept in half precision; rows with larger ones are divided by a scale

Compute = Callable[[Ints], Iterator[Floats]]
"""Return the rows of these images, by their position in a list, in batches of `BATCH`."""


@dataclass(frozen=True)
class Table:
    """A table of rows on disk: its kind, its key, and what a row is."""

    folder: Path
    kind: Literal["features", "activations"]
    key: str
    shape: tuple[int, ...]
    dtype: type[np.float32] | type[np.float16]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.kind}-{self.key}-*.rows"))


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows (N, ...) of a list of images, on disk; those that are indexed are read as float32."""

    blocks: Sequence[_Block]
    where: Ints  # (N, 2): block, and row in it
    shape: tuple[int, ...]  # (N, ...)

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, rows: Ints) -> Floats:
        where, values = self.where[rows], np.empty((len(rows), *self.shape[1:]), np.float32)
        # Rows that follow each other in a file are read at once.
        breaks = np.flatnonzero((np.diff(where, axis=0) != (0, 1)).any(axis=1)) + 1
        for first, last in pairwise([0, *breaks.tolist(), len(where)] if len(where) else []):
            number, row = where[first].tolist()
            self.blocks[number].read(row, values[first:last])
        return values


@dataclass(frozen=True, eq=False)
class JoinedRows:
    """The rows of several tables as one, (N, F): the features of several networks."""

    parts: Sequence[Rows]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.parts[0]), sum(part.shape[1] for part in self.parts)

    def __getitem__(self, rows: Ints) -> Floats:
        return np.concatenate([part[rows] for part in self.parts], axis=1)


@dataclass(frozen=True, eq=False)
class _Block:
    """A file of a table, which stays open: what is in use may be removed."""

    images: Ints
    scales: Floats  # (n,)
    file: FileIO
    offset: int  # of the first row, in bytes
    table: Table

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)

    def read(self, row: int, values: Floats) -> None:
        """Fill `values` (n, ...) with as many rows from this one on. Raises RunError.

        Read, not mapped: pages of a mapped file count as memory of the process, and take ten times as long.
        """
        exact = self.table.dtype == np.float32  # whose scales are 1
        held = values if exact else np.empty(values.shape, self.table.dtype)
        self.file.seek(self.offset + row * self.table.row_bytes)
        if self.file.readinto(held.reshape(-1).view(np.uint8).data) != held.nbytes:
            raise RunError(f"{self.file.name!r}: has lost some of its {self.table.kind}. Delete it, and train again.")
        if not exact:
            scales = self.scales[row : row + len(values)]
            np.multiply(held, scales.reshape(-1, *[1] * (values.ndim - 1)), out=values)


def kept_rows(table: Table, images: Ints, compute: Compute, *, progress: Progress) -> Rows:
    """Return the rows of images (N,), named by numbers; those that the table lacks are computed and kept.

    Raises SpaceError, RunError.
    """
    blocks = _blocks(table)
    missing = _missing(images, _find(images, blocks))
    if len(missing):
        require_space(table.folder, len(missing) * table.row_bytes, f"the {table.kind} of the images")
        progress.begin(table.kind, len(missing))
        # Whole batches a block: after a kill the rest is computed in the batches of a run that was not killed.
        step = max(1, BLOCK // (table.row_bytes * BATCH)) * BATCH
        batches = compute(missing)
        for first in range(0, len(missing), step):
            _write(table, images[missing[first : first + step]], batches, progress)
        progress.end()
        blocks = _blocks(table)
    where = _find(images, blocks)
    if (where < 0).any():
        raise RunError(f"{table.folder}: {table.kind} were removed while they were made. Repeat the command.")
    return Rows(blocks, where, (len(images), *table.shape))


def uncomputed(table: Table, images: Ints) -> int:
    """Return how many of the images a table lacks."""
    return len(_missing(images, _find(images, _blocks(table))))


def room_for_activations(folder: Path, *, limit: float) -> float:
    """Return the bytes that activations may take in a folder: at most the limit, and half of what is free.

    Those that are there count as free, since `make_room` removes them.
    """
    return min(limit, (free_space(folder) + activation_bytes(folder)) / 2)


def activation_bytes(folder: Path) -> int:
    """Return the bytes of all activations in a folder."""
    return sum(path.stat().st_size for path in folder.glob("activations-*.rows"))


def make_room(folder: Path, needed: Collection[Table], *, further: float, limit: float) -> None:
    """Remove activations that no table needs, the oldest first, until `further` bytes stay below the limit."""
    kept = {path for table in needed for path in table.files}
    sizes = {path: path.stat() for path in folder.glob("activations-*.rows")}
    taken = further + sum(about.st_size for about in sizes.values())
    for path in sorted(sizes.keys() - kept, key=lambda path: (sizes[path].st_mtime_ns, path)):
        if taken <= limit:
            return
        taken -= sizes[path].st_size
        with writing(path):
            path.unlink()


def _missing(images: Ints, where: Ints) -> Ints:
    """Return the rows of images without a place in a table, each image once, in order."""
    rows = np.flatnonzero(where[:, 0] < 0)
    return np.sort(rows[np.unique(images[rows], return_index=True)[1]])


def _find(images: Ints, blocks: Sequence[_Block]) -> Ints:
    """Return the block of each image and its row in it (N, 2), -1 where none has it; of several blocks the last."""
    held = np.concatenate([np.empty(0, np.int64), *(block.images for block in blocks)])
    order = np.argsort(held, kind="stable")
    at = np.searchsorted(held, images, side="right", sorter=order) - 1
    if not len(held):
        return np.full((len(images), 2), -1)
    at = order[at]  # of an image before all others the last, which is none of its own
    firsts = np.cumsum([0, *(len(block.images) for block in blocks)])
    number = np.searchsorted(firsts, at, side="right") - 1
    where = np.stack([number, at - firsts[number]], axis=1)
    where[held[at] != images] = -1
    return where


def _write(table: Table, images: Ints, batches: Iterator[Floats], progress: Progress) -> None:
    """Write the rows of a block of images, batch by batch, as a file, whole or not at all."""
    path = table.folder / f"{table.kind}-{table.key}-{fingerprint(images.tobytes())}.rows"
    descr = np.lib.format.dtype_to_descr(np.dtype(table.dtype))
    scales: list[Floats] = []
    # Written, not mapped: a full disk is then an error, where a mapped page would kill the process.
    with whole(path) as beside, open(beside, "wb") as file:
        np.save(file, images)
        shape = (len(images), *table.shape)
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        while sum(map(len, scales)) < len(images):
            batch = next(batches)
            scale = np.ones(len(batch), np.float32)
            if table.dtype == np.float16:
                scale = np.maximum(np.abs(batch).reshape(len(batch), -1).max(axis=1, initial=0) / LARGEST, scale)
            scales.append(scale)
            file.write(np.ascontiguousarray(batch / scale.reshape(-1, *[1] * len(table.shape)), table.dtype).data)
            progress.advance(len(batch))
        np.save(file, np.concatenate(scales))


def _blocks(table: Table) -> list[_Block]:
    """Return the blocks of a table that are complete."""
    return [block for path in table.files if (block := _read(path, table)) is not None]


def _read(path: Path, table: Table) -> _Block | None:
    """Return a block; None where the file is missing or incomplete."""
    file = None
    try:
        file = FileIO(path)
        images = np.lib.format.read_array(file)
        shape, dtype, offset = _header(file)
        file.seek(offset + len(images) * table.row_bytes)
        scales = np.lib.format.read_array(file)
    except (OSError, ValueError, EOFError):
        if file is not None:
            file.close()
        return None
    if shape != (len(images), *table.shape) or dtype != table.dtype or len(scales) != len(images):
        file.close()
        return None
    return _Block(images, scales, file, offset, table)


def _header(file: FileIO) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return the shape and type of the array that begins here in a file, and where its numbers begin."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype, file.tell()
