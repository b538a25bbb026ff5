"""Predictions as a submission: text, or a zip that holds it."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from assay.errors import DataError, ModelError
from assay.export.parquet import parquet_writer, require_parquet
from assay.export.submission_form import Layout
from assay.files import whole
from assay.labels.left_out import left_out_lines, require_all, unreadable_as_left_out
from assay.labels.shards import PARQUET
from assay.messages import safe_cell
from assay.predictions.predict import Predictions


def write_predictions(chunks: Iterable[Predictions], out: Path, layout: Layout, *, strict: bool = False) -> int:
    """Write a row an image, in the order given, and return how many; one chunk is held at a time.

    The cells of an image that could not be read are blank but for `image` and `error`.

    Raises DataError for an ending that the layout does not have, and for an unreadable image where
    every row must hold an answer or with `strict`; SpaceError or RunError where the disk does not take the file, which
    then is as it was before.
    """
    _require_writable_kind(out, layout)
    written, unreadable = 0, dict[str, str]()
    with whole(out) as beside, _writer(beside, out, layout) as write:
        for chunk in chunks:
            _require_finite(chunk)
            write(chunk)
            written += len(chunk)
            unreadable |= chunk.unreadable
        if strict:
            require_all(unreadable_as_left_out(unreadable, {}), used=written - len(unreadable))
        if unreadable and len(unreadable) == written:
            lines = "".join(f"\n  {line}" for line in left_out_lines(unreadable_as_left_out(unreadable, {})))
            raise DataError(f"none of the {written:,} images could be read. Give images that can be.{lines}")
        if layout.complete and unreadable:
            raise DataError(_incomplete(unreadable))
    return written


def member_of(out: Path, layout: Layout) -> str | None:
    """Return the name of the file in a zip; None for a file that is no zip."""
    if out.suffix.lower() != ".zip":
        return None
    return layout.inner or out.stem + layout.ending


def _require_writable_kind(out: Path, layout: Layout) -> None:
    ending = layout.ending
    if out.is_dir():
        raise DataError(f"{out}: is a folder. Name a file in it: --out {out / f'labels{ending}'}")
    if out.suffix.lower() == PARQUET:
        require_parquet(out, layout)
    elif any(column.name == "features" and column.numbers is not None for column in layout.columns):
        raise DataError(
            f"--features: vectors are written to a Parquet file, and {out} is none. Give --out FILE.parquet"
        )
    elif out.suffix.lower() not in (ending, ".zip"):
        other = " Integers are written as .txt: --form integers" if out.suffix.lower() == ".txt" else ""
        raise DataError(
            f"{out}: predictions are written as {ending}, as .zip with the {ending[1:].upper()} in it, or as .parquet. "
            f"Name one of those: --out {out.with_suffix(ending)}{other}"
        )
    if layout.inner is not None and out.suffix.lower() != ".zip":
        raise DataError(
            f"--inner {layout.inner}: names the file in a zip, and {out} is none. "
            f"Leave it out, or give --out {out.with_suffix('.zip')}"
        )


def _require_finite(chunk: Predictions) -> None:
    spoilt = ~np.isfinite(chunk.probabilities).all(axis=1)
    for row in np.flatnonzero(spoilt).tolist():
        if chunk.ids[row] not in chunk.unreadable:
            raise ModelError(
                f"{chunk.ids[row]}: the model answers with no number (NaN). Its weights are spoilt: train it "
                "again, or take an earlier checkpoint."
            )


def _incomplete(unreadable: dict[str, str]) -> str:
    listed = ", ".join(f"{name} ({reason})" for name, reason in list(unreadable.items())[:5])
    more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
    return (
        f"{len(unreadable)} of the images could not be read, and this form has no row for one without an answer: "
        f"{listed}{more}. Put images that can be read in their place, or hand in the full table."
    )


@contextmanager
def _writer(path: Path, out: Path, layout: Layout) -> Iterator[Callable[[Predictions], None]]:
    """Yield a function that adds the rows of some images to a file of the kind that `out` is by its ending."""
    if out.suffix.lower() == PARQUET:
        with parquet_writer(path, layout.columns) as add:
            yield add
        return
    with _open(path, out, layout) as file:
        if layout.header:
            _write(file, [[column.name for column in layout.columns]], layout.delimiter)
        yield lambda chunk: _write(file, _rows(chunk, layout), layout.delimiter)


@contextmanager
def _open(path: Path, out: Path, layout: Layout) -> Iterator[TextIO]:
    """Open `path` for text: the file itself, or the only member of a zip, by the ending of `out`."""
    # `surrogateescape`: a name that is not UTF-8 on the disk goes back as the bytes that it had there.
    name = member_of(out, layout)
    if name is None:
        with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        return
    member = zipfile.ZipInfo(name)  # dated 1980: the same predictions give the same bytes
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open(member, "w", force_zip64=True) as stream,  # its length is not known yet
        io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


def _write(file: TextIO, rows: Iterable[list[str]], delimiter: str) -> None:
    plain = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    careful = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # csv leaves a lone \r unquoted, and then takes it for the end of the line
        (careful if "\r" in "".join(row) else plain).writerow(row)


def _rows(chunk: Predictions, layout: Layout) -> Iterator[list[str]]:
    columns, made = layout.columns, safe_cell if layout.safe_cells else str
    table = zip(*(map(made, column.cells(chunk)) for column in columns), strict=True)
    for name, cells in zip(chunk.ids, table, strict=True):
        if name in chunk.unreadable:
            yield [cell if column.always else "" for column, cell in zip(columns, cells, strict=True)]
        else:
            yield list(cells)
