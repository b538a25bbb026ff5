"""Tables (CSV, TSV, Parquet, Excel) and lists as rows of text, with the line of each."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from assay.errors import DataError, install_command
from assay.labels.file_kinds import is_image
from assay.labels.readers.text_files import TextTable, read_lines, read_table_text, require_file
from assay.labels.shards import local_copy
from assay.messages import nearest, printable

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson")
EXCEL = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
MOST_LISTED = 30
"""Columns that a message lists; of more, the first."""


@dataclass(frozen=True)
class Rows:
    """A table as text: blank cells are null, `lines` says where in the file each row stands."""

    source: Path
    frame: pl.DataFrame
    lines: Sequence[int | str]  # or "3 of train.csv", where several files are read as one
    unit: str  # "line" of a text file, "row" of another
    notes: tuple[str, ...] = ()  # on how the file was read

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
            hint = nearest(name, self.frame.columns)
            raise DataError(f"{printable(self.source)}: has no column {name!r}. {self.listed()} {hint}".rstrip())
        return name

    def series(self) -> dict[str, pl.Series]:
        """Return the columns by name: looked up in the frame one by one, they cost the square of their number."""
        return {cells.name: cells for cells in self.frame.get_columns()}

    def listed(self) -> str:
        columns = self.frame.columns
        more = f" and {len(columns) - MOST_LISTED:,} more" if len(columns) > MOST_LISTED else ""
        text = f"Its columns are {', '.join(map(repr, columns[:MOST_LISTED]))}{more}."
        strange = next((mark for mark in ";\t|, " if len(columns) == 1 and mark in columns[0]), None)
        return text + (f" If they are parted by {strange!r}, say so with `delimiter`." if strange else "")


def is_table(path: Path) -> bool:
    return path.suffix.lower() in (*DELIMITERS, *PARQUET, *JSON_LINES, *EXCEL)


def read_rows(path: Path, *, delimiter: str | None = None) -> Rows:
    """Return all cells of a table, as text; of one at an address, of a copy that is fetched once.

    Raises DataError for a file that is missing or no valid table.
    """
    path = local_copy(path)
    require_file(path, "Check the path of the table.")
    ending = path.suffix.lower()
    if not is_table(path):
        endings = ", ".join([*DELIMITERS, *PARQUET, *JSON_LINES[:1], *EXCEL[:1]])
        raise DataError(f"{printable(path)}: is no table by its ending. A table ends in {endings}.")
    if ending in PARQUET:
        return _read_parquet(path)
    if ending in JSON_LINES:
        return _read_json_lines(path)
    return _read_excel(path) if ending in EXCEL else _read_text(path, delimiter)


def _read_text(path: Path, delimiter: str | None) -> Rows:
    table = read_table_text(path, usual=DELIMITERS[path.suffix.lower()], delimiter=delimiter)
    return _rows_of(path, [cells for _, cells in table.records], [line for line, _ in table.records], table)


def _rows_of(path: Path, rows: list[list[str]], lines: list[int], table: TextTable) -> Rows:
    """Return records as rows; the first of them names the columns."""
    name = printable(path)
    if not rows:
        raise DataError(f"{name}: is empty. Its first line must name the columns.")
    header, start, lines = [cell.strip() for cell in rows[0]], lines[0], lines[1:]
    _require_header(f"{name}, line {start}", header, rows[1:2])
    twice = sorted(column for column, count in Counter(header).items() if column and count > 1)
    if twice:
        raise DataError(f"{name}, line 1: the column {twice[0]!r} occurs twice. Rename one.")
    for cells, at in zip(rows[1:], lines, strict=True):
        if len(cells) != len(header):
            raise DataError(
                f"{name}, line {at}: {len(cells)} cells where the header has {len(header)}. "
                f"Fill in or remove cells; one that holds {table.delimiter!r} must stand in quotes."
            )
    # An unnamed column is an index that was saved along: no name, no meaning.
    # All columns are made of one: a query that names thousands of them takes seconds.
    cells_of = pl.Series([cell for column in zip(*rows[1:], strict=True) for cell in column], dtype=pl.String)
    tidy, count = _blank_to_null(pl.DataFrame([cells_of])).to_series(), len(lines)
    columns = [tidy.slice(k * count, count).alias(name) for k, name in enumerate(header) if name]
    return Rows(path, pl.DataFrame(columns), lines, "line", table.notes)


def _require_header(where: str, header: Sequence[str], following: Sequence[Sequence[str]]) -> None:
    """Raise DataError where the first row, at `where`, is one of data, or a line of text above the table."""
    for cells in following:
        if len(header) == 1 < len(cells):
            raise DataError(
                f"{where}: {header[0][:60]!r} is one cell, and the next row has {len(cells)}. The first row must name "
                "the columns: remove what stands above it."
            )
        image = next((one for one, other in zip(header, cells, strict=False) if is_image(one) and is_image(other)), "")
        if image:
            raise DataError(
                f"{where}: {image!r} is an image, where the names of the columns belong. Write a line of names above "
                "it, such as image,label."
            )


def _read_parquet(path: Path) -> Rows:
    try:
        frame = pl.read_parquet(path, hive_partitioning=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{printable(path)}: is no Parquet file that can be read ({error}).") from error
    return rows_of_frame(path, frame)


def rows_of_frame(path: Path, frame: pl.DataFrame, lines: Sequence[int] | None = None) -> Rows:
    """Return a typed table as rows, numbered from 1 where no lines are given; a column without a name is dropped."""
    columns = [_plain(cells) for cells in frame.get_columns() if cells.name]
    return Rows(path, pl.DataFrame(columns), lines or range(1, len(frame) + 1), "line" if lines else "row")


def _read_json_lines(path: Path) -> Rows:
    """Return a file with a JSON object on each line. Raises DataError that names the first line of anything else."""
    records, lines = [], []
    for number, line in enumerate(read_lines(path), 1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{printable(path)}, line {number}: is no JSON ({error}). Mend the line.") from error
        if not isinstance(record, dict):
            raise DataError(f"{printable(path)}, line {number}: is no JSON object of columns and cells. Mend the line.")
        records.append(record)
        lines.append(number)
    if not records:
        raise DataError(f"{printable(path)}: is empty. A line is a JSON object of columns and cells.")
    names = dict.fromkeys(name for record in records for name in record)
    try:
        columns = [pl.Series(name, [record.get(name) for record in records]) for name in names]
    except (TypeError, UnicodeEncodeError, pl.exceptions.PolarsError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{printable(path)}: a column holds cells of several types ({reason}). Make them one."
        ) from error
    return rows_of_frame(path, pl.DataFrame(columns), lines)


def _plain(cells: pl.Series) -> pl.Series:
    """Return whole numbers that are floats, for some are missing, as integers, and lists of texts as JSON."""
    if cells.dtype in (pl.List(pl.String), pl.List(pl.Null)):
        lists = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells.to_list()]
        return pl.Series(cells.name, lists, dtype=pl.String)
    if cells.dtype.is_float():
        known = cells.fill_nan(None)
        whole = known.cast(pl.Int64, strict=False)
        if (whole.is_null() == known.is_null()).all() and (whole == known).all():
            return whole
    return cells


def _read_excel(path: Path) -> Rows:
    """Return the one sheet of an Excel or OpenDocument file that is not empty.

    Numbers are written as text without a decimal part where they have none. Raises DataError for several sheets, and
    where the library that reads such files is missing.
    """
    name = printable(path)
    try:
        import fastexcel
    except ImportError as error:
        raise DataError(
            f"{name}: an Excel file is read with a library that is not installed: {install_command('excel')}. Or save "
            "the sheet as CSV (in Excel: Save as, CSV UTF-8)."
        ) from error
    try:
        book = fastexcel.read_excel(path)
        sheets = {
            sheet: book.load_sheet(sheet, header_row=None, dtypes="string").to_polars() for sheet in book.sheet_names
        }
    except (fastexcel.FastExcelError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name}: is no Excel file that can be read ({reason}). Save it as CSV.") from error
    filled = {sheet: frame for sheet, frame in sheets.items() if len(frame)}
    if len(filled) > 1:
        listed = ", ".join(map(repr, filled))
        raise DataError(f"{name}: has {len(filled)} sheets ({listed}), and a table is one. Save that one as CSV.")
    cells = [["" if cell is None else cell for cell in row] for frame in filled.values() for row in frame.rows()]
    numbered = [(line, row) for line, row in enumerate(cells, 1) if any(cell.strip() for cell in row)]
    width = 1 + max((k for k, cell in enumerate(numbered[0][1]) if cell.strip()), default=0) if numbered else 0
    records = [(line, row[:width]) for line, row in numbered]
    rows = _rows_of(path, [row for _, row in records], [line for line, _ in records], TextTable(records, "\t"))
    return replace(rows, unit="row")


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
        if "Binary" in str(kind):
            raise DataError(
                f"{where}: column {column!r} holds {kind}, and no names. Where these are the images themselves, write "
                "each to a file, and the names of the files to this column."
            )
        raise DataError(
            f"{where}: column {column!r} holds {value} ({kind}), which is no name. Labels, splits, groups "
            "and images are text or whole numbers: cast the column, or name the label columns with `heads`."
        )
    tidy = _blank_to_null(pl.DataFrame(casts)) if casts else pl.DataFrame()
    return replace(rows, frame=rows.frame.with_columns(tidy.get_columns()))


def numbers(rows: Rows, column: str) -> tuple[pl.Series, list[str]]:
    """Return a column of weights (float64, 0 or more, null where blank), and a note on decimal commas.

    Raises DataError that names the first line that holds anything else.
    """
    cells = rows.frame[column]
    if not (cells.dtype.is_numeric() or cells.dtype in (pl.String, pl.Null)):
        raise DataError(f"{printable(rows.source)}: column {column!r} holds {cells.dtype}, and a weight is a number.")
    notes = []
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars()
        if _has_decimal_commas(cells):
            cells, notes = cells.str.replace(",", "."), [f"The numbers of column {column!r} have decimal commas."]
    values = cells.cast(pl.Float64, strict=False)
    wrong = cells.is_not_null() & ~(values.is_finite() & (values >= 0) & (values < 3e38)).fill_null(False)
    if wrong.any():
        row = wrong.arg_max() or 0
        raise DataError(f"{rows.at(row)}: the weight {cells[row]!r} is no number of 0 or more. Blank counts as 1.")
    return values, notes


def _has_decimal_commas(cells: pl.Series) -> bool:
    """Return whether the commas in numbers are decimal ones: no cell has a point, and one has no three digits after.

    `1,500` alone may be one and a half or fifteen hundred.
    """
    with_comma = cells.filter(cells.str.contains(r"^[+-]?[0-9]+,[0-9]+$").fill_null(False))
    certain = with_comma.str.contains(r"^[+-]?0,|,([0-9]{1,2}|[0-9]{4,})$").any()
    return bool(certain) and not cells.str.contains(".", literal=True).any()


def merge_same(rows: Rows, *, key: str, titles: Mapping[str, str], ways: Mapping[str, str] | None = None) -> Rows:
    """Return one row for each key; a blank cell takes the value of another row.

    `titles` are the names of the other columns in messages, `ways` the ways out where two rows disagree, beside the
    usual one. Raises DataError where two rows disagree.
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
        message = _disagreement(rows, several.select("row", key, torn), titles[torn])
        raise DataError(message + (ways or {}).get(torn, ""))
    known = pl.col(values).drop_nulls().first()
    merged = frame.group_by(key, maintain_order=True).agg(pl.first("row"), known)
    lines = [rows.lines[row] for row in merged["row"]]
    return replace(rows, frame=merged.select(rows.frame.columns), lines=lines)


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


# Lists: text files that name an image a line.

LISTED = "image"
"""The one column of the rows of a list of names."""


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
