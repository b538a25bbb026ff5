"""Samples: the table of images with their labels, splits and weights. Immutable: a repair returns a new table."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import polars as pl

from assay.arrays import Bools, Floats, Ints
from assay.errors import RunError
from assay.files import fingerprint_of, whole
from assay.labels.left_out import LeftOut
from assay.labels.shards import ImageFile, Member, Shard
from assay.labels.space import Codes, Head, LabelSpace

SPLIT_TYPE = pl.Enum(["test", "train", "val"])  # by name, as texts are ranked
ORIGIN_TYPE = pl.Enum(["corrected", "dropped", "given", "pseudo", "synthetic"])

BASE_COLUMNS: Mapping[str, pl.DataType] = {
    "id": pl.String(), "path": pl.String(), "split": SPLIT_TYPE, "group": pl.Categorical(), "hash": pl.Binary()
}  # fmt: skip
"""The columns every table of samples begins with; those of the heads follow. A text takes 16 bytes, a code 1 to 4."""

MEMBER = "member"
MEMBER_TYPE = pl.Struct({"shard": pl.UInt32, "offset": pl.Int64, "size": pl.Int64})
"""The column that says where an image is within a shard; null for one that is a file."""

CHUNK = 1 << 16  # names that are made at a time


@dataclass(frozen=True, eq=False)
class Samples:
    """One row an image.

    `table` holds id (unique, the path as given), path (relative to `root`), split (train, val, test, or null
    before splitting and where it left a part), group and hash (SHA-256 of the content, 32 bytes), and for each head h
    "label:h" (a class name or null; for a multi-label head the list of tags present, or null), "unknown:h" (multi-label
    heads only: classes not known though others are), "weight:h" (float32) and "origin:h" (given, pseudo, corrected,
    synthetic, dropped). Columns of few distinct names are categories whatever they are given as.
    Of images in shards there is a column more, `member`: the number of the shard in `shards`, offset and size.
    """

    table: pl.DataFrame
    space: LabelSpace
    root: Path
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    shards: tuple[Shard, ...] = ()

    def __post_init__(self) -> None:
        kinds = {"split": SPLIT_TYPE, "group": pl.Categorical()}
        for head in self.space:
            kinds[f"origin:{head.name}"] = ORIGIN_TYPE
            if head.multiclass and head.classes:
                kinds[f"label:{head.name}"] = _enum(head.classes)
        schema = self.table.schema
        others = [name for name, kind in kinds.items() if name in schema and schema[name] != kind]
        if others:
            columns = (self.table[name].cast(pl.String).cast(kinds[name]) for name in others)
            object.__setattr__(self, "table", self.table.with_columns(columns))

    def __len__(self) -> int:
        return self.table.height

    @property
    def ids(self) -> list[str]:
        return self.table["id"].to_list()

    @property
    def names(self) -> Names:
        """The ids, each made when it is asked for: a list of a million takes 70 MB."""
        return Names(self.table["id"])

    def ids_of(self, rows: Ints | Sequence[int]) -> list[str]:
        """Return the ids of these rows, in order: `ids` makes a list of all each time."""
        named: list[str] = self.table["id"].gather(np.asarray(rows, np.int64)).to_list()
        return named

    def rows_of(self, ids: Sequence[str]) -> Ints:
        """Return the rows of some images, in order, without an index of all. Raises KeyError for an unknown one."""
        rows = self.table["id"].is_in(ids).arg_true().to_numpy()
        at = dict(zip(self.ids_of(rows), rows.tolist(), strict=True))
        return np.array([at[name] for name in ids], np.int64)

    @property
    def paths(self) -> Sequence[ImageFile]:
        """Where each image is, in order: its absolute path, or its shard and its bytes in it."""
        if MEMBER not in self.table.columns:
            return [self.root / path for path in self.table["path"].to_list()]
        within = self.table[MEMBER].struct.unnest()
        shard = within["shard"].fill_null(len(self.shards)).to_numpy()
        return _Members(self.table["path"], shard, within["offset"], within["size"], self.shards, self.root)

    @property
    def hash_names(self) -> Names:
        """The hashes in hexadecimal, each made when it is asked for."""
        return Names(self.table["hash"])

    @property
    def hashes(self) -> list[str | None]:
        """SHA-256 of each image's bytes in hexadecimal; null where it was not read."""
        return _texts(self.table["hash"])

    def part(self, split: str) -> Samples:
        """Return the images of one split, order kept."""
        return replace(self, table=self.table.filter(pl.col("split") == split))

    def take(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Samples:
        """Return the images at these positions, in this order."""
        return replace(self, table=self.table[np.asarray(rows, dtype=np.int64)])

    def with_ids(self, ids: Collection[str]) -> Samples:
        """Return those images of these ids that there are, order kept."""
        return replace(self, table=self.table.filter(pl.col("id").is_in(list(ids))))

    def codes(self) -> list[Codes]:
        """Return the codes of each head; -1 is unknown."""
        return [_codes(self.table, head) for head in self.space]

    def weights(self) -> Floats:
        """Return the weights (N, H)."""
        columns = [self.table[f"weight:{head.name}"].to_numpy() for head in self.space]
        return np.stack(columns, axis=1).astype(np.float32) if columns else np.ones((len(self), 0), np.float32)

    def labelled(self) -> Bools:
        """Return which images (N,) have a known label under any head."""
        known = [head.known(codes) for head, codes in zip(self.space, self.codes(), strict=True)]
        return np.any(known, axis=0) if known else np.zeros(len(self), dtype=np.bool_)

    def counts(self, head: Head) -> Ints:
        """Return how many images have each class, (K,)."""
        return head.counts(_codes(self.table, head))

    def fingerprint(self) -> str:
        """Return a hash of ids, contents, labels, weights, splits and groups, the same in every process."""
        columns = ["id", "split", "group", "hash"]
        for head in self.space:
            columns += _head_columns(head)
        cells: Iterator[str | bytes | bytearray] = (
            _json_text(self.table[column]) for column in columns if not column.startswith("weight:")
        )
        return fingerprint_of(chain([json.dumps(self.space.to_json())], cells, [self.weights().tobytes()]))

    def write(self, path: Path) -> None:
        """Write table, space, root and notes as one Parquet file."""
        about = {
            "space": self.space.to_json(),
            "root": str(self.root),
            "left_out": [[left.path, left.reason, left.label] for left in self.left_out],
            "notes": list(self.notes),
        }
        if self.shards:
            about["shards"] = [astuple(shard) for shard in self.shards]
        with whole(path) as beside:
            self.table.write_parquet(beside, metadata={"assay": json.dumps(about)})

    @staticmethod
    def read(path: Path) -> Samples:
        """Read what `write` wrote.

        Raises RunError where the file is missing or is no table of samples.
        """
        try:
            table = pl.read_parquet(path, hive_partitioning=False, glob=False)
            about = json.loads(pl.read_parquet_metadata(path)["assay"])
        except (OSError, KeyError, ValueError, pl.exceptions.PolarsError) as error:
            raise RunError(
                f"{path}: is no table of samples that can be read ({error}). Train anew with --run."
            ) from error
        left_out = tuple(LeftOut(*left) for left in about["left_out"])
        space = LabelSpace.from_json(about["space"])
        shards = tuple(Shard(*shard) for shard in about.get("shards", ()))
        table = table.with_columns(from_hex(table["hash"]))
        return Samples(table, space, Path(about["root"]), left_out, tuple(about["notes"]), shards)


@cache
def _enum(classes: tuple[str, ...]) -> pl.Enum:
    return pl.Enum(classes)


def from_hex(hashes: pl.Series) -> pl.Series:
    """Return hashes as bytes: former versions kept them as hexadecimal text, which takes twice as much."""
    return hashes.cast(pl.String).str.decode("hex") if hashes.dtype != pl.Binary else hashes


def _texts(column: pl.Series) -> list[Any]:
    """Return the cells of a column, hashes in hexadecimal."""
    return (column.bin.encode("hex") if column.dtype == pl.Binary else column).to_list()


def in_chunks(column: pl.Series) -> Iterator[pl.Series]:
    """Yield a column so many cells at a time: as Python objects all of them take several times as much memory."""
    return (column.slice(start, CHUNK) for start in range(0, len(column), CHUNK))


class Names(Sequence[str]):
    """A column of names, or of hashes in hexadecimal, that reads as a list of them, and takes no memory of its own."""

    def __init__(self, column: pl.Series) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(map(_texts, in_chunks(self.column)))

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return _texts(self.column[row])
        name: str | bytes = self.column[int(row)]
        return name.hex() if isinstance(name, bytes) else name


class RowIndex(Mapping[str, int]):
    """The row of each of so many different names: 12 bytes an image, where a dict takes 200.

    Names are looked up by their hash among those of all, sorted, and compared.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        hashes = np.fromiter(map(hash, names), np.int64, len(names))
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> int:
        first, last = (np.searchsorted(self._hashes, hash(name), side) for side in ("left", "right"))
        for row in self._order[first:last].tolist():
            if self.names[row] == name:
                return int(row)
        raise KeyError(name)

    def rows_of(self, names: Sequence[str]) -> Ints:
        """Return the row of each name, in order. Raises KeyError for one that is not among them."""
        if not len(self):
            return np.array([self[name] for name in names], np.int64)
        rows = np.empty(len(names), np.int64)
        for start in range(0, len(names), CHUNK):
            some = list(names[start : start + CHUNK])
            at = np.searchsorted(self._hashes, np.fromiter(map(hash, some), np.int64, len(some)))
            likely = self._order[np.minimum(at, len(self) - 1)].tolist()
            rows[start : start + CHUNK] = [
                row if self.names[row] == name else self[name] for row, name in zip(likely, some, strict=True)
            ]
        return rows


@dataclass(frozen=True, eq=False)
class _Members(Sequence[ImageFile]):
    """Images in shards, each made when it is asked for: a million of them would take 300 MB."""

    paths: pl.Series
    shard: Codes  # (N,) number of the shard; beyond the last for a file
    offset: pl.Series
    size: pl.Series
    shards: tuple[Shard, ...]
    root: Path

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, row: int) -> ImageFile: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[ImageFile]: ...
    def __getitem__(self, row: int | slice) -> ImageFile | Sequence[ImageFile]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        path, shard = str(self.paths[row]), self.shard[row]
        if shard == len(self.shards):
            return self.root / path
        return Member(self.shards[shard], path, self.offset[row], self.size[row])


def first_labels(table: pl.DataFrame) -> dict[str, str]:
    """Return the label under the first head by id, of tags the first three; images of unknown label are not in it."""
    column = next((name for name in table.columns if name.startswith("label:")), None)
    if column is None:
        return {}
    labels = table[column].list.head(3).list.join("; ") if table[column].dtype == pl.List else table[column]
    return {name: str(label) for name, label in zip(table["id"], labels, strict=True) if label is not None}


def _json_text(column: pl.Series) -> bytearray:
    """Return a column as a JSON list, in UTF-8."""
    text = bytearray(b"[")
    for cells in in_chunks(column):
        text += b", " if len(text) > 1 else b""
        text += json.dumps(_texts(cells))[1:-1].encode()
    text += b"]"
    return text


def _codes(table: pl.DataFrame, head: Head) -> Codes:
    labels = table[f"label:{head.name}"]
    if head.multiclass:
        # Nulls are filled in numpy: a call to polars costs 0.3 ms, which adds up over a thousand heads.
        codes = head.unknown(len(labels))
        for start, some in zip(range(0, len(labels), CHUNK), in_chunks(labels), strict=True):
            codes[start : start + CHUNK] = np.nan_to_num(_positions(some, head).to_numpy(), nan=-1)
        return codes
    codes = head.unknown(len(labels))
    codes[labels.is_not_null().to_numpy()] = 0
    for column, value in ((f"label:{head.name}", 1), (f"unknown:{head.name}", -1)):
        cells = table.select(pl.row_index("row"), tag=column).explode("tag").drop_nulls()
        codes[cells["row"].to_numpy(), _positions(cells["tag"], head).to_numpy()] = value
    return codes


def _positions(names: pl.Series, head: Head) -> pl.Series:
    """Return class names as positions (int64, null where null). Raises where a name is no class."""
    if not head.classes:
        return names.is_null().cast(pl.Int64).replace({1: None})
    return names.cast(pl.Enum(head.classes)).to_physical().cast(pl.Int64)


def tag_lists(classes: Sequence[str], present: Bools, unknown: Bools) -> tuple[pl.Series, pl.Series]:
    """Return masks (N, K) of tags as the columns "label:h" and "unknown:h" of a table."""
    known, partly_unknown = ~np.asarray(unknown.all(axis=1)), np.asarray(unknown.any(axis=1))
    lists = _name_lists(classes, present, known)
    return lists, _name_lists(classes, unknown & known[:, None], partly_unknown & known)


def _name_lists(classes: Sequence[str], chosen: Bools, listed: Bools) -> pl.Series:
    """Return the chosen classes (N, K) of each image as lists; null where an image is not `listed` (N,)."""
    row, tag = np.nonzero(chosen)
    names = pl.DataFrame({"row": row, "names": pl.Series(list(classes), dtype=pl.String).gather(tag)})
    lists = pl.DataFrame({"row": np.arange(len(chosen)), "listed": listed}).join(
        names.group_by("row", maintain_order=True).agg("names"), on="row", how="left", maintain_order="left"
    )
    none = pl.lit([], dtype=pl.List(pl.String))
    return lists.select(pl.when("listed").then(pl.col("names").fill_null(none))).to_series()


def _head_columns(head: Head) -> list[str]:
    kinds = ["label", "weight", "origin"] if head.multiclass else ["label", "unknown", "weight", "origin"]
    return [f"{kind}:{head.name}" for kind in kinds]
