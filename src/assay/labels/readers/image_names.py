"""Names of images as tables have them, matched to the files of a folder."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from assay.errors import DataError
from assay.labels.file_kinds import is_image
from assay.labels.image_files import SafeRoot, holds_runs, is_foreign, is_unicode
from assay.labels.readers.table_files import Rows
from assay.messages import plain, printable

Parts = tuple[str, ...]
"""Folders and name of a file below the root."""

Location = tuple[str, str | None]
"""The path of an image below the root, and why it cannot be read, or None."""

MISSING = "no such file"
NEEDLESS = " \t\r\n\u00a0\u200b\u200e\ufeff\"'`\u2018\u2019\u201c\u201d"
"""Characters that are stripped off both ends of a name that is no file: blanks, quotes, invisible ones."""


@dataclass(frozen=True)
class Wanted:
    """An image as a cell names it; a `foreign` cell is an address or begins at the root of some disk."""

    parts: Parts
    foreign: bool

    @staticmethod
    def of(cell: str) -> Wanted:
        """Parse a cell: quotes, a scheme, a server, a drive, backslashes and `..` are taken off."""
        text, foreign = cell.strip(NEEDLESS), False
        queried = "?" in text and (text.startswith("/") or is_image(text.partition("?")[0]))
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) or queried:
            foreign, text = True, _path_of_address(text)
        elif re.search("%[0-9A-Fa-f]{2}", text):
            text = unquote(text)  # as exported by programs that serve their files
        text = text.replace("\\", "/")
        foreign = foreign or text.startswith(("/", "~/")) or re.match(r"[A-Za-z]:/", text) is not None
        path = posixpath.normpath("/" + re.sub(r"^[A-Za-z]:(?=/)", "", text))
        return Wanted(tuple(part for part in path.split("/") if part), foreign)


def _path_of_address(text: str) -> str:
    """Return the path of a URL; where its query names an image, that."""
    try:
        address = urlsplit(text)
    except ValueError:
        return text
    queried = next((value for _, value in parse_qsl(address.query) if is_image(value)), None)
    return queried if queried and not is_image(address.path) else unquote(address.path)


@dataclass(frozen=True)
class Level:
    """One way to compare names: how a note names it, and the keys of a cell and of a file (None: not compared)."""

    how: str
    of_cell: Callable[[str], str | None]
    of_file: Callable[[str], str | None]
    loose: bool = False  # of a name that may be spelt otherwise; then folders may be too


def folded(name: str) -> str:
    """Return a name in one case and one Unicode form, without the form of its ending."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold())


def _stem_of_cell(name: str) -> str | None:
    return None if is_image(name) else name


def _stem(name: str) -> str | None:
    return name.rpartition(".")[0] if is_image(name) else None


def _number(name: str) -> str | None:
    match = re.fullmatch(r"0*([0-9]{1,18})(\.0)?", name)
    return match[1] if match else None


def _without_prefix(name: str) -> str | None:
    match = re.fullmatch(r"[0-9a-f]{8}-(.+)", name)
    return match[1] if match else None


def _folded(key: Callable[[str], str | None]) -> Callable[[str], str | None]:
    def of(name: str) -> str | None:
        value = key(name)
        return None if value is None else folded(value)

    return of


LEVELS = (
    Level("by the end of their path", str, str),
    Level("without the ending", _stem_of_cell, _stem),
    Level("in another case or Unicode form", folded, folded, loose=True),
    Level("without the ending and in another case or Unicode form", _folded(_stem_of_cell), _folded(_stem), loose=True),
    Level("without the prefix of an upload to Label Studio", _without_prefix, str),
    Level("by their number", _number, lambda name: _number(_stem(name) or ""), loose=True),
)
"""From strict to loose; the first that has a match counts."""


class FileIndex:
    """The files below a folder, by the ways to compare their names. It is walked when it is first asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_key: dict[Level, dict[str, dict[str, list[Parts]]]] = {}

    @cached_property
    def files(self) -> list[Parts]:
        """Images by their ending, without hidden files and runs; where there are none, all files."""
        parts = [part for part in _walk(self.root) if is_unicode("/".join(part))]
        return [part for part in parts if is_image(part[-1])] or parts

    def at(self, level: Level) -> Mapping[str, Mapping[str, list[Parts]]]:
        """Return the files by their key, and of each key by the folder that they lie in, folded; "" of none."""
        if level not in self._by_key:
            index: dict[str, dict[str, list[Parts]]] = defaultdict(lambda: defaultdict(list))
            for parts in self.files:
                key = level.of_file(parts[-1])
                if key is not None:
                    index[key][folded(parts[-2]) if len(parts) > 1 else ""].append(parts)
            self._by_key[level] = index
        return self._by_key[level]

    def match(self, wanted: Wanted, *, within: bool, anywhere: bool = False) -> tuple[Level, list[Parts]] | None:
        """Return the files that a cell may name at the strictest level that has any.

        The folders of one must be the end of those of the other; where `within`, they are the same; of a foreign cell
        one folder in common is enough, and with `anywhere` none. Of several files those with most folders in common are
        returned.
        """
        if not wanted.parts:
            return None
        *folders, name = wanted.parts
        for level in LEVELS:
            key = level.of_cell(name)
            of_key = self.at(level).get(key, {}) if key is not None else {}
            near = of_key if anywhere or not folders else dict.fromkeys((folded(folders[-1]), ""))
            candidates = [parts for folder in near for parts in of_key.get(folder, ())]
            shared = {parts: _shared(folders, parts[:-1], folded_too=level.loose) for parts in candidates}
            depth = max if within else min
            fitting = [
                parts
                for parts, count in shared.items()
                if count == depth(len(folders), len(parts) - 1) or (wanted.foreign and (count or anywhere))
            ]
            if fitting:
                most = max(shared[parts] for parts in fitting)
                return level, [parts for parts in fitting if shared[parts] == most]
        return None


def _walk(root: Path) -> Iterator[Parts]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_foreign(name) and not holds_runs(Path(folder, name)))
        above = tuple(Path(folder).relative_to(root).parts)
        yield from ((*above, name) for name in sorted(names) if not is_foreign(name))


def _shared(one: Sequence[str], other: Sequence[str], *, folded_too: bool) -> int:
    """Return how many folders two paths have in common at their ends."""
    same = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b and not (folded_too and folded(a) == folded(b)):
            break
        same += 1
    return same


def locate(rows: Rows, cells: Sequence[str], root: Path) -> tuple[list[Location], list[str]]:
    """Return where each image lies below `root`, and notes on names that were matched otherwise than as they stand.

    A name that is no path of a file is matched by `LEVELS`. Raises DataError that names the row for a path that leads
    out of `root`, a name that may be several files, and two names of one file.
    """
    safe = SafeRoot(root)
    located: list[Location] = []
    leaving: dict[int, DataError] = {}
    for row, cell in enumerate(cells):
        try:
            located.append(safe.locate(cell))
        except DataError as error:
            leaving[row] = error
            located.append((printable(cell), MISSING))
    pending = [row for row, (_, reason) in enumerate(located) if reason in (MISSING, "not a file")]
    if not pending:
        return located, []
    index, wanted = FileIndex(root), {cells[row]: Wanted.of(cells[row]) for row in pending}
    strict = len(pending) < len(cells) / 2  # most names are paths: the others may not lie in any folder
    matches = {
        cell: match
        for cell, one in wanted.items()
        if (match := index.match(one, within=strict and not one.foreign)) is not None
    }
    if not any(wanted[cell].foreign for cell in matches):  # folders elsewhere are not those of here: names alone count
        addresses = {cell: one for cell, one in wanted.items() if one.foreign}
        alone = {cell: index.match(one, within=False, anywhere=True) for cell, one in addresses.items()}
        matches |= {cell: match for cell, match in alone.items() if match is not None}
    chosen = _chosen(rows, cells, pending, wanted, matches)
    for row, refusal in leaving.items():
        foreign, is_there = wanted[cells[row]].foreign, os.path.lexists(os.path.join(safe.root, cells[row]))
        if (is_there and not foreign) or (cells[row] not in chosen and (is_there or not foreign)):
            raise DataError(f"{rows.at(row)}: {refusal}") from refusal
    for row in pending:
        if cells[row] in chosen:
            located[row] = _safely(rows, row, safe, "/".join(chosen[cells[row]]))
        elif located[row][1] == MISSING:
            located[row] = (located[row][0], _why_missing(index, wanted[cells[row]]))
    _require_distinct(rows, cells, located, wanted)
    return located, _notes(cells, pending, matches, chosen)


def _safely(rows: Rows, row: int, safe: SafeRoot, path: str) -> Location:
    try:
        return safe.locate(path)
    except DataError as error:
        raise DataError(f"{rows.at(row)}: {error}") from error


def _chosen(
    rows: Rows,
    cells: Sequence[str],
    pending: Sequence[int],
    wanted: dict[str, Wanted],
    matches: dict[str, tuple[Level, list[Parts]]],
) -> dict[str, Parts]:
    """Return the file of each matched cell. Where cells may be several files, one way must hold for all cells.

    A way is the folders that a file has above those of the cell, and its ending. Raises DataError where several hold.
    """
    torn = next((row for row in pending if len(matches.get(cells[row], (None, ()))[1]) > 1), None)
    ways = {cell: {_way(wanted[cell], parts): parts for parts in files} for cell, (_, files) in matches.items()}
    if torn is None:
        return {cell: next(iter(files.values())) for cell, files in ways.items()}
    common = set.intersection(*(set(files) for files in ways.values()))
    if len(common) == 1:
        way = common.pop()
        return {cell: files[way] for cell, files in ways.items()}
    _, (one, other, *_) = matches[cells[torn]]
    raise DataError(
        f"{rows.at(torn)}: {cells[torn]!r} may be {'/'.join(one)!r} or {'/'.join(other)!r}. Write more of the path, or "
        "the ending, or name the folder that the names start from with `root` (--set data.root=DIR)."
    )


def _way(wanted: Wanted, parts: Parts) -> tuple[Parts, str]:
    above = parts[: max(len(parts) - len(wanted.parts), 0)]
    return above, parts[-1].rpartition(".")[2] if "." in parts[-1] else ""


def _why_missing(index: FileIndex, wanted: Wanted) -> str:
    """Return why there is no file, with one of that name but another ending or folder."""
    name = wanted.parts[-1] if wanted.parts else ""
    level = LEVELS[3]
    near = [parts for of_folder in index.at(level).get(folded(_stem(name) or name), {}).values() for parts in of_folder]
    return f"{MISSING}: there is {printable('/'.join(near[0]))!r}" if near else MISSING


def _require_distinct(rows: Rows, cells: Sequence[str], located: Sequence[Location], wanted: dict[str, Wanted]) -> None:
    """Raise DataError where two names that differ in their folders or numbers were matched to one file."""
    first: dict[str, int] = {}
    for row, (path, reason) in enumerate(located):
        if reason is not None or first.setdefault(path, row) == row:
            continue
        before = first[path]
        ones = [wanted.get(cells[at]) or Wanted.of(path) for at in (before, row)]
        short, long = sorted((one.parts for one in ones), key=len)
        if tuple(map(folded, long[len(long) - len(short) :])) != tuple(map(folded, short)):
            short_stem, long_stem = (folded(_stem(parts[-1]) or parts[-1]) for parts in (short, long))
            if len(short) == 1 and short_stem == long_stem:
                continue
            raise DataError(
                f"{rows.at(row)}: {cells[row]!r} and {cells[before]!r} ({rows.unit} {rows.lines[before]}) may both be "
                f"{path!r}. Name each image by its path, or set `root` to the folder that the names start from."
            )


def _notes(
    cells: Sequence[str],
    pending: Sequence[int],
    matches: dict[str, tuple[Level, list[Parts]]],
    chosen: dict[str, Parts],
) -> list[str]:
    counts: Counter[Level] = Counter(matches[cells[row]][0] for row in pending if cells[row] in chosen)
    notes = []
    for level, count in counts.items():
        cell = next(cells[row] for row in pending if cells[row] in chosen and matches[cells[row]][0] == level)
        verb = "name matches an image" if count == 1 else "names match images"
        notes.append(f"{count:,} {verb} {level.how}, such as '{plain(cell)}' for '{plain('/'.join(chosen[cell]))}'.")
    return notes
