"""Image files on disk: finding, sorting and hashing them, and paths that stay within the data folder."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from assay.errors import DataError
from assay.files import LOCK_FILE
from assay.labels.ahead import FileState, collect, file_state
from assay.labels.file_kinds import HEAD, UNKNOWN, is_image, kind_of, kind_of_file
from assay.labels.left_out import LeftOut
from assay.messages import printable, quoted
from assay.progress import cores

QUIET = frozenset({
    ".git", ".svn", ".hg", ".dvc", ".venv", ".idea", ".vscode", ".github", ".cache", ".assay",
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", "zbthumbnail.info",
})  # fmt: skip
"""Names (any case) that are passed over without a word."""

SYSTEM_FOLDERS = frozenset({
    "@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "@__thumb", "@tmp", "__macosx",
    "$recycle.bin", "recycler", "system volume information", "lost+found", "__pycache__", "_vti_cnf",
    "node_modules", "venv",
})  # fmt: skip
"""Folders (any case) that an operating system, a storage device or another program makes among the user's own."""

THUMBNAILS = frozenset({"thumbnails", "thumbnail", "thumbs", "thumb", "_thumbs", "previews", "preview"})
"""Folders (any case) of small copies, where each image in them is the copy of one elsewhere by its name."""


def holds_runs(folder: Path) -> bool:
    """Return whether `folder` holds a run, or the runs of a search: this program has locked it."""
    return any((folder / name).is_file() for name in (LOCK_FILE, f"claims/{LOCK_FILE}"))


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
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


@dataclass(frozen=True)
class Tree:
    """The contents of a folder: paths relative to it, naturally sorted.

    An image is what holds one, read or not, or is meant as one by its ending; `others` has what is wrong with each
    other file. Nothing in `runs`, which this program wrote, and in `passed_over`, which are hidden or another
    program's, is listed.
    """

    images: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    def no_images(self) -> tuple[LeftOut, ...]:
        """Return the files that are no images as left out, of no class."""
        return tuple(LeftOut(printable(path), fault) for path, fault in self.others.items())

    def notes(self) -> tuple[str, ...]:
        """Return notes on what is not listed."""
        runs = "folders that hold runs were" if len(self.runs) > 1 else "folder that holds a run was"
        over = "files or folders are" if len(self.passed_over) > 1 else "file or folder is"
        notes = (
            (self.runs, f"{len(self.runs)} {runs} passed over: {quoted(self.runs, 3)}."),
            (
                self.passed_over,
                f"{len(self.passed_over)} {over} hidden or of another program, and passed over: "
                f"{quoted(self.passed_over, 5)}.",
            ),
        )
        return tuple(note for paths, note in notes if paths)


def walk(root: Path) -> Tree:
    """Return the contents of a folder at any depth; links are followed within it.

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
            if is_foreign(entry.name):
                if _is_named(entry):
                    tree.passed_over.append(path)
                continue
            if entry.is_symlink():
                real = _followed(root, path, real_root)
            if not _is_folder(entry):
                _add_file(tree, root, path)
            elif real in chain:
                raise DataError(f"{printable(root / path)}: this link goes round in a circle. Remove it.")
            elif holds_runs(root / path):
                tree.runs.append(path)
            else:
                tree.folders.append(path)
                waiting.append((path + "/", (*chain, real)))
    return _sorted(_without_thumbnails(_without_empty_parents(tree)))


def _sorted(tree: Tree) -> Tree:
    others = {path: tree.others[path] for path in sorted(tree.others, key=path_key)}
    lists = (sorted(paths, key=path_key) for paths in (tree.images, tree.folders, tree.runs, tree.passed_over))
    images, folders, runs, passed_over = lists
    return Tree(images, others, folders, runs, passed_over)


def is_foreign(name: str) -> bool:
    """Return whether a name is hidden, or of an operating system or another program."""
    is_placeholder = name.startswith(".") and name.endswith(".icloud")  # of an image that is not on this machine
    return (name.startswith(".") and not is_placeholder) or name.casefold() in QUIET | SYSTEM_FOLDERS


def _is_named(entry: os.DirEntry[str]) -> bool:
    """Return whether passing over a name is to be noted: it may hold images, and the user may not know of it."""
    return entry.name.casefold() not in QUIET and (is_image(entry.name) or _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say
        return False


def _add_file(tree: Tree, root: Path, path: str) -> None:
    if is_image(path):
        tree.images.append(path)
        return
    fault, _ = _reason(os.path.join(root, path))
    try:
        kind = UNKNOWN if fault else kind_of_file(root / path) or UNKNOWN
    except OSError as error:
        kind, fault = UNKNOWN, f"it cannot be read: {error.strerror}"
    if kind.is_image:
        tree.images.append(path)
    else:
        tree.others[path] = fault or kind.fault or ""


def _without_empty_parents(tree: Tree) -> Tree:
    """Return a tree without folders that hold runs and nothing else, which would be classes without an image."""
    parents = {f"{above}/" for run in tree.runs for above in map(str, PurePosixPath(run).parents) if above != "."}
    empty = {parent[:-1] for parent in parents if not any(map(_inside(parent), (*tree.images, *tree.others)))}
    return replace(tree, folders=[folder for folder in tree.folders if folder not in empty])


def _without_thumbnails(tree: Tree) -> Tree:
    """Return a tree without folders of small copies."""
    for folder in [path for path in tree.folders if path.rpartition("/")[2].casefold() in THUMBNAILS]:
        within = _inside(f"{folder}/")
        copies = {_stem(path) for path in tree.images if within(path)}
        outside = {_stem(path) for path in tree.images if not within(path)}
        if copies and copies <= outside:
            tree = Tree(
                [path for path in tree.images if not within(path)],
                {path: fault for path, fault in tree.others.items() if not within(path)},
                [path for path in tree.folders if path != folder and not within(path)],
                tree.runs,
                [*tree.passed_over, folder],
            )
    return tree


def _inside(folder: str) -> Callable[[str], bool]:
    return lambda path: path.startswith(folder)


def _stem(path: str) -> str:
    """Return the name of an image without its ending and what names of thumbnails have beside it."""
    return re.sub(r"(?i)^(thumb(nail)?|small|tn)[-_]|[-_](thumb(nail)?|small|tn)$", "", PurePosixPath(path).stem)


def _entries(root: Path, above: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root / above) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"{printable(root / above)}: this folder cannot be read ({error.strerror}). Give it read permission."
        ) from error


def _followed(root: Path, path: str, real_root: str) -> str:
    """Return the real path of a link. Raises DataError for a folder or image outside of the root."""
    real = os.path.realpath(root / path)
    if not _within(real, real_root) and (is_image(path) or os.path.isdir(real)):
        raise DataError(f"{printable(root / path)}: {_leaves(real, printable(root))}")
    return real


def _leaves(real: str, root: str) -> str:
    """Return what to do about a link that leaves the data folder."""
    gone = "" if os.path.exists(real) else ", which does not exist"
    copied = shlex.quote(f"{root.rstrip('/')}-copied")
    return (
        f"this link leaves the data folder: it leads to {printable(real)}{gone}. What is read must lie inside. "
        f"Copy the folder with what its links lead to: cp -rL {shlex.quote(root)} {copied} (-rlL takes no space where "
        "both are on one disk). Or name the images themselves in a table, with `root` as the folder that holds all."
    )


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
            if is_link:
                raise DataError(f"{cell!r}: {_leaves(os.path.realpath(full), printable(self.root))}")
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
        return _missing(full), is_link
    except OSError as error:
        return str(error.strerror), is_link
    return (None if stat.S_ISREG(mode) else "not a file"), is_link


def content_hashes(root: Path, paths: Sequence[str], *, threads: int | None = None) -> list[tuple[str | None, str]]:
    """Return for each path below `root` the SHA-256 of its bytes, or None and the reason."""
    chunk, ahead = 64, collect()
    chunks = [[os.path.join(root, path) for path in paths[i : i + chunk]] for i in range(0, len(paths), chunk)]
    pool = ThreadPoolExecutor(threads or min(8, 2 * cores()))
    try:
        return [
            result
            for results in pool.map(lambda chunk: [_hash(path, ahead) for path in chunk], chunks)
            for result in results
        ]
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the rest


def _hash(path: str, ahead: Mapping[str, tuple[FileState, str]]) -> tuple[str | None, str]:
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait for ever
            return None, "not a file"
        if path in ahead and ahead[path][0] == file_state(about):
            return ahead[path][1], ""
        return _hash_content(path, about.st_size)
    except FileNotFoundError:
        return None, _missing(path)
    except OSError as error:
        return None, str(error.strerror)


def _hash_content(path: str, size: int) -> tuple[str | None, str]:
    with open(path, "rb", buffering=0) as file:
        # A small file at once, without a buffer to fill again and again.
        content = file.read() if size < 1 << 20 else file.read(HEAD)
        kind = kind_of(content[:HEAD], path)
        if kind is not None and kind.fault is not None:
            return None, kind.fault
        if size < 1 << 20:
            return hashlib.sha256(content).hexdigest(), ""
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest(), ""


def _missing(path: str) -> str:
    return f"a broken link: {printable(os.readlink(path))} does not exist" if os.path.islink(path) else "no such file"
