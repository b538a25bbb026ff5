"""Writers of folders with the images in them: a folder a class, Roboflow, FiftyOne, `imagefolder`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import polars as pl

from assay.errors import DataError
from assay.files import whole_folder, write_json
from assay.labels.image_files import QUIET, SYSTEM_FOLDERS
from assay.labels.readers.fiftyone import DATA, LABELS
from assay.labels.readers.folder import UNLABELLED, split_of
from assay.labels.readers.label_cells import JSON
from assay.labels.readers.roboflow import CLASSES
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.writers.shared import (
    Written,
    absolute,
    class_lists,
    link_images,
    lost_facts,
    only_head,
    parts,
    require_new,
    stems,
    without_unknown,
)
from assay.messages import quoted

NAMED = {"train": "train", "val": "validation", "test": "test"}
"""Folders of splits as Hugging Face and FiftyOne name them."""


def write_folder(samples: Samples, folder: Path) -> Written:
    """Link the images into a folder for each class, those without a label into `unlabelled/`, below those of splits.

    Raises DataError for tags, and for a class that no folder can be called.
    """
    title = "Folders of classes"
    head = only_head(samples, title)
    require_new(folder)
    if not head.multiclass:
        raise DataError(f"{title} hold one class an image, and {head.name!r} has tags. Write imagefolder, say.")
    strange = [name for name in head.classes if not _is_folder_name(name)]
    if strange:
        raise DataError(
            f"{title}: {quoted(strange)} is no name of a folder of its own. Rename it: `merge: {{old name: new name}}` "
            "under `data`."
        )
    with whole_folder(folder) as beside:
        for name, part in parts(_all_split(samples)).items():
            names = [(one or ["unlabelled"])[0] for one in class_lists(part, head)]
            link_images(part, beside / name, _unique(names, part.table["path"].to_list()))
    notes = lost_facts(samples, title, ["split"])
    without = samples.table["split"].null_count()
    if 0 < without < len(samples):
        notes = (*notes, f"{without:,} images without a split are in train/.")
    if head.name != "label":
        notes = (*notes, f"{title} call their head 'label': {head.name!r} is read as that.")
    return Written({"folder": absolute(folder)}, notes)


def _all_split(samples: Samples) -> Samples:
    """Return the samples with those without a split in train, where others have one: classes lie below splits."""
    if not samples.table["split"].is_not_null().any():
        return samples
    return replace(samples, table=samples.table.with_columns(pl.col("split").fill_null("train")))


def _is_folder_name(name: str) -> bool:
    folded = name.casefold()
    taken = folded in UNLABELLED | SYSTEM_FOLDERS | QUIET or split_of(name) is not None
    return not (taken or "/" in name or "\0" in name or name.startswith(".") or len(name.encode()) > 255)


def _unique(folders: list[str], paths: list[str]) -> list[str]:
    """Return the names of images in their folders: the last part of their path, or all of it where two share that."""
    short = [f"{folder}/{PurePosixPath(path).name}" for folder, path in zip(folders, paths, strict=True)]
    counts = Counter(short)
    return [
        name if counts[name] == 1 else f"{folder}/{path.replace('/', '-')}"
        for name, folder, path in zip(short, folders, paths, strict=True)
    ]


def write_roboflow(samples: Samples, folder: Path) -> Written:
    """Link the images into a folder for each split, with `_classes.csv` in each."""
    title = "Files of Roboflow"
    head = only_head(samples, title)
    require_new(folder)
    strange = [name for name in head.classes if name != name.strip() or name == "filename"]
    if strange:
        raise DataError(f"{title}: {quoted(strange)} is no name of a column there. Rename it: `merge: {{...}}`.")
    known = without_unknown(samples, title, unlabelled=False)
    with whole_folder(folder) as beside:
        for name, part in parts(known.samples, {"train": "train", "val": "valid", "test": "test"}).items():
            link_images(part, beside / name)
            lists = [set(one or ()) for one in class_lists(part, head)]
            flags = {one: [int(one in classes) for classes in lists] for one in head.classes}
            pl.DataFrame({"filename": part.table["path"], **flags}).write_csv(beside / name / CLASSES)
    data = {"roboflow": absolute(folder), "head": head.name, "kind": head.kind}
    return Written(data, (*known.notes, *lost_facts(known.samples, title, ["split"])))


def write_fiftyone(samples: Samples, folder: Path) -> Written:
    """Link the images into `data/` with `labels.json` beside it, in a folder for each split."""
    title = "Classification data sets of FiftyOne"
    head = only_head(samples, title)
    require_new(folder)
    known = without_unknown(samples, title, unlabelled=True)
    with whole_folder(folder) as beside:
        for name, part in parts(known.samples, NAMED).items():
            paths = part.table["path"].to_list()
            names, twice = stems(paths, lambda _: True)
            if twice:
                raise DataError(
                    f"{title} name images without their ending, and {twice} of them are the same then. Rename them, or "
                    "write another format."
                )
            link_images(part, beside / name / DATA)
            targets = {
                stem: None
                if one is None
                else head.index[one[0]]
                if head.multiclass
                else [head.index[tag] for tag in one]
                for stem, one in zip(names, class_lists(part, head), strict=True)
            }
            write_json(beside / name / LABELS, {"classes": list(head.classes), "labels": targets})
    data = {"fiftyone": absolute(folder), "head": head.name, "kind": head.kind}
    return Written(data, (*known.notes, *lost_facts(known.samples, title, ["split"])))


# `imagefolder` of Hugging Face.


def write_imagefolder(samples: Samples, folder: Path) -> Written:
    """Link the images into a folder for each split, with `metadata.csv` in each; tags are JSON lists."""
    return _imagefolder(
        samples, folder, "metadata.csv", lambda frame, path: frame.write_csv(path, quote_style="always")
    )


def write_imagefolder_jsonl(samples: Samples, folder: Path) -> Written:
    """Link the images as `write_imagefolder` does, with `metadata.jsonl`."""
    return _imagefolder(samples, folder, "metadata.jsonl", lambda frame, path: frame.write_ndjson(path))


def write_imagefolder_parquet(samples: Samples, folder: Path) -> Written:
    """Link the images as `write_imagefolder` does, with `metadata.parquet`."""
    return _imagefolder(samples, folder, "metadata.parquet", lambda frame, path: frame.write_parquet(path))


def _imagefolder(samples: Samples, folder: Path, name: str, write: Callable[[pl.DataFrame, Path], object]) -> Written:
    title = "Image folders of Hugging Face"
    require_new(folder)
    known = without_unknown(samples, title, unlabelled=True)
    columns = head_columns(samples, title)
    with whole_folder(folder) as beside:
        for split, part in parts(known.samples, NAMED).items():
            link_images(part, beside / split)
            labels = [
                _labels(part, head, listed=not name.endswith(".csv")).alias(columns[head.name]) for head in part.space
            ]
            frame = pl.DataFrame([part.table["path"].alias("file_name"), *labels, *group_and_weight(part)])
            write(frame, beside / split / name)
    heads = {
        head.name: {"column": columns[head.name], "kind": head.kind, "classes": list(head.classes)}
        | ({} if head.multiclass else {"separator": JSON})
        for head in samples.space
    }
    return Written({"imagefolder": absolute(folder), "heads": heads}, known.notes)


def head_columns(samples: Samples, title: str) -> dict[str, str]:
    """Return the column of each head. Raises DataError for a head called as another column."""
    taken = ("file_name", "image", "group", "weight", "split")
    strange = [head.name for head in samples.space if head.name in taken or head.name != head.name.strip()]
    if strange:
        raise DataError(f"{title} have a column {quoted(strange)} of another meaning. Name the head otherwise.")
    return {head.name: head.name for head in samples.space}


def _labels(samples: Samples, head: Head, *, listed: bool) -> pl.Series:
    cells = samples.table[f"label:{head.name}"]
    if head.multiclass or listed:
        return cells
    texts = [None if tags is None else json.dumps(tags, ensure_ascii=False) for tags in cells.to_list()]
    return pl.Series(texts, dtype=pl.String)


def group_and_weight(samples: Samples) -> list[pl.Series]:
    """Return the columns `group` and `weight`, where any image has one; the weight is that of the first head."""
    weights = pl.Series("weight", samples.weights()[:, 0])
    columns = [samples.table["group"]] if samples.table["group"].is_not_null().any() else []
    return [*columns, *([weights] if (weights != 1).any() else [])]
