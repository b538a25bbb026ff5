"""Text files in the usual encodings, and the records of tables parted by any usual mark."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.errors import DataError
from assay.messages import printable

MARKS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What may part the cells of a table where nobody says it."""

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

Record = tuple[int, list[str]]
"""The line where a record begins, and its cells."""


@dataclass(frozen=True)
class TextTable:
    """The records of a table, the first of them the header, and notes on how they were read."""

    records: Sequence[Record]
    delimiter: str
    notes: tuple[str, ...] = ()


def require_file(path: Path, hint: str) -> None:
    """Raise DataError with a hint where there is no such file."""
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise DataError(f"{printable(path)}: {what}. {hint}")


def read_text(path: Path) -> tuple[str, list[str]]:
    """Return the text of a file, and a note where it is not UTF-8.

    UTF-8, UTF-16 and UTF-32 by their marks, UTF-16 without one by its zeros, Windows-1252 where single letters are
    not ASCII. Raises DataError for a file that is missing or in another encoding.
    """
    require_file(path, "Check the path.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror}).") from error
    for mark, encoding in BOMS:
        if data.startswith(mark):
            note = [] if encoding == "utf-8-sig" else [f"{printable(path)} was read as {encoding.upper()}."]
            return _decoded(path, data, encoding), note
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _without_mark(path, data, error)
    return _without_mark(path, data, None) if "\0" in text[:1000] else (text, [])


def _without_mark(path: Path, data: bytes, error: UnicodeDecodeError | None) -> tuple[str, list[str]]:
    """Return the text of bytes without a mark that are not UTF-8, or hold zeros."""
    start = data[:1000]
    for zeros, encoding in ((start[1::2], "utf-16-le"), (start[::2], "utf-16-be")):
        if len(start) > 3 and zeros.count(0) > len(zeros) // 2:
            return _decoded(path, data, encoding), [f"{printable(path)} was read as {encoding.upper()}."]
    if error is None:
        return data.decode("utf-8"), []
    if _is_western(data):
        text = data.decode("cp1252")
        words = list(dict.fromkeys(re.findall(r"\w*[^\x00-\x7f]\w*", text)))
        some = ", ".join(map(repr, words[:3]))
        return text, [
            f"{printable(path)} is not UTF-8 and was read as Windows-1252, with {some}. Where such words look wrong, "
            "save it as UTF-8."
        ]
    line = data.count(b"\n", 0, error.start) + 1
    raise DataError(
        f"{printable(path)}: is not UTF-8 in line {line}, and its encoding cannot be known. Save it as UTF-8 (in a "
        "spreadsheet: CSV UTF-8)."
    )


LETTERS = re.compile(rb"[\xc0-\xd6\xd8-\xf6\xf8-\xff\x8a\x8c\x8e\x9a\x9c\x9e\x9f]{1,2}")
"""One or two letters of Windows-1252."""
SIGNS = re.compile(rb"[\x80\x85\x91-\x97\xa0\xa7\xa9\xab\xae\xb0\xb2-\xb5\xba\xbb\xbd\xd7]")
"""A sign of Windows-1252, such as a quote or a degree."""


def _is_western(data: bytes) -> bool:
    """Return whether bytes look like Windows-1252: single letters of its words are not ASCII.

    In other scripts whole words are not ASCII, or pairs of bytes that are no letters here.
    """
    within = []
    for run in re.finditer(rb"[\x80-\xff]+", data):
        beside = data[max(run.start() - 1, 0) : run.start()] + data[run.end() : run.end() + 1]
        letters = SIGNS.sub(b"", run[0])
        if not letters:
            continue
        if not LETTERS.fullmatch(letters):
            return False
        within.append(any(bytes([letter]).isalpha() for letter in beside))
    if data.count(b"\x93") != data.count(b"\x94"):  # double quotes come in pairs
        return False
    return b"\0" not in data and sum(within) >= len(within) / 2


def _decoded(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{printable(path)}: begins as {encoding.upper()} and is not ({error.reason}). Save it as UTF-8."
        ) from error


def csv_records(path: Path, *, content: bytes | None = None, first: int = 0) -> Iterator[Record]:
    """Yield the records of a UTF-8 file, without blank lines, each with the line where it begins.

    `content` is what was read of the file, from below line `first`. Raises DataError that names the line of what cannot
    be read.
    """
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            yield from _records(text, ",", path, first)
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: is not UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror}).") from error


def _records(lines: Iterable[str], delimiter: str, path: Path, first: int = 0) -> Iterator[Record]:
    line = 0
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells:
                yield first + line + 1, cells  # not the line of its end: a quoted cell may hold line breaks
            line = reader.line_num
    except csv.Error as error:
        raise DataError(
            f"{printable(path)}, line {first + line + 1}: cannot be read ({error}). Look for a quote never closed."
        ) from error


def read_table_text(path: Path, *, usual: str, delimiter: str | None = None) -> TextTable:
    """Return the records of a text table, without blank rows.

    The mark between cells is `delimiter`, else the one of a first line `sep=;`, else `usual`, else the only other one
    that gives all rows equally many cells, at least two. Raises DataError for what cannot be read.
    """
    text, notes = read_text(path)
    declared = re.match(r'"?sep=([^\r\n])"?[,;\t|]*(\r\n|\n|\r)', text, re.IGNORECASE)
    first = 0
    if declared:
        text, first = text[declared.end() :], 1
    mark = delimiter or (declared[1] if declared else None)
    records = list(_records(io.StringIO(text, newline=""), mark, path, first)) if mark else None
    if records is None:
        records, mark = _parted(text, usual, path)
        if mark != usual:
            notes.append(
                f"The cells of {printable(path)} are parted by {MARKS[mark]}. Otherwise: `delimiter` under `data`."
            )
    filled = [record for record in records if any(cell.strip() for cell in record[1])]
    if len(filled) < len(records):
        count = len(records) - len(filled)
        notes.append(
            f"{printable(path)}: {'1 blank row was' if count == 1 else f'{count:,} blank rows were'} passed over."
        )
    return TextTable(filled, mark or usual, tuple(notes))


def _parted(text: str, usual: str, path: Path) -> tuple[list[Record], str]:
    """Return records and what parts their cells: the usual mark where it gives a table, else the only one that does."""
    refused: DataError | None = None
    records: list[Record] = []
    try:
        records = list(_records(io.StringIO(text, newline=""), usual, path))
    except DataError as error:
        refused = error
    if refused is None and _is_even(records):
        return records, usual
    others = {}
    for mark in MARKS:
        if mark != usual and mark in text:
            try:
                other = list(_records(io.StringIO(text, newline=""), mark, path))
            except DataError:  # the error of the usual mark is raised, if no other mark gives a table
                continue
            if _is_even(other):
                others[mark] = other
    if len(others) == 1:
        mark, other = next(iter(others.items()))
        return other, mark
    if refused is not None:
        raise refused
    return records, usual


def _is_even(records: Sequence[Record]) -> bool:
    """Return whether all records, blank ones aside, have as many cells as the first, at least two."""
    widths = {len(cells) for _, cells in records if any(cell.strip() for cell in cells)}
    return len(widths) == 1 and min(widths) > 1


def read_lines(path: Path) -> list[str]:
    """Return the stripped lines of a text file, without blank lines at its end.

    Raises DataError for a file that is missing, cannot be read or has an unknown encoding.
    """
    text, _ = read_text(path)
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())] if text.strip() else []
