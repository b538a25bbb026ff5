"""The index of many shards, made by an executor: its processes start without torch, which an index does not need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.labels.left_out import LeftOut
from assay.labels.readers.shard_index import index_files, index_table, is_small
from assay.labels.readers.shards import distinct_names, expand_listed, index_folder
from assay.messages import printable
from assay.progress import Progress, stage
from assay.scale.jobs import Executor, Function, Job, attempt, map_shards, require_done


@dataclass(frozen=True)
class IndexShard:
    """Writes the index of a shard: names and content hashes of its images, and their labels."""

    column: str | None = None  # of the images in Parquet files

    def __call__(self, job: Job, result: Path) -> None:
        table, metadata = index_table(job.shard.address, self.column)
        table.write_parquet(result, metadata=metadata)


@dataclass(frozen=True)
class IndexedShards:
    """Shards with an index of each, and what of them cannot be used; an id is the prefix of its shard, and the name."""

    jobs: tuple[Job, ...]  # whose results are the indices
    left_out: tuple[LeftOut, ...]
    images: int
    prefixes: tuple[str, ...]  # of each shard, empty where no two images have the same name

    def __len__(self) -> int:
        return len(self.jobs)


def index_shards(
    given: Sequence[str],
    *,
    executor: Executor,
    progress: Progress,
    folder: Path | None = None,
    column: str | None = None,
) -> IndexedShards:
    """Return the shards of patterns, ranges or folders, indexed by the executor where they are not yet.

    `folder` is that of the indices, else the usual one. Names are compared by hashes of 64 bits:
    8 bytes an image. Raises DataError for a shard that cannot be read, and where there is no image.
    """
    shards = index_files(expand_listed(given), folder=folder or index_folder(given[0]), column=column)
    jobs = tuple(Job(shard, file, file) for shard, file in shards)
    if is_small([job.shard for job in jobs if not job.result.exists()]):
        executor = _here
    with stage(progress, f"indexing {len(jobs):,} shards"):
        map_shards(IndexShard(column), jobs, executor=executor, progress=progress, images=count_images)
    hashes, left_out = [], list[LeftOut]()
    names = distinct_names([job.shard for job in jobs])
    for job, shard in zip(jobs, names, strict=True):
        rows = pl.read_parquet(job.index, columns=["name", "fault"], hive_partitioning=False, glob=False)
        good = pl.col("fault").is_null()
        hashes.append(rows.filter(good)["name"].hash().to_numpy())
        bad = rows.filter(~good).rows()
        left_out += [LeftOut(f"{shard}/{name}", fault) for name, fault in bad]
    images = sum(map(len, hashes))
    if not images:
        why = f" The first: {left_out[0].path} ({left_out[0].reason})." if left_out else ""
        raise DataError(f"{printable(given[0])}: its {len(jobs):,} shards hold no image that can be used.{why}")
    unique = len(np.unique(np.concatenate(hashes))) == images
    return IndexedShards(jobs, tuple(left_out), images, tuple("" if unique else f"{shard}/" for shard in names))


def _here(function: Function, jobs: Sequence[Job]) -> Iterator[Job]:
    for job in jobs:
        require_done(attempt(function, job))
        yield job


def count_images(job: Job) -> int:
    """Return how many images of a shard can be used, by its index."""
    usable = pl.scan_parquet(job.index, hive_partitioning=False, glob=False).select(pl.col("fault").is_null().sum())
    return int(usable.collect().item())
