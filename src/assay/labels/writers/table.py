"""Writers of tables: a CSV file with the `data:` mapping that reads it back, and those of fastai and Kaggle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from assay.errors import DataError
from assay.files import whole
from assay.labels.file_kinds import is_image
from assay.labels.readers.image_names import Wanted
from assay.labels.readers.label_cells import JSON
from assay.labels.samples import Samples
from assay.labels.space import Codes, Head
from assay.labels.writers.shared import Written, class_lists, stems
from assay.messages import printable, quoted


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
        column, labels = _free(head.name, taken), labels.cast(pl.String)
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
    texts = (samples.table[name].cast(pl.String) for name in ("split", "group"))
    facts = {text.name: text for text in texts if text.is_not_null().any()}
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


# Tables for fastai and Kaggle.


def write_fastai(samples: Samples, path: Path, title: str) -> Written:
    """Write `name,label,is_valid` as CSV; tags are joined by the first of a blank, `;` and `|` that is in none.

    Without any split there is no `is_valid`. Test images, which fastai keeps apart, are left out.
    """
    head, notes = samples.space.heads[0], []
    tested = (samples.table["split"] == "test").fill_null(False)
    if tested.any():
        notes.append(f"{int(tested.sum()):,} test images are left out: `is_valid` tells training and validation alone.")
        samples = samples.take((~tested).arg_true().to_numpy())
    entry, cells = _joined(samples, head, title, (" ", ";", "|"))
    columns = [samples.table["path"].alias("name"), pl.Series("label", cells, dtype=pl.String)]
    data: dict[str, object] = {"image": "name", "heads": {head.name: {"column": "label", **entry}}}
    if samples.table["split"].is_not_null().any():
        flags = (samples.table["split"] == "val").fill_null(False)
        columns.append(flags.cast(pl.String).str.to_titlecase().alias("is_valid"))
        data["split"] = {"column": "is_valid", "values": {"True": "val", "False": "train"}}
    _write(path, columns)
    if "separator" in entry:
        notes.append(f"Tags are joined: label_delim={entry['separator']!r} in fastai.")
    return Written(data, tuple(notes))


def write_kaggle(samples: Samples, path: Path, title: str) -> Written:
    """Write `id,label` as CSV: ids without the ending of the image, tags joined by blanks."""
    head = samples.space.heads[0]
    entry, cells = _joined(samples, head, title, (" ",))
    return _with_ids(
        path, samples, [pl.Series("label", cells, dtype=pl.String)], {head.name: {"column": "label", **entry}}
    )


def write_kaggle_onehot(samples: Samples, path: Path, title: str) -> Written:
    """Write `id` and a column of 0 and 1 for each class as CSV."""
    head = samples.space.heads[0]
    strange = [name for name in head.classes if name != name.strip() or name == "id"]
    if strange:
        raise DataError(f"{title}: {quoted(strange)} is no name of a column there. Rename it: `merge: {{...}}`.")
    lists = [set(one or ()) for one in class_lists(samples, head)]
    flags = [pl.Series(name, [int(name in one) for one in lists]) for name in head.classes]
    return _with_ids(path, samples, flags, {head.name: {"columns": list(head.classes), "kind": head.kind}})


def _joined(
    samples: Samples, head: Head, title: str, separators: tuple[str, ...]
) -> tuple[dict[str, object], list[str]]:
    """Return the settings of a head beside its column, and its cells. Raises DataError where no separator is free."""
    lists = [one or [] for one in class_lists(samples, head)]
    if head.multiclass:
        return {"kind": head.kind, "classes": list(head.classes)}, [one[0] for one in lists]
    free = next((mark for mark in separators if not any(mark in name for name in head.classes)), None)
    if free is None or any(name != name.strip() for name in head.classes):
        raise DataError(
            f"{title} join tags by {' or '.join(map(repr, separators))}, which {quoted(head.classes)} hold. Write "
            "kaggle_onehot, or rename them: `merge: {old name: new name}` under `data`."
        )
    entry: dict[str, object] = {"kind": head.kind, "classes": list(head.classes), "separator": free, "none": ""}
    return entry, [free.join(one) for one in lists]


def _with_ids(path: Path, samples: Samples, columns: Sequence[pl.Series], heads: Mapping[str, object]) -> Written:
    # A name with quotes about it, %20 or the like is matched to files otherwise than it stands.
    names, kept = stems(
        samples.table["path"].to_list(), lambda name: not is_image(name) and "/".join(Wanted.of(name).parts) == name
    )
    _write(path, [pl.Series("id", names, dtype=pl.String), *columns])
    note = (f"{kept:,} ids keep the ending of their image: without it two are the same, or no ids.",) if kept else ()
    return Written({"image": "id", "heads": heads}, note)


def _write(path: Path, columns: Sequence[pl.Series]) -> None:
    with whole(path) as beside:
        pl.DataFrame(columns).write_csv(beside, quote_style="non_numeric")
