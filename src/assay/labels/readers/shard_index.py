"""The index of a shard: its images, where their bytes are, their hashes and the cells of their labels. Made once.

Several shards are indexed at a time by processes of their own: `python -m assay.labels.readers.shard_index`.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import polars as pl

from assay.errors import AssayError, DataError
from assay.files import fingerprint, whole
from assay.labels.file_kinds import HEAD, is_image, kind_of
from assay.labels.image_files import is_unicode
from assay.labels.readers.datasets import ending_of, features_of, head_of, named_classes, type_of
from assay.labels.readers.exports import Json
from assay.labels.readers.label_cells import HeadColumns
from assay.labels.readers.tar_entries import entries
from assay.labels.samples import from_hex
from assay.labels.shards import (
    PARQUET,
    TAR,
    Shard,
    image_bytes,
    is_address,
    open_shard,
    parquet_library,
    reaching,
    state_of,
)
from assay.messages import printable, quoted
from assay.progress import cores

VERSION = 1  # raise when the same shard gives another index
LABELS = "ASSAY.labels"
"""The key under which a shard says how its labels are read: of a tar's global header, of a Parquet file's metadata."""
SMALL = 64 << 20  # bytes of all shards below which starting processes costs more than it saves

ESCAPES = {"%2E": ".", "%25": "%"}
"""In names of images within a tar: the key of an image ends at the first dot."""
_ESCAPED = re.compile("|".join(ESCAPES))

_TO_JSON = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` makes an encoder each time

SCHEMA = {"name": pl.String, "offset": pl.Int64, "size": pl.Int64, "hash": pl.String, "fault": pl.String,
          "labels": pl.String}  # fmt: skip
Row = tuple[str, int, int, str | None, str | None, str | None]
"""An image of a shard in the order of SCHEMA; `labels` is a JSON object of cells by column."""


@dataclass(frozen=True)
class Labels:
    """How the cells of labels are read: heads by column, and the columns of split, group and weight."""

    heads: Mapping[str, HeadColumns] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    weight: str | None = None
    order: str | None = None  # of numbers by which images are sorted: shards hold them shuffled

    @staticmethod
    def of(data: Mapping[str, Any]) -> Labels:
        """Return those that `write_shards` wrote into a shard."""
        heads = {name: HeadColumns.model_validate(head) for name, head in data.get("heads", {}).items()}
        split = data.get("split")
        return Labels(
            heads, split["column"] if split else None, data.get("group"), data.get("weight"), data.get("order")
        )


@dataclass(frozen=True)
class Index:
    """The images of a shard, and how their labels are read."""

    shard: Shard
    rows: pl.DataFrame
    labels: Labels


def indexed(addresses: Sequence[str], *, folder: Path, column: str | None = None) -> list[Index]:
    """Return the index of each shard, from `folder` where it is kept, else made and kept there.

    Raises DataError for a shard that cannot be read.
    """
    shards = index_files(addresses, folder=folder, column=column)
    jobs = [(one.address, column, str(file)) for one, file in shards if not file.exists()]
    if is_small([one for one, file in shards if not file.exists()]) or len(jobs) == 1:
        for job in jobs:
            write_index(*job)
    else:
        count = min(len(jobs), cores())
        with ThreadPoolExecutor(count) as pool:
            for _ in pool.map(_in_process, (jobs[number::count] for number in range(count))):
                pass
    return [read_index(one, file) for one, file in shards]


def index_files(addresses: Sequence[str], *, folder: Path, column: str | None = None) -> list[tuple[Shard, Path]]:
    """Return each shard in its present state, and the file in `folder` that its index is kept in, made or not."""
    with ThreadPoolExecutor(8) as pool:  # elsewhere a question takes long
        states = list(pool.map(state_of, addresses))
    shards = [Shard(one, state) for one, state in zip(addresses, states, strict=True)]
    return [(one, _file_of(folder, one.address, one.state, column)) for one in shards]


def is_small(shards: Sequence[Shard]) -> bool:
    """Return whether these are indexed here, one after another; those in this process's memory always are."""
    if any(one.address.startswith("memory:") for one in shards):
        return True
    return sum(int(one.state.partition(" ")[0]) if one.state[:1].isdigit() else SMALL for one in shards) < SMALL


def _file_of(folder: Path, text: str, state: str, column: str | None) -> Path:
    stem = re.sub(r"[^\w.-]+", "-", PurePosixPath(text).name)[:80]
    return folder / f"{stem}-{fingerprint(str(VERSION), text, state, column or '')}.parquet"


def _in_process(jobs: Sequence[tuple[str, str | None, str]]) -> None:
    command = [sys.executable, "-P", "-m", "assay.labels.readers.shard_index"]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise DataError(json.loads(done.stdout))
    if done.returncode:
        raise RuntimeError(f"indexing shards failed: {done.stderr}")


def write_index(text: str, column: str | None, file: str) -> None:
    """Index a shard and write what is known of it, whole or not at all. Raises DataError."""
    table, metadata = index_table(text, column)
    with whole(Path(file)) as beside:
        table.write_parquet(beside, metadata=metadata)


def index_table(text: str, column: str | None) -> tuple[pl.DataFrame, dict[str, str]]:
    """Return what is known of a shard, as the rows and the metadata of a Parquet file. Raises DataError."""
    with open_shard(text) as content, reaching(text) if is_address(text) else nullcontext():
        rows, chosen, labels = (_of_parquet if text.endswith(PARQUET) else _of_tar)(text, content, column)
        table = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return table, {"assay": json.dumps({"column": chosen, "labels": labels})}


def read_index(shard: Shard, file: Path) -> Index:
    """Return the index of a shard from the file that `write_index` wrote."""
    about = json.loads(pl.read_parquet_metadata(file)["assay"])
    table = pl.read_parquet(file, hive_partitioning=False, glob=False)
    table = table.with_columns(from_hex(table["hash"]))
    return Index(replace(shard, column=about["column"]), table, Labels.of(about["labels"]))


def _row(name: str, offset: int, content: bytes, labels: str | None = None) -> Row:
    """Return an image of a shard, with what is wrong with it by its name and its first bytes."""
    kind = kind_of(content[:HEAD], name)
    fault = _fault_of_name(name) or (kind.fault if kind is not None else None)
    return name, offset, len(content), hashlib.sha256(content).hexdigest(), fault, labels


def _fault_of_name(name: str) -> str | None:
    if not is_unicode(name):
        return "its name is not valid UTF-8: rename it"
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return "its name leads out of the shard: rename it"
    return None


# Tar: a sample is what has one key, `key.jpg`, `key.json` or `key.cls` (the layout of WebDataset).


def _of_tar(text: str, content: BinaryIO, column: str | None) -> tuple[list[Row], str, Mapping[str, Any]]:
    head = content.read(HEAD)
    kind = kind_of(head)
    if len(head) < 512 or (head[257:262] != b"ustar" and any(head[:512])):
        what = f"is {kind.name}" if kind is not None else "is no tar file"
        packed = " Unpack it with gunzip or unzstd." if text.endswith(TAR) and kind and "archive" in kind.name else ""
        raise DataError(f"{printable(text)}: {what}, and no shard.{packed or ' Download it again.'}")
    content.seek(0)
    try:
        with tarfile.open(fileobj=content, mode="r:") as tar:
            labels = json.loads(tar.pax_headers.get(LABELS, "{}"))
            return list(_samples(text, tar, content)), "", labels
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{printable(text)}: is cut off or damaged ({error}). Copy or download it again.") from error


def _samples(text: str, tar: tarfile.TarFile, content: BinaryIO) -> Iterator[Row]:
    images: dict[str, Row] = {}
    cells: dict[str, dict[str, Any]] = {}
    others: list[Row] = []
    for full_name, kind, offset, size in entries(content, tar):
        name = full_name.removeprefix("./")
        folder, _, last = name.rpartition("/")
        if kind == tarfile.DIRTYPE or last.startswith("."):
            continue
        if kind not in tarfile.REGULAR_TYPES:
            others.append((name, 0, 0, None, "a link or a device, which is not followed: put the file itself in", None))
            continue
        stem, _, ending = last.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if is_image(name):
            content.seek(offset)
            name = _ESCAPED.sub(lambda match: ESCAPES[match[0]], name) if "%" in name else name
            row = _row(name, offset, content.read(size))
            if key in images:
                others.append((*row[:4], "its key has another image before it: one is read", None))
            else:
                images[key] = row
        elif ending in ("json", "cls"):
            content.seek(offset)
            cells.setdefault(key, {}).update(_cells(text, name, ending, content.read(size)))
    content.seek(tar.offset)
    if content.read(512).strip(b"\0"):
        raise tarfile.ReadError(f"what follows byte {tar.offset:,} is no header")
    for key, row in images.items():
        yield (*row[:5], _TO_JSON(cells[key]) if key in cells else None)
    yield from others


def _cells(text: str, name: str, ending: str, content: bytes) -> Mapping[str, Any]:
    """Return the cells of labels that a file beside an image holds."""
    try:
        if ending == "cls":
            return {"cls": content.decode().strip()}
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{printable(text)}, {printable(name)}: is no {ending} file ({error}). Mend it.") from error
    if not isinstance(value, dict):
        raise DataError(f"{printable(text)}, {printable(name)}: is no JSON object of columns and cells. Mend it.")
    return value


# Parquet: a column of images, bytes alone or with a path (the layout of Hugging Face).


def _of_parquet(text: str, content: BinaryIO, column: str | None) -> tuple[list[Row], str, Mapping[str, Any]]:
    import pyarrow as pa

    try:
        file = parquet_library().ParquetFile(content)
    except (pa.ArrowException, OSError) as error:
        content.seek(0)
        kind = kind_of(content.read(HEAD))
        what = f"is {kind.name}, and no shard" if kind and "Parquet" not in kind.name else f"cannot be read ({error})"
        raise DataError(f"{printable(text)}: {what}. Copy or download it again.") from error
    about = file.metadata.metadata or {}
    described = about.get(b"huggingface")
    features = features_of(Json(json.loads(described), printable(text))["info"]["features"]) if described else {}
    chosen = _image_column(text, file.schema_arrow, features, column)
    heads = {name: head.model_dump(mode="json", exclude_defaults=True) for name, kind in features.items()
             if (head := head_of(name, kind)) is not None}  # fmt: skip
    labels = json.loads(about[LABELS.encode()]) if LABELS.encode() in about else {"heads": heads}
    try:
        return list(_cells_of_parquet(file, chosen, features)), chosen, labels
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{printable(text)}: is damaged ({error}). Copy or download it again.") from error


def _image_column(text: str, schema: Any, features: Mapping[str, Json], column: str | None) -> str:
    """Return the column of images: the given one, the one described as such, or the only one that may be."""
    from pyarrow import types

    held = [one.name for one in schema if types.is_binary(one.type) or types.is_large_binary(one.type)
            or (types.is_struct(one.type) and one.type.get_field_index("bytes") >= 0)]  # fmt: skip
    named = [name for name in held if name in features and type_of(features[name]) == "Image"]
    chosen = [name for name in held if name == column] if column is not None else named or held
    if len(chosen) == 1 or (named and column is None):
        return str(chosen[0])
    wanted = f"no column {column!r} of images" if column is not None else "no column of images"
    several = f"several columns of images ({quoted(chosen)})" if len(chosen) > 1 else wanted
    raise DataError(
        f"{printable(text)}: has {several}. Its columns are {quoted(schema.names, 20)}. Name the one with `image` "
        "under `data`; its cells are the bytes of image files."
    )


def _cells_of_parquet(file: Any, column: str, features: Mapping[str, Json]) -> Iterator[Row]:
    kept = [
        one.name for one in file.schema_arrow if one.name != column and (one.name in features or _is_label(one.type))
    ]
    names, first = _paths_of_parquet(file, column), 0
    for number in range(file.metadata.num_row_groups):
        group = file.read_row_group(number, columns=[column, *kept])
        frame = pl.DataFrame(pl.from_arrow(group.select(kept)))
        records = frame.select(
            named_classes(frame[name], features[name]) if name in features else frame[name] for name in kept
        ).to_dicts() or [{}] * len(group)
        for row, (content, record) in enumerate(zip(image_bytes(group[column]), records, strict=True), first):
            data = content.as_py()
            name = names[row] or f"{row:07d}.{ending_of(data or b'')}"
            if data is None:
                yield name, row, 0, None, "its bytes are not in the file: write them there", None
            else:
                yield _row(name, row, data, json.dumps(record, ensure_ascii=False, default=str))
        first += len(group)


def _is_label(kind: Any) -> bool:
    """Return whether a column of this type may hold labels: names, numbers, or lists of names."""
    from pyarrow import types

    inside = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    return not (types.is_nested(inside) or types.is_binary(inside) or types.is_large_binary(inside))


def _paths_of_parquet(file: Any, column: str) -> list[str | None]:
    """Return the path of each image where these are distinct and lead nowhere; else None."""
    from pyarrow import types

    kind = file.schema_arrow.field(column).type
    if types.is_struct(kind) and kind.get_field_index("path") >= 0:
        paths = file.read(columns=[f"{column}.path"])[column].combine_chunks().field("path").to_pylist()
        if len(set(paths)) == len(paths) and all(path and _fault_of_name(path) is None for path in paths):
            return list(paths)
    return [None] * file.metadata.num_rows


def main() -> None:
    """Index the shards that stdin lists; a DataError is printed, and the exit code is 2."""
    try:
        for job in json.load(sys.stdin):
            write_index(*job)
    except AssayError as error:
        print(json.dumps(str(error)))  # noqa: T201  (for the process that started this one)
        sys.exit(2)


if __name__ == "__main__":
    main()
