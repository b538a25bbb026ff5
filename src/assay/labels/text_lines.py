"""Plain text files: their lines, and those that name a picture a line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.pictures import is_picture, shown
from assay.labels.tables import Rows

LISTED = "image"
"""The one column of the rows of a list of names."""


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without blanks around them and without the blank lines at its end.

    Raises DataError for a file that is missing, cannot be read or is not UTF-8.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise DataError(f"{shown(path)}: {what}. Check the path.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)}: is not UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read ({error.strerror}).") from error
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())] if text.strip() else []


def read_names(path: Path, root: Path) -> Rows:
    """A list of pictures, one a line, as rows with the one column `LISTED`.

    The first line is a header where it neither exists below `root` nor ends as pictures do, and the second exists.
    """
    names = read_lines(path)
    has_header = len(names) > 1 and not is_picture(names[0]) and not _there(root, names[0]) and _there(root, names[1])
    cells = [name or None for name in names[has_header:]]
    frame = pl.DataFrame({LISTED: cells}, schema={LISTED: pl.String})
    return Rows(path, frame, range(1 + has_header, 1 + len(names)), "line")


def _there(root: Path, name: str) -> bool:
    return os.path.isfile(os.path.join(root, name))
