"""Reader of shards: their images, and the labels that lie in them or in a table beside them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from assay.errors import DataError
from assay.labels.build import RawLabels
from assay.labels.left_out import LeftOut
from assay.labels.readers.columns import Columns, name_column
from assay.labels.readers.folder import split_of
from assay.labels.readers.shard_index import Index, indexed
from assay.labels.readers.table import raw_labels
from assay.labels.readers.table_files import Rows, read_rows, rows_of_frame, texts
from assay.labels.samples import MEMBER, MEMBER_TYPE, Names, in_chunks
from assay.labels.shards import LIST, ImageFile, Member, Shard, expand, is_address
from assay.labels.spelling import Spelling
from assay.messages import printable, quoted

IMAGE = "image of the shard"
"""The column of `Rows` that names the images; no shard has one of that name."""

KEPT = Path(".assay") / "shards"
"""Where the index of shards is kept, below their folder, or below the working folder where they are elsewhere."""


def find_in_shards(
    given: Sequence[str],
    *,
    index: Path | None,
    columns: Columns,
    table: Path | None = None,
    spelling: Spelling | None = None,
) -> RawLabels:
    """Return the images of shards with the labels in them, or those of a table that names them.

    `index` is the folder that what is known of each shard is kept in; None: in .assay/ beside them.
    Raises DataError for a shard that cannot be read, where there is no image, and as a table does.
    """
    source, root = Path(given[0]), _folder_of(given[0])
    shards = indexed(
        expand_listed(given), folder=index or index_folder(given[0]), column=columns.image if table is None else None
    )
    images, left_out = _images(source, shards)
    if table is not None:
        rows = read_rows(table)
        name, _ = name_column(rows, columns.image)
        rows = texts(rows, [name])
        columns = replace(columns, image=name)
    else:
        rows, images = _rows(source, images, shards)
        labels = shards[0].labels
        columns = Columns(
            IMAGE,
            columns.heads or labels.heads,
            columns.split or labels.split,
            columns.group or labels.group,
            columns.weight or labels.weight,
            columns.annotator,
            columns.splits,
        )

    def locate(rows: Rows, cells: Sequence[str], _: Path) -> tuple[Rows, tuple[LeftOut, ...]]:
        if table is None:  # the rows are the images
            return replace(rows, frame=rows.frame.with_columns(images["id"])), ()
        return _located(rows, cells, images["id"].to_list())

    raw = raw_labels(rows, root=root, columns=columns, spelling=spelling, locate=locate)
    members = images.select("id", "hash", MEMBER, path="name")
    if images["id"].equals(images["name"]):
        members = members.drop("path")  # that of the labels is the id: one column, not two alike
    cells = raw.table.drop("path") if "path" in members.columns else raw.table
    if cells["id"].equals(members["id"]):
        joined = cells.hstack(members.drop("id"))
    else:
        joined = cells.join(members, on="id", how="left", maintain_order="left")
    return replace(raw, table=joined, left_out=(*left_out, *raw.left_out), shards=tuple(one.shard for one in shards))


def images_in_shards(given: str) -> tuple[list[tuple[str, ImageFile]], tuple[LeftOut, ...]]:
    """Return the usable images of shards by id, in order, and the others. Raises DataError as `find_in_shards` does."""
    shards = indexed(expand_listed([given]), folder=index_folder(given))
    images, left_out = _images(Path(given), shards)
    rows = images.select("id", "shard", "name", "offset", "size").rows()
    return [(id_, Member(shards[shard].shard, name, offset, size)) for id_, shard, name, offset, size in rows], left_out


def expand_listed(given: Sequence[str]) -> list[str]:
    """Return the addresses of all shards, as `expand` does.

    Raises DataError where one is missing that `assay shard` wrote, or was to write, into a folder.
    """
    for folder in filter(os.path.isdir, given):
        with suppress(OSError, ValueError, KeyError, TypeError):  # no such list, or one of another program
            listed = [one["name"] for one in json.loads(Path(folder, LIST).read_text(encoding="utf-8"))["shards"]]
            missing, count = [name for name in listed if not Path(folder, name).exists()], len(listed)
            if missing:
                raise DataError(
                    f"{printable(folder)}: {len(missing):,} of the {count:,} shards that {LIST} lists are missing, "
                    f"such as {missing[0]!r}. Repeat the `assay shard` that writes them, or copy them again; a pattern "
                    "in quotes, such as 'shards/*.tar', names those that are there."
                )
    return expand(given)


def index_folder(given: str) -> Path:
    """Return the folder that what is known of shards is kept in."""
    return _folder_of(given) / KEPT


def _folder_of(text: str) -> Path:
    """Return the folder of shards; the working folder for those elsewhere."""
    return Path.cwd() if is_address(text) else Path(text) if os.path.isdir(text) else Path(text).parent


def distinct_names(shards: Sequence[Shard]) -> list[str]:
    """Return the name of each shard; where two have the same, as much of each address as tells them apart."""
    names = [one.name for one in shards]
    if len(set(names)) == len(names):
        return names
    folders = [one.address.split("/") for one in shards]
    same = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False)))
    return ["/".join(parts[same:]) for parts in folders]


def _images(source: Path, shards: Sequence[Index]) -> tuple[pl.DataFrame, tuple[LeftOut, ...]]:
    """Return the usable images of all shards, with ids and members, and the others.

    An id is the name in the shard; where two shards have the same, all begin with their shard: see `distinct_names`.
    """
    names = distinct_names([one.shard for one in shards])
    parts = [
        one.rows.with_columns(shard=pl.lit(number, pl.UInt32), of=pl.lit(name))
        for number, (one, name) in enumerate(zip(shards, names, strict=True))
    ]
    rows = pl.concat(parts)
    bad = rows.filter(pl.col("fault").is_not_null())
    left_out = tuple(LeftOut(f"{of}/{name}", fault) for of, name, fault in bad.select("of", "name", "fault").rows())
    good = rows.filter(pl.col("fault").is_null())
    if good.is_empty():
        why = f" The first: {left_out[0].path} ({left_out[0].reason})." if left_out else ""
        raise DataError(f"{printable(source)}: its {len(shards):,} shards hold no image that can be used.{why}")
    unique = good["name"].n_unique() == len(good)
    id_ = pl.col("name") if unique else pl.concat_str("of", pl.lit("/"), "name")
    member = pl.struct("shard", "offset", "size").cast(MEMBER_TYPE).alias(MEMBER)
    return good.with_columns(id_.alias("id"), member), left_out


def _rows(source: Path, images: pl.DataFrame, shards: Sequence[Index]) -> tuple[Rows, pl.DataFrame]:
    """Return the cells of labels within the shards as a table, and the images in its order."""
    frame = _cells(images["labels"])
    if "cls" in frame.columns and "label" not in frame.columns:  # WebDataset's ending of a file that holds the class
        frame = frame.rename({"cls": "label"})
    sides = [split_of(re.sub(r"[-_.\d]+(of[-_.\d]+)?$", "", PurePosixPath(one.shard.name).stem)) for one in shards]
    if len({side for side in sides if side}) > 1 and "split" not in frame.columns:
        frame = frame.with_columns(split=pl.Series(sides, dtype=pl.String).gather(images["shard"].cast(pl.Int64)))
    if shards[0].labels.order in frame.columns:
        order = frame[shards[0].labels.order].arg_sort()
        frame, images = frame[order].drop(shards[0].labels.order), images[order]
    rows = rows_of_frame(source, frame.with_columns(images["id"].alias(IMAGE)))
    return replace(rows, lines=Names(images["id"]), unit="image"), images


def _cells(texts: pl.Series) -> pl.DataFrame:
    """Return JSON objects of columns and cells as a table: some at a time, unless their types differ."""
    slices = list(in_chunks(texts))
    parts = [_records(some.to_list()) for some in slices]
    kinds: dict[str, set[pl.DataType]] = {}
    for part in parts:
        for name, kind in part.schema.items():
            kinds.setdefault(name, set()).update({kind} - {pl.Null()})
    if not kinds or any(len(kind) > 1 for kind in kinds.values()):
        return _records(texts.to_list())
    blank = next(iter(kinds))  # a table without columns has no rows
    filled = (
        part if part.width else pl.DataFrame({blank: [None] * len(some)})
        for part, some in zip(parts, slices, strict=True)
    )
    return pl.concat(filled, how="diagonal_relaxed")


def _records(texts: Sequence[str | None]) -> pl.DataFrame:
    records = [json.loads(text) if text else {} for text in texts]
    names = dict.fromkeys(name for record in records for name in record)
    return pl.DataFrame([_column(name, [record.get(name) for record in records]) for name in names])


def _column(name: str, values: list[Any]) -> pl.Series:
    try:
        return pl.Series(name, values)
    except (TypeError, pl.exceptions.PolarsError):  # cells of several types: as text
        cells = [one if one is None or isinstance(one, str) else json.dumps(one) for one in values]
        return pl.Series(name, cells, dtype=pl.String)


def _located(rows: Rows, cells: Sequence[str], ids: Sequence[str]) -> tuple[Rows, tuple[LeftOut, ...]]:
    """Return the rows that name an image of a shard: by its id, or by as much of it as is that of one image alone."""
    by_name = {id_: id_ for id_ in ids}
    if any(cell not in by_name for cell in cells):
        shorter = [(short, id_) for id_ in ids for short in _shorter(id_)]
        counts = Counter(short for short, _ in shorter)
        by_name = {short: id_ for short, id_ in shorter if counts[short] == 1} | by_name
    wanted = [by_name.get(cell) for cell in cells]
    kept = [row for row, id_ in enumerate(wanted) if id_ is not None]
    if not kept:
        raise DataError(
            f"{printable(rows.source)}: none of its {len(cells):,} images is in the shards, such as {cells[0]!r}. "
            f"Images there are called {quoted(ids[:3])}."
        )
    frame = rows.frame.with_columns(pl.Series("id", wanted, dtype=pl.String))[kept]
    gone = (
        LeftOut(cell, "no such image in the shards") for cell, id_ in zip(cells, wanted, strict=True) if id_ is None
    )
    return replace(rows, frame=frame, lines=[rows.lines[row] for row in kept]), tuple(gone)


def _shorter(id_: str) -> set[str]:
    """Return an id without its ending, without its folders, and without both."""
    path = PurePosixPath(id_)
    return {str(path.with_suffix("")), path.name, path.stem} - {id_}
