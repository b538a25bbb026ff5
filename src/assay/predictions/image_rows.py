"""Rows of numbers by image, computed once and kept on disk: features, and activations at a boundary.

A table of rows is several files in a folder, `KIND-KEY-*.rows`, where the key is a hash of all that the numbers depend
on but the image. Each file has a block of images: their numbers, their rows, and the scales of the rows, three arrays
in the .npy format one after the other. A file appears whole or not at all, so that a kill costs at most one block, and
what another list of images needs is computed for the images that no earlier list had.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from assay.arrays import Floats, Ints, Reals
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
    """Rows (N, ...) of a list of images, memory-mapped; indexed by rows they are read as float32."""

    blocks: Sequence[_Block]
    where: Ints  # (N, 2): block, and row in it
    shape: tuple[int, ...]  # (N, ...)

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, rows: Ints) -> Floats:
        values = np.empty((len(rows), *self.shape[1:]), np.float32)
        for index, (block, row) in enumerate(self.where[rows].tolist()):
            np.multiply(self.blocks[block].rows[row], self.blocks[block].scales[row], out=values[index])
        return values

    def all(self) -> Floats:
        """Return all rows, in memory."""
        return self[np.arange(len(self))]


@dataclass(frozen=True, eq=False)
class _Block:
    images: Ints
    rows: Reals  # (n, ...), memory-mapped
    scales: Floats  # (n,)


def kept_rows(table: Table, images: Ints, compute: Compute, *, progress: Progress) -> Rows:
    """Return the rows of images (N,), named by numbers; those that the table lacks are computed and kept.

    Raises SpaceError, RunError.
    """
    blocks, positions = _blocks(table)
    missing = _missing(images, positions)
    if len(missing):
        require_space(table.folder, len(missing) * table.row_bytes, f"the {table.kind} of the images")
        progress.begin(table.kind, len(missing))
        # Whole batches a block: after a kill the rest is computed in the batches of a run that was not killed.
        step = max(1, BLOCK // (table.row_bytes * BATCH)) * BATCH
        batches = compute(missing)
        for first in range(0, len(missing), step):
            _write(table, images[missing[first : first + step]], batches, progress)
        progress.end()
        blocks, positions = _blocks(table)
    if not all(image in positions for image in images.tolist()):
        raise RunError(f"{table.folder}: {table.kind} were removed while they were made. Repeat the command.")
    where = np.array([positions[image] for image in images.tolist()], np.int64).reshape(-1, 2)
    return Rows(blocks, where, (len(images), *table.shape))


def uncomputed(table: Table, images: Ints) -> int:
    """Return how many of the images a table lacks."""
    return len(_missing(images, _blocks(table)[1]))


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


def _missing(images: Ints, positions: Collection[int]) -> Ints:
    """Return the rows of images that have no position in a table, each image once, in order."""
    first = dict(zip(images[::-1].tolist(), range(len(images) - 1, -1, -1), strict=True))
    return np.array([row for image, row in reversed(first.items()) if image not in positions], np.int64)


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


def _blocks(table: Table) -> tuple[list[_Block], dict[int, tuple[int, int]]]:
    """Return the blocks of a table that are complete, and for each image its block and row."""
    blocks = [block for path in table.files if (block := _read(path, table)) is not None]
    positions = {
        image: (number, row) for number, block in enumerate(blocks) for row, image in enumerate(block.images.tolist())
    }
    return blocks, positions


def _read(path: Path, table: Table) -> _Block | None:
    """Return a block, its rows memory-mapped; None where the file is missing or incomplete."""
    try:
        with open(path, "rb") as file:
            images = np.lib.format.read_array(file)
            rows = _mapped(file, path)
            scales = np.lib.format.read_array(file)
    except (OSError, ValueError, EOFError):
        return None
    right = rows.shape == (len(images), *table.shape) and rows.dtype == table.dtype and len(scales) == len(images)
    return _Block(images, rows, scales) if right else None


def _mapped(file: IO[bytes], path: Path) -> npt.NDArray[Any]:
    """Return the array that begins here in a file, memory-mapped, and go on to its end."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    offset = file.tell()
    size = math.prod(shape) * dtype.itemsize
    if os.path.getsize(path) < offset + size:  # a mapped page beyond the end of a file kills the process
        raise EOFError(path)
    file.seek(offset + size)
    return np.memmap(path, dtype, "r", offset, shape)
