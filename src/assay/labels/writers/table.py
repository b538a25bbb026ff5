"""Writer of samples as a CSV file, with the `data:` mapping that reads it back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.files import whole
from assay.labels.readers.label_cells import JSON
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.messages import printable


def write_table(samples: Samples, path: Path) -> dict[str, object]:
    """Write labels, and split, group and weight if any, as CSV; return the `data:` mapping that reads it.

    A head is a column of class names, of JSON lists, or, where tags are partly unknown, a column of 0 and 1 a
    class. Raises DataError for what a table cannot hold: a blank class name, weights that differ by head.
    """
    if path.suffix.lower() != ".csv":
        raise DataError(f"{printable(path)}: is no CSV file by its ending. Name it {path.stem}.csv.")
    columns, meanings = label_columns(samples, taken={"image"})
    with whole(path) as beside:
        pl.DataFrame([samples.table["path"].alias("image"), *columns]).write_csv(beside, quote_style="always")
    return {"table": os.path.abspath(path), "root": os.path.abspath(samples.root), "image": "image", **meanings}


def label_columns(samples: Samples, *, taken: set[str]) -> tuple[list[pl.Series], dict[str, object]]:
    """Return columns of labels, and of split, group and weight if any, and what they mean: a part of `data:`.

    The columns have other names than those `taken`. Raises as `write_table` does.
    """
    table, columns, heads = samples.table, list[pl.Series](), {}
    for head, _, codes in samples.space.each(samples.codes()):
        _require_names(head)
        heads[head.name], of_head = _head(table, head, codes, taken)
        columns += of_head
    meanings: dict[str, object] = {"heads": heads}
    for fact, cells in _facts(samples).items():
        column = _free(fact, taken)
        columns.append(cells.alias(column))
        # A split that is there for all is kept as it is: nothing is drawn.
        drawn = {} if cells.null_count() else {"val": 0, "test": 0}
        meanings[fact] = {"column": column, **drawn} if fact == "split" else column
    return columns, meanings


def _head(table: pl.DataFrame, head: Head, codes: Codes, taken: set[str]) -> tuple[dict[str, object], list[pl.Series]]:
    """Return the entry of a head in `heads`, and its columns; their names are added to `taken`."""
    labels = table[f"label:{head.name}"]
    if head.multiclass:
        column = _free(head.name, taken)
        return {"column": column, "kind": head.kind, "classes": list(head.classes)}, [labels.alias(column)]
    known = head.known(codes)
    if (codes[known] < 0).any():
        names = [_free(f"{head.name}:{name}", taken) for name in head.classes]
        flags = [pl.Series(name, codes[:, k]).replace(-1, None) for k, name in enumerate(names)]
        return {"columns": names, "kind": head.kind, "classes": list(head.classes)}, flags
    column = _free(head.name, taken)
    lists = [None if tags is None else json.dumps(tags, ensure_ascii=False) for tags in labels.to_list()]
    entry: dict[str, object] = {"column": column, "kind": head.kind, "separator": JSON, "classes": list(head.classes)}
    return entry, [pl.Series(column, lists, dtype=pl.String)]


def _facts(samples: Samples) -> dict[str, pl.Series]:
    """Return split, group and weight of each image, as far as any image has them."""
    weights = samples.weights()
    if not np.all(weights == weights[:, :1]):
        raise DataError("The weights of an image differ by head, and a table has one an image. Drop the weights.")
    facts = {name: samples.table[name] for name in ("split", "group") if samples.table[name].is_not_null().any()}
    return facts | ({"weight": pl.Series(weights[:, 0].astype(np.float64))} if np.any(weights != 1) else {})


def _require_names(head: Head) -> None:
    blank = [name for name in head.classes if not name.strip()]
    if blank:
        raise DataError(f"{head.name}: the class {blank[0]!r} is blank, which means unknown in a table. Rename it.")


def _free(name: str, taken: set[str]) -> str:
    """Return a column name like this one that is not taken yet, and add it to `taken`."""
    plain = name.strip() or "head"
    number, column = 1, plain
    while column in taken:
        number, column = number + 1, f"{plain} {number + 1}"
    taken.add(column)
    return column
