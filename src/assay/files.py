"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assay.errors import RunError, SpaceError

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; it becomes `path` once written and on disk.

    Raises SpaceError or RunError, with `path` as it was before, where the disk is full or read-only.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with open(beside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def link(file: Path, place: Path) -> None:
    """Make `place` the same file as `file`, or a copy of it where the disk cannot link; whole or not at all.

    For files that are only ever replaced, never written to.
    """
    with whole(place) as beside:
        try:
            os.link(file, beside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(file, beside)


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse to begin what would not fit: `needed` bytes in `folder`, and 64 MiB to spare.

    Raises SpaceError.
    """
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed + (64 << 20):
        raise SpaceError(
            f"{folder}: {purpose} needs {needed / 2**20:,.0f} MiB, and 64 MiB to spare; "
            f"{free / 2**20:,.0f} MiB are free. Free some space, or choose another place."
        )


def fingerprint(*parts: str | bytes) -> str:
    """A short, stable name of some content (SHA-256, 16 hex digits)."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _explain(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(f"{path}: the disk is full. What was written before is intact; free some space and repeat.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(f"{path}: cannot be written ({os.strerror(error.errno)}). Choose another place for it.")
    return error
