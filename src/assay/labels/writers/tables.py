"""Writers of tables for fastai and Kaggle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.files import whole
from assay.labels.file_kinds import is_image
from assay.labels.readers.image_names import Wanted
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.writers.shared import Written, class_lists, stems
from assay.messages import quoted


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
