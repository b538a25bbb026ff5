"""Image files on disk: finding, sorting and hashing them, and paths that stay within the data folder."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from assay.errors import DataError
from assay.files import holds_runs
from assay.messages import printable

IMAGE_ENDINGS = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "bmp", "dib", "gif", "tif", "tiff", "ppm", "pgm",
    "pbm", "pnm", "jp2", "j2k", "jpx", "tga", "avif",
    "ico",
})  # fmt: skip
"""A file with one of these endings (any case) counts as an image when a folder is read."""


def is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_ENDINGS and "." in name


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key: runs of digits by their value (2 before 10), case only where nothing else differs."""
    # Odd places are digits. A number is compared by its length, then its digits: no limit on its size.
    parts = re.split(r"([0-9]+)", name.casefold())
    keys = [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else (0, part) for i, part in enumerate(parts)]
    return keys, name


def path_key(path: str) -> list[tuple[list[tuple[int, str]], str]]:
    """Sort key of a path: naturally, folder by folder."""
    return [natural_key(part) for part in path.split("/")]


def is_unicode(name: str) -> bool:
    """Return whether a file name is valid UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


@dataclass(frozen=True)
class Tree:
    """The contents of a folder, without hidden names and runs: paths relative to it, naturally sorted."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)  # folders that this program wrote: nothing in them is listed


def walk(root: Path) -> Tree:
    """Return the contents of a folder at any depth; links are followed within it.

    Folders that hold a run are passed over: the charts of a run beside the images are no data.
    Raises DataError for a missing or unreadable folder, and for a link that leaves it or goes round.
    """
    if not root.is_dir():
        raise DataError(f"{printable(root)}: {'is no folder' if root.exists() else 'does not exist'}. Check the path.")
    tree, real_root = Tree(), os.path.realpath(root)
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (real_root,))]
    while waiting:
        above, chain = waiting.pop()
        for entry in _entries(root, above):
            path, real = above + entry.name, os.path.join(chain[-1], entry.name)
            if entry.is_symlink():
                real = _followed(root, path, real_root)
            if entry.is_dir():
                if real in chain:
                    raise DataError(f"{printable(root / path)}: this link goes round in a circle. Remove it.")
                if holds_runs(root / path):
                    tree.runs.append(path)
                    continue
                tree.folders.append(path)
                waiting.append((path + "/", (*chain, real)))
            else:
                (tree.images if is_image(entry.name) else tree.others).append(path)
    _drop_empty_parents(tree)
    for paths in (tree.images, tree.others, tree.folders, tree.runs):
        paths.sort(key=path_key)
    return tree


def _drop_empty_parents(tree: Tree) -> None:
    """Remove folders that hold runs and nothing else, which would be classes without an image."""
    for parent in {f"{above}/" for run in tree.runs for above in map(str, PurePosixPath(run).parents) if above != "."}:
        if not any(path.startswith(parent) for path in (*tree.images, *tree.others)):
            tree.folders.remove(parent[:-1])


def _entries(root: Path, above: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root / above) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"{printable(root / above)}: this folder cannot be read ({error.strerror}). Give it read permission."
        ) from error


def _followed(root: Path, path: str, real_root: str) -> str:
    """Return the real path of a link. Raises DataError for a folder or image outside of the root."""
    real = os.path.realpath(root / path)
    if not _within(real, real_root) and (is_image(path) or os.path.isdir(real)):
        raise DataError(
            f"{printable(root / path)}: this link leaves the data folder (it leads to {printable(real)}). "
            "What is read must lie inside: copy the images in, or give the folder that holds them all."
        )
    return real


class SafeRoot:
    """A data folder that resolves the paths a table names, and refuses those that leave it.

    Real paths of folders are kept: resolving takes one system call a folder and one a file.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root)
        self.real_root = os.path.realpath(root)
        self._real: dict[str, str] = {}

    def locate(self, cell: str) -> tuple[str, str | None]:
        """Return the path relative to the root (POSIX), and the reason why it cannot be read, or None.

        Raises DataError for a path that leaves the root; the caller adds the table and its line.
        """
        full = os.path.normpath(os.path.join(self.root, cell))
        folder, name = os.path.split(full)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        real = os.path.join(self._real[folder], name)
        reason, is_link = _reason(full)
        if not _within(os.path.realpath(full) if is_link else real, self.real_root):
            raise DataError(
                f"{cell!r} leaves the data folder {printable(self.root)}. A table may only name images inside "
                "it: copy them in, or set `root` to the folder that holds them all."
            )
        # An absolute path may reach the root under another name (through a link): then its real path counts.
        base, full = (self.root, full) if _within(full, self.root) else (self.real_root, real)
        return full[len(base.rstrip(os.sep)) + 1 :].replace(os.sep, "/") or ".", reason


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _reason(full: str) -> tuple[str | None, bool]:
    """Return the reason why a path cannot be read as a file, or None, and whether it is a link."""
    is_link = False
    try:
        mode = os.lstat(full).st_mode
        is_link = stat.S_ISLNK(mode)
        if is_link:
            mode = os.stat(full).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file", is_link
    except OSError as error:
        return str(error.strerror), is_link
    return (None if stat.S_ISREG(mode) else "not a file"), is_link


def content_hashes(root: Path, paths: Sequence[str], *, threads: int | None = None) -> list[tuple[str | None, str]]:
    """Return for each path below `root` the SHA-256 of its bytes, or None and the reason."""
    chunk = 64
    chunks = [[os.path.join(root, path) for path in paths[i : i + chunk]] for i in range(0, len(paths), chunk)]
    pool = ThreadPoolExecutor(threads or min(8, 2 * (os.cpu_count() or 1)))
    try:
        return [
            result for results in pool.map(lambda chunk: [_hash(path) for path in chunk], chunks) for result in results
        ]
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the rest


def _hash(path: str) -> tuple[str | None, str]:
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait for ever
            return None, "not a file"
        if about.st_size == 0:
            return None, "empty file (0 bytes)"
        with open(path, "rb", buffering=0) as file:
            if about.st_size < 1 << 20:  # a small file at once, without a buffer to fill again and again
                return hashlib.sha256(file.read()).hexdigest(), ""
            return hashlib.file_digest(file, "sha256").hexdigest(), ""
    except FileNotFoundError:
        return None, "no such file"
    except OSError as error:
        return None, str(error.strerror)
