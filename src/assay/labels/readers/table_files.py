"""Tables (CSV, TSV, Parquet) and text files as rows of text, with the line of each."""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.image_files import is_image
from assay.messages import printable

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET = (".parquet", ".pq")
IMAGE_NAMES = (
    "image",
    "file",
    "filename",
    "path",
    "id",
    "img",
    "file_name",
    "image_path",
    "filepath",
)
"""Names of the image column where none is given, the first that occurs (any case)."""
MOST_LISTED = 30
"""Columns that a message lists; of more, the first."""


@dataclass(frozen=True)
class Rows:
    """A table as text: blank cells are null, `lines` says where in the file each row stands."""

    source: Path
    frame: pl.DataFrame
    lines: Sequence[int]
    unit: str  # "line" of a text file, "row" of a Parquet file

    def at(self, row: int) -> str:
        """Return file and line of a row, for a message."""
        return f"{printable(self.source)}, {self.unit} {self.lines[row]}"

    @cached_property
    def names(self) -> frozenset[str]:
        """The columns; polars builds a new list of them on every access."""
        return frozenset(self.frame.columns)

    def column(self, name: str) -> str:
        """Return the name of an existing column. Raises DataError that lists the columns and the nearest name."""
        if name not in self.names:
            near = difflib.get_close_matches(name, self.frame.columns, 1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{printable(self.source)}: has no column {name!r}. {self.listed()}{hint}")
        return name

    def series(self) -> dict[str, pl.Series]:
        """Return the columns by name: looked up in the frame one by one, they cost the square of their number."""
        return {cells.name: cells for cells in self.frame.get_columns()}

    def listed(self) -> str:
        columns = self.frame.columns
        more = f" and {len(columns) - MOST_LISTED:,} more" if len(columns) > MOST_LISTED else ""
        text = f"Its columns are {', '.join(map(repr, columns[:MOST_LISTED]))}{more}."
        strange = next((mark for mark in ";\t|," if len(columns) == 1 and mark in columns[0]), None)
        return text + (f" If they are parted by {strange!r}, say so with `delimiter`." if strange else "")


def is_table(path: Path) -> bool:
    return path.suffix.lower() in (*DELIMITERS, *PARQUET)


def read_rows(path: Path, *, delimiter: str | None = None) -> Rows:
    """Return all cells of a table, as text.

    Raises DataError for a file that is missing or no valid table.
    """
    _require_file(path, "Check the path of the table.")
    if not is_table(path):
        endings = ", ".join([*DELIMITERS, *PARQUET])
        raise DataError(f"{printable(path)}: is no table by its ending. A table ends in {endings}.")
    if path.suffix.lower() in PARQUET:
        return _read_parquet(path)
    return _read_text(path, delimiter or DELIMITERS[path.suffix.lower()])


def _require_file(path: Path, hint: str) -> None:
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise DataError(f"{printable(path)}: {what}. {hint}")


def csv_records(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file, without blank lines, each with the line where it begins.

    Raises DataError that names the line of what cannot be read.
    """
    name, line = printable(path), 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if cells:
                    yield line + 1, cells  # not the line of its end: a quoted cell may hold line breaks
                line = reader.line_num
    except csv.Error as error:
        raise DataError(f"{name}, line {line + 1}: cannot be read ({error}). Look for a quote never closed.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 after line {line}. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}).") from error


def _read_text(path: Path, delimiter: str) -> Rows:
    name, records = printable(path), list(csv_records(path, delimiter))
    lines, rows = [line for line, _ in records], [cells for _, cells in records]
    if not rows:
        raise DataError(f"{name}: is empty. Its first line must name the columns.")
    header, lines = [cell.strip() for cell in rows[0]], lines[1:]
    twice = sorted(column for column, count in Counter(header).items() if column and count > 1)
    if twice:
        raise DataError(f"{name}, line 1: the column {twice[0]!r} occurs twice. Rename one.")
    for cells, at in zip(rows[1:], lines, strict=True):
        if len(cells) != len(header):
            raise DataError(
                f"{name}, line {at}: {len(cells)} cells where the header has {len(header)}. "
                f"Fill in or remove cells; one that holds {delimiter!r} must stand in quotes."
            )
    # An unnamed column is an index that was saved along: no name, no meaning.
    # All columns are made of one: a query that names thousands of them takes seconds.
    cells_of = pl.Series([cell for column in zip(*rows[1:], strict=True) for cell in column], dtype=pl.String)
    tidy, count = _blank_to_null(pl.DataFrame([cells_of])).to_series(), len(lines)
    columns = [tidy.slice(k * count, count).alias(name) for k, name in enumerate(header) if name]
    return Rows(path, pl.DataFrame(columns), lines, "line")


def _read_parquet(path: Path) -> Rows:
    try:
        frame = pl.read_parquet(path, hive_partitioning=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{printable(path)}: is no Parquet file that can be read ({error}).") from error
    if "" in frame.columns:
        frame = frame.drop("")
    return Rows(path, frame, range(1, len(frame) + 1), "row")


def texts(rows: Rows, columns: Sequence[str]) -> Rows:
    """Return the rows with these columns as text.

    Raises DataError for a Parquet column of another type than text, whole number or truth value.
    """
    casts, series = [], rows.series()
    for column in columns:
        cells = series[column]
        kind = cells.dtype
        if kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null):
            casts.append(cells.cast(pl.String))  # as an expression "*" would name all columns
            continue
        filled = cells.is_not_null().arg_max() or 0
        value = str(cells.slice(filled, 1).to_list())[1:-1][:40]
        where = rows.at(filled) if len(rows.frame) else printable(rows.source)
        raise DataError(
            f"{where}: column {column!r} holds {value} ({kind}), which is no name. Labels, splits, groups "
            "and images are text or whole numbers: cast the column, or name the label columns with `heads`."
        )
    tidy = _blank_to_null(pl.DataFrame(casts)) if casts else pl.DataFrame()
    return Rows(rows.source, rows.frame.with_columns(tidy.get_columns()), rows.lines, rows.unit)


def numbers(rows: Rows, column: str) -> pl.Series:
    """Return a column of weights: float64, 0 or more, null where blank.

    Raises DataError that names the first line that holds anything else.
    """
    cells = rows.frame[column]
    if not (cells.dtype.is_numeric() or cells.dtype in (pl.String, pl.Null)):
        raise DataError(f"{printable(rows.source)}: column {column!r} holds {cells.dtype}, and a weight is a number.")
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars()
    values = cells.cast(pl.Float64, strict=False)
    wrong = cells.is_not_null() & ~(values.is_finite() & (values >= 0) & (values < 3e38)).fill_null(False)
    if wrong.any():
        row = wrong.arg_max() or 0
        raise DataError(f"{rows.at(row)}: the weight {cells[row]!r} is no number of 0 or more. Blank counts as 1.")
    return values


def merge_same(rows: Rows, *, key: str, titles: Mapping[str, str]) -> Rows:
    """Return one row for each key; a blank cell takes the value of another row.

    `titles` are the names of the other columns in messages. Raises DataError where two rows disagree.
    """
    frame = rows.frame.with_row_index("row")
    if not frame[key].is_duplicated().any():
        return rows
    values = [column for column in rows.frame.columns if column != key]
    # One query for all columns: a query for each takes minutes where there are thousands.
    several = frame.filter(pl.col(key).is_duplicated())
    differ = several.group_by(key).agg(pl.col(values).drop_nulls().n_unique()).select(pl.col(values).max() > 1)
    torn = next((column for column, differs in zip(values, differ.row(0), strict=True) if differs), None)
    if torn is not None:
        raise DataError(_disagreement(rows, several.select("row", key, torn), titles[torn]))
    known = pl.col(values).drop_nulls().first()
    merged = frame.group_by(key, maintain_order=True).agg(pl.first("row"), known)
    lines = [rows.lines[row] for row in merged["row"]]
    return Rows(rows.source, merged.select(rows.frame.columns), lines, rows.unit)


def _disagreement(rows: Rows, cells: pl.DataFrame, title: str) -> str:
    """Return the message about two rows of one image that differ; `cells` has row, key and that column."""
    _, key, column = cells.columns
    torn = cells.drop_nulls(column).filter((pl.col(column).n_unique() > 1).over(key))
    image = torn.filter(pl.col(key) == torn[key][0])
    one = image.row(0, named=True)
    other = image.filter(pl.col(column) != one[column]).row(0, named=True)
    return (
        f"{rows.at(other['row'])}: {title} of {one[key]!r} is {other[column]!r}, but "
        f"{rows.unit} {rows.lines[one['row']]} says {one[column]!r}. Remove one of the two rows, or "
        "leave the cell blank where it is not known."
    )


def _blank_to_null(frame: pl.DataFrame) -> pl.DataFrame:
    text = pl.col(pl.String)
    return frame.with_columns(pl.when(text.str.strip_chars() != "").then(text))


# Plain text files: their lines, and those that name an image a line.

LISTED = "image"
"""The one column of the rows of a list of names."""


def read_lines(path: Path) -> list[str]:
    """Return the stripped lines of a text file, without blank lines at its end.

    Raises DataError for a file that is missing, cannot be read or is not UTF-8.
    """
    _require_file(path, "Check the path.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: is not UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror}).") from error
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())] if text.strip() else []


def read_names(path: Path, root: Path) -> Rows:
    """Return a list of images, one a line, as rows with the one column `LISTED`.

    The first line is a header where it neither exists below `root` nor ends as images do, and the second exists.
    """
    names = read_lines(path)
    has_header = (
        len(names) > 1 and not is_image(names[0]) and not _existing(root, names[0]) and _existing(root, names[1])
    )
    cells = [name or None for name in names[has_header:]]
    frame = pl.DataFrame({LISTED: cells}, schema={LISTED: pl.String})
    return Rows(path, frame, range(1 + has_header, 1 + len(names)), "line")


def _existing(root: Path, name: str) -> bool:
    return os.path.isfile(os.path.join(root, name))
