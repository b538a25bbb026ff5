"""Writer of shards: tar files in the layout of WebDataset, or Parquet files in that of Hugging Face `datasets`."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.files import fingerprint, require_space, whole, write_json
from assay.labels.file_kinds import is_image
from assay.labels.readers.datasets import ending_of
from assay.labels.readers.shard_index import ESCAPES, LABELS
from assay.labels.samples import Samples
from assay.labels.shards import LIST, byte_count, parquet_library
from assay.labels.writers.shared import fill_files
from assay.labels.writers.table import label_columns
from assay.messages import printable

Form = Literal["tar", "parquet"]
IMAGE, ORDER = "image", "row"
GROUP = 16 << 20  # bytes of images in a group of rows: what reading one image of a Parquet file costs


@dataclass(frozen=True)
class ShardList:
    """The shards to write: their names, the images of each by row, the labels of all, and what these columns mean."""

    names: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    key: str
    table: pl.DataFrame
    about: str


def parse_bytes(text: str) -> int:
    """Return the bytes of a text such as `256MB` or `1.5 GiB`. Raises DataError for anything else."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    power = 0 if match is None else " kmgt".index(match[2].lower() or " ")
    count = 0 if match is None else int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if count < 1:
        raise DataError(f"{text!r} is no size of a file. Give bytes, such as 256MB or 1GB.")
    return count


def list_shards(samples: Samples, *, size: int, form: Form) -> ShardList:
    """Return which images each shard holds, at most `size` bytes of them, and one at least.

    Images are in the order of a hash of their ids, so that a shard is a random part of the data.
    """
    ids, files = samples.ids, samples.paths
    order = sorted(range(len(ids)), key=lambda row: hashlib.sha256(ids[row].encode()).digest())
    shards = fill_files(files, order, size=size)
    names = tuple(f"{number:05d}-of-{len(shards):05d}.{form}" for number in range(len(shards)))
    columns, meanings = label_columns(samples, taken={IMAGE, ORDER})
    labels = pl.DataFrame(columns)
    key = fingerprint(samples.fingerprint(), labels.write_json(), json.dumps(meanings), str(size), form)
    table = pl.DataFrame([*columns, pl.Series(ORDER, np.arange(len(samples)))])
    about = json.dumps(meanings | {"order": ORDER}, ensure_ascii=True)
    return ShardList(names, tuple(map(tuple, shards)), key, table, about)


def write_shards(samples: Samples, shards: ShardList, folder: Path, *, wrote: Callable[[int], None]) -> int:
    """Write those of the shards that are not there yet, each whole or not at all; return how many.

    The same images give the same bytes. `wrote` is called with the number of images of each shard. Raises DataError
    for a folder that holds something else, SpaceError.
    """
    listed = folder / LIST
    if folder.is_file():
        raise DataError(f"{printable(folder)}: is a file. Name a new folder with --out.")
    if listed.exists():
        if json.loads(listed.read_text(encoding="utf-8")).get("key") != shards.key:
            raise DataError(
                f"{printable(folder)}: holds shards of other images or labels. Name a new folder with --out."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise DataError(f"{printable(folder)}: exists already, and holds other files. Name a new folder with --out.")
    files = samples.paths
    missing = {number for number, name in enumerate(shards.names) if not (folder / name).exists()}
    needed = sum(byte_count(files[row]) for number in missing for row in shards.rows[number])
    require_space(folder, needed, f"writing {len(missing):,} shards")
    listed_shards = [{"name": name, "images": len(rows)} for name, rows in zip(shards.names, shards.rows, strict=True)]
    write_json(listed, {"key": shards.key, "shards": listed_shards})
    for number, (name, rows) in enumerate(zip(shards.names, shards.rows, strict=True)):
        if number in missing:
            write = _write_tar if name.endswith(".tar") else _write_parquet
            with whole(folder / name) as beside:
                write(beside, samples.take(rows), shards.table[list(rows)], shards.about)
        wrote(len(rows))
    return len(missing)


def _write_tar(path: Path, samples: Samples, table: pl.DataFrame, about: str) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={LABELS: about}) as tar:
        for id_, file, cells in zip(samples.ids, samples.paths, table.iter_rows(named=True), strict=True):
            content = file.read_bytes()
            folder, _, last = id_.rpartition("/")
            stem, dot, ending = last.rpartition(".") if is_image(id_) else (last, ".", ending_of(content))
            key = f"{folder}/{_escaped(stem)}" if folder else _escaped(stem)
            _add(tar, f"{key}{dot}{ending}", content)
            known = {name: cell for name, cell in cells.items() if cell is not None}
            _add(tar, f"{key}.json", json.dumps(known, ensure_ascii=False).encode())


def _escaped(stem: str) -> str:
    """Return a name without dots, at the first of which a key ends."""
    return "".join({letter: escape for escape, letter in ESCAPES.items()}.get(letter, letter) for letter in stem)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # of nobody, at time 0: the same bytes wherever it is written
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _write_parquet(path: Path, samples: Samples, table: pl.DataFrame, about: str) -> None:
    import pyarrow as pa

    cells = table.to_arrow()
    features = {IMAGE: {"_type": "Image"}} | {one.name: _feature(one.type) for one in cells.schema}
    image = pa.field(IMAGE, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    described = {"huggingface": json.dumps({"info": {"features": features}}), LABELS: about}
    schema = pa.schema([image, *cells.schema]).with_metadata(described)
    with parquet_library().ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for rows in _groups(samples):
            part = samples.take(rows)
            images = [{"bytes": file.read_bytes(), "path": id_} for id_, file in zip(part.ids, part.paths, strict=True)]
            columns = [pa.array(images, image.type), *cells.take(pa.array(rows)).columns]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _groups(samples: Samples) -> Sequence[Sequence[int]]:
    """Return the rows of each group, in order."""
    sizes = np.cumsum([byte_count(file) for file in samples.paths])
    return [np.flatnonzero(sizes // GROUP == number).tolist() for number in np.unique(sizes // GROUP)]


def _feature(kind: Any) -> Mapping[str, str]:
    """Return a column of text or numbers as `datasets` describes it."""
    name = str(kind)
    return {"dtype": "string" if "string" in name else {"double": "float64"}.get(name, name), "_type": "Value"}
