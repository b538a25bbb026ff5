"""Images within shards: tar and Parquet files on this machine, or at any address that fsspec reads.

An image is a file, or a `Member` of a shard. Both have `open`, `read_bytes`, `exists` and `name`, which is all that
the rest of the program asks of an image.
"""

from __future__ import annotations

import glob
import io
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from assay.errors import AssayError, DataError, install_command
from assay.files import fingerprint, whole
from assay.labels.image_files import natural_key
from assay.messages import printable

if TYPE_CHECKING:
    import fsspec

TAR, PARQUET = ".tar", ".parquet"
LIST = "shards.json"  # of the shards in a folder that `assay shard` writes
TIMEOUT = 60.0  # seconds without a byte after which an address counts as one that hangs
OPEN_FILES = 64  # local shards that a process keeps open
BLOCK = 4 << 20  # bytes of a shard elsewhere that are fetched at once
BLOCKS = 16  # of them that a process keeps
ROW_GROUPS = 8  # of Parquet files that a process keeps decompressed

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)(::[^:]+)*:/+", re.IGNORECASE)
_WITH_HOST = re.compile(r"^([a-z][a-z0-9+.-]+):/(?=[^/])", re.IGNORECASE)
_FOLDER = re.compile(r"/[^./]*$")  # `pathlib` takes the slash at its end away
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of many images: a path or an address, and its state (size, and time of change or ETag) when indexed."""

    address: str
    state: str
    column: str = ""  # of the images, in a Parquet file

    @property
    def name(self) -> str:
        return self.address.rstrip("/").rpartition("/")[2]

    def fault(self) -> str | None:
        """Return why the shard is not the one that was indexed, or None."""
        try:
            now = state_of(self.address)
        except DataError as error:
            return str(error)
        if now != self.state:
            return f"{printable(self.address)}: has changed since it was indexed. Repeat the command that reads it."
        return None


@dataclass(frozen=True, slots=True)
class Member:
    """An image within a shard: its first byte and its size in a tar, its row and its size in a Parquet file."""

    shard: Shard
    path: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard.address}/{self.path}"

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    def read_bytes(self) -> bytes:
        """Return the content. Raises DataError for a shard that is gone, has changed, or cannot be reached."""
        if self.shard.column:
            return _cell(self.shard, self.offset)
        if is_address(self.shard.address):
            return _fetched(self.shard, self.offset, self.size)
        file = _local_file(self.shard)  # held while it is read: of threads that open it at once one is kept
        content = os.pread(file.fileno(), self.size, self.offset)
        if len(content) < self.size:
            raise DataError(f"{printable(self.shard.address)}: was cut while it was read. Repeat the command.")
        return content

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return the content as a file to read."""
        return io.BytesIO(self.read_bytes())

    def exists(self) -> bool:
        """Return whether its shard is there, as it was indexed."""
        return self.shard.fault() is None

    is_file = exists

    def resolve(self) -> Member:
        return self


ImageFile: TypeAlias = "Path | Member"
"""Where the bytes of an image are."""


def byte_count(image: ImageFile) -> int:
    return image.size if isinstance(image, Member) else image.stat().st_size


# Addresses.


def is_address(text: str) -> bool:
    """Return whether a text is an address of fsspec, such as `s3://...`, and no path."""
    return _ADDRESS.match(text) is not None


def address(source: Path | str) -> str:
    """Return a source as it was typed: `pathlib` makes one slash of the two in an address."""
    text = str(source)
    return _WITH_HOST.sub(lambda at: at[1] + (":///" if at[1] == "file" else "://"), text, count=1)


def absolute_addresses(given: Sequence[str], base: Path) -> tuple[str, ...]:
    """Return paths as absolute ones, from `base`, and addresses as they are."""
    return tuple(address(one) if is_address(one) else os.path.abspath(base / one) for one in given)


def has_pattern(text: str) -> bool:
    return glob.has_magic(text) or _RANGE.search(text) is not None


def names_shards(source: Path) -> bool:
    """Return whether a source is a tar file, a pattern of shards, or a folder of shards and of no folders."""
    text = address(source)
    if is_address(text) or (has_pattern(text) and not source.exists()):
        return text.endswith((TAR, PARQUET)) or (is_address(text) and _FOLDER.search(text) is not None)
    if source.is_dir():
        folders = any(path.is_dir() and path.name[0] != "." for path in source.iterdir())
        return (source / LIST).is_file() or (not folders and any(source.glob(f"*{TAR}")))
    return source.suffix == TAR and source.is_file()


def name_of(source: Path) -> str:
    """Return what shards are called: the part of their name before a pattern, else their folder's."""
    folder, _, last = address(source).rstrip("/").rpartition("/")
    before = re.split(r"[*?\[{]", last)[0]
    stem = (PurePosixPath(last).stem if before == last else before).strip("-_.")
    return stem or folder.rpartition("/")[2] or "shards"


def expand(given: Sequence[str]) -> list[str]:
    """Return the addresses of all shards: of patterns, of ranges such as {000..127}, and in folders; each once.

    Raises DataError where a pattern or a folder names none.
    """
    shards: dict[str, None] = {}
    for one in given:
        for text in _ranges(one):
            named = sorted(_matching(text), key=natural_key)
            if not named:
                raise DataError(f"{printable(text)}: there is no shard (.tar, .parquet) of that name. Check the path.")
            shards |= dict.fromkeys(named)
    return list(shards)


def _ranges(text: str) -> list[str]:
    """Return a text for each number of its first range: a{08..10} is a08, a09, a10."""
    span = _RANGE.search(text)
    if span is None:
        return [text]
    first, last = span.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [rest for number in numbers for rest in _ranges(text[: span.start()] + number + text[span.end() :])]


def _matching(text: str) -> list[str]:
    endings = (TAR, PARQUET)
    if not is_address(text):
        if os.path.isdir(text):
            return [os.path.join(text, name) for name in os.listdir(text) if name.endswith(endings) and name[0] != "."]
        if has_pattern(text) and not os.path.exists(text):
            return [path for path in glob.glob(text, recursive=True) if os.path.isfile(path)]
        return [text]
    if not (has_pattern(text) or _FOLDER.search(text)):
        return [text]
    system, path = filesystem(text)
    with reaching(text):
        named = system.glob(path) if has_pattern(text) else system.ls(path, detail=False)
    return [str(system.unstrip_protocol(name)) for name in named if str(name).endswith(endings)]


# Files, here and elsewhere.


def filesystem(text: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of an address, and the path in it. Raises DataError where its package is missing."""
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if text.startswith(("http://", "https://")):
        try:
            from aiohttp import ClientTimeout
        except ImportError as error:
            raise DataError(_missing(text, install_command("shards"))) from error
        options["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)}
    try:
        system, path = url_to_fs(text, **options)
    except ImportError as error:
        package = re.search(r"[Ii]nstall (\w+)", str(error))
        raise DataError(_missing(text, f"pip install {package[1] if package else error.name}")) from error
    except ValueError as error:
        raise DataError(f"{printable(text)}: {error}. Check the address.") from error
    return system, path


def _missing(text: str, command: str) -> str:
    return f"{printable(text)}: such addresses are read with a package that is not installed: {command}"


@contextmanager
def reaching(text: str) -> Iterator[None]:
    """Raise DataError that names the address for whatever its file system raises in the block."""
    try:
        yield
    except AssayError:
        raise
    except Exception as error:  # every file system has errors of its own
        raise DataError(f"{printable(text)}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return why an address cannot be read, and what to do."""
    status = getattr(error, "status", None)  # of HTTP
    if isinstance(error, FileNotFoundError) and error.__cause__:  # that of HTTP stands for any other, its cause
        return _reason(error.__cause__)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "there is no such file. Check the address."
    if isinstance(error, TimeoutError):
        return "does not answer. Check the address, or try again later."
    if isinstance(status, int) and status >= 500:
        return f"its server has failed ({status}). Try again later."
    kind = type(error).__name__
    denied = isinstance(error, PermissionError) or status in (401, 403) or "redential" in kind + str(error)
    return f"cannot be read ({kind}: {error}). Check the {'credentials' if denied else 'address'}."


def state_of(text: str) -> str:
    """Return size, and time of change or ETag. Raises DataError where there is no such file."""
    if not is_address(text):
        try:
            about = os.stat(text)
        except OSError as error:
            raise DataError(f"{printable(text)}: cannot be read ({error.strerror}). Check the path.") from error
        return f"{about.st_size} {about.st_mtime_ns}"
    system, path = filesystem(text)
    with reaching(text):
        info = system.info(path)
    tag = next((info[key] for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
                if info.get(key) is not None), "")  # fmt: skip
    return f"{info.get('size')} {tag}"


def open_shard(text: str) -> BinaryIO:
    """Return a shard as a file to be read from its beginning. Raises DataError."""
    if not is_address(text):
        try:
            return open(text, "rb")
        except OSError as error:
            raise DataError(f"{printable(text)}: cannot be read ({error.strerror}). Check the path.") from error
    system, path = filesystem(text)
    with reaching(text):
        file: BinaryIO = system.open(path, "rb", block_size=BLOCK, cache_type="readahead")
    return file


def local_copy(path: Path) -> Path:
    """Return a file as it is; of one at an address a copy in .assay/ of the working folder, fetched once.

    Raises DataError.
    """
    text = address(path)
    if not is_address(text):
        return path
    copy = Path.cwd() / ".assay" / "tables" / f"{fingerprint(text, state_of(text))}-{path.name}"
    if not copy.exists():
        system, remote = filesystem(text)
        with whole(copy) as beside, reaching(text):
            system.get_file(remote, str(beside))
    return copy


@lru_cache(maxsize=OPEN_FILES)
def _local_file(shard: Shard) -> BinaryIO:
    """Return a local shard, opened."""
    _require_unchanged(shard)
    return open_shard(shard.address)


@lru_cache(maxsize=1 << 14)
def _require_unchanged(shard: Shard) -> None:
    """Raise DataError where a shard is not the one that was indexed: looked at once a process, not once an image."""
    if (fault := shard.fault()) is not None:
        raise DataError(fault)


_one_at_a_time = threading.Lock()


def _fetched(shard: Shard, offset: int, size: int) -> bytes:
    """Return bytes of a shard elsewhere, by whole blocks: images that are read in order cost a request a block."""
    with _one_at_a_time:  # else the threads that decode ask for the same block at once
        blocks = [_block(shard, number) for number in range(offset // BLOCK, (offset + size - 1) // BLOCK + 1)]
    start = offset % BLOCK
    content = b"".join(blocks)[start : start + size]
    if len(content) < size:
        raise DataError(f"{printable(shard.address)}: was cut while it was read. Repeat the command.")
    return content


@lru_cache(maxsize=BLOCKS)
def _block(shard: Shard, number: int) -> bytes:
    _require_unchanged(shard)
    system, path = filesystem(shard.address)
    start, end = number * BLOCK, min((number + 1) * BLOCK, int(shard.state.partition(" ")[0]))
    with reaching(shard.address):
        content = bytes(system.cat_file(path, start=start, end=end))
    return content if len(content) <= end - start else content[start:end]  # of a server that knows no ranges


def forget_open_shards() -> None:
    """Close what this process has open of shards: for one that another was forked from."""
    global _one_at_a_time  # noqa: PLW0603  (a lock that was held then is never released here)
    _one_at_a_time = threading.Lock()
    for kept in (_require_unchanged, _local_file, _block, _parquet, _row_group):
        kept.cache_clear()


# Parquet.


def parquet_library() -> Any:
    """Return pyarrow's reader of Parquet files. Raises DataError where it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"Images in Parquet files are read with a package that is not installed: {install_command('shards')}"
        ) from error
    return parquet


def _cell(shard: Shard, row: int) -> bytes:
    with _one_at_a_time:  # pyarrow's file is for one thread at a time
        starts = _groups(shard)
        group = max(number for number, start in enumerate(starts) if start <= row)
        content: bytes = _row_group(shard, group)[row - starts[group]].as_py()
    return content


@lru_cache(maxsize=OPEN_FILES)
def _parquet(shard: Shard) -> Any:
    _require_unchanged(shard)
    return parquet_library().ParquetFile(open_shard(shard.address))


@lru_cache(maxsize=OPEN_FILES)
def _groups(shard: Shard) -> list[int]:
    """Return the first row of each group of rows."""
    about = _parquet(shard).metadata
    starts, first = [], 0
    for number in range(about.num_row_groups):
        starts.append(first)
        first += about.row_group(number).num_rows
    return starts


@lru_cache(maxsize=ROW_GROUPS)
def _row_group(shard: Shard, number: int) -> Any:
    """Return the bytes of the images of a group of rows, decompressed."""
    with reaching(shard.address):
        return image_bytes(_parquet(shard).read_row_group(number, columns=[shard.column])[shard.column])


def image_bytes(cells: Any) -> Any:
    """Return the bytes of a column of images: a struct of bytes and path, or the bytes alone."""
    from pyarrow import types

    whole = cells.combine_chunks()
    return whole.field("bytes") if types.is_struct(whole.type) else whole
