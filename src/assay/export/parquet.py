"""Predictions as a Parquet file: the columns of the table, with numbers as numbers and null for what is not known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.export.columns import Column
from assay.export.submission_form import Layout
from assay.labels.shards import parquet_library
from assay.predictions.predict import Predictions

ROWS = 1 << 14  # of a group: those of a shard stay together where there are more


def require_parquet(out: Path, layout: Layout) -> None:
    """Raise DataError where this layout is one of text only."""
    given = {"--form integers": layout.ending != ".csv", "--like": layout.complete, "--no-header": not layout.header}
    given |= {"--inner": layout.inner is not None, "--safe-cells": layout.safe_cells}
    for option in (option for option, is_given in given.items() if is_given):
        raise DataError(f"{option}: is of text, and {out} is a Parquet file. Leave it out, or write .csv or .zip")


@contextmanager
def parquet_writer(path: Path, columns: Sequence[Column]) -> Iterator[Callable[[Predictions], None]]:
    """Yield a function that adds rows to a file; a group of rows is held at a time."""
    library, held, writers = parquet_library(), list[pl.DataFrame](), list[Any]()

    def flush() -> None:
        if not held:
            return
        table = pl.concat(held).to_arrow()
        if not writers:
            writers.append(library.ParquetWriter(path, table.schema, compression="zstd"))
        writers[0].write_table(table.cast(writers[0].schema), row_group_size=len(table))
        held.clear()

    def add(chunk: Predictions) -> None:
        held.append(_frame(chunk, columns))
        if sum(map(len, held)) >= ROWS:
            flush()

    try:
        yield add
        flush()
        if not writers:  # no image, no row
            pl.DataFrame(schema={column.name: pl.String for column in columns}).write_parquet(path)
    finally:
        for writer in writers:
            writer.close()


def _frame(chunk: Predictions, columns: Sequence[Column]) -> pl.DataFrame:
    readable = np.array([name not in chunk.unreadable for name in chunk.ids], np.bool_)
    return pl.DataFrame([_series(column, chunk, readable) for column in columns])


def _series(column: Column, chunk: Predictions, readable: np.ndarray[Any, np.dtype[np.bool_]]) -> pl.Series:
    if column.numbers is not None:
        numbers = np.asarray(column.numbers(chunk), np.float32)
        series = pl.Series(column.name, numbers)
        series = series.cast(pl.List(pl.Float32)) if numbers.ndim > 1 else series
    else:
        cells = column.cells(chunk)
        values = [cell or None for cell in cells] if column.name == "error" else cells
        series = pl.Series(column.name, values, dtype=pl.String)
    return series if column.always else series.zip_with(pl.Series(readable), pl.Series([None], dtype=series.dtype))
