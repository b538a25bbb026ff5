"""Writers of folders with the images in them: of classes, Roboflow, FiftyOne, and Hugging Face's two."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import polars as pl

from assay.errors import DataError
from assay.files import write_json, write_text
from assay.labels.image_files import QUIET, SYSTEM_FOLDERS
from assay.labels.readers.annotations import DATA, FIFTYONE
from assay.labels.readers.datasets import CLASSES
from assay.labels.readers.folder import UNLABELLED, split_of
from assay.labels.readers.label_cells import JSON
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.writers.shared import Written, class_lists, fill_files, link_images, of_head, parts, stems
from assay.messages import quoted

NAMED = {"train": "train", "val": "validation", "test": "test"}
"""Folders of splits as Hugging Face and FiftyOne name them."""


def write_folder(samples: Samples, folder: Path, title: str) -> Written:
    """Link the images into a folder for each class, those without a label into `unlabelled/`, below those of splits.

    Raises DataError for tags, and for a class that no folder can be called.
    """
    head, splits = samples.space.heads[0], samples.table["split"]
    if not head.multiclass:
        raise DataError(f"{title} hold one class an image, and {head.name!r} has tags. Write imagefolder, say.")
    strange = [name for name in head.classes if not _is_folder_name(name)]
    if strange:
        raise DataError(
            f"{title}: {quoted(strange)} is no name of a folder of its own. Rename it: `merge: {{old name: new name}}` "
            "under `data`."
        )
    notes = []
    without = splits.null_count()
    if 0 < without < len(samples):  # classes lie below splits
        samples = replace(samples, table=samples.table.with_columns(pl.col("split").fill_null("train")))
        notes.append(f"{without:,} images without a split are in train/.")
    for name, part in parts(samples).items():
        names = [(one or ["unlabelled"])[0] for one in class_lists(part, head)]
        link_images(part, folder / name, _unique(names, part.table["path"].to_list()))
    if head.name != "label":
        notes.append(f"{title} call their head 'label': {head.name!r} is read as that.")
    return Written({}, tuple(notes))


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


def write_roboflow(samples: Samples, folder: Path, title: str) -> Written:
    """Link the images into a folder for each split, with `_classes.csv` in each."""
    head = samples.space.heads[0]
    strange = [name for name in head.classes if name != name.strip() or name == "filename"]
    if strange:
        raise DataError(f"{title}: {quoted(strange)} is no name of a column there. Rename it: `merge: {{...}}`.")
    for name, part in parts(samples, {"train": "train", "val": "valid", "test": "test"}).items():
        link_images(part, folder / name)
        lists = [set(one or ()) for one in class_lists(part, head)]
        flags = {one: [int(one in classes) for classes in lists] for one in head.classes}
        pl.DataFrame({"filename": part.table["path"], **flags}).write_csv(folder / name / CLASSES)
    return of_head(head)


def write_fiftyone(samples: Samples, folder: Path, title: str) -> Written:
    """Link the images into `data/` with `labels.json` beside it, in a folder for each split."""
    head = samples.space.heads[0]
    for name, part in parts(samples, NAMED).items():
        names, twice = stems(part.table["path"].to_list(), lambda _: True)
        if twice:
            raise DataError(
                f"{title} name images without their ending, and {twice} of them are the same then. Rename them, or "
                "write another format."
            )
        link_images(part, folder / name / DATA)
        targets: dict[str, int | list[int] | None] = {}
        for stem, classes in zip(names, class_lists(part, head), strict=True):
            codes = None if classes is None else [head.index[one] for one in classes]
            targets[stem] = codes[0] if codes and head.multiclass else codes
        write_json(folder / name / FIFTYONE, {"classes": list(head.classes), "labels": targets})
    return of_head(head)


# `imagefolder` of Hugging Face.


def write_imagefolder(samples: Samples, folder: Path, title: str, *, ending: str) -> Written:
    """Link the images into a folder for each split, with `metadata.csv`, `.jsonl` or `.parquet` in each.

    Tags are lists; of a CSV, JSON lists.
    """
    require_free_names(samples, title)
    for split, part in parts(samples, NAMED).items():
        link_images(part, folder / split)
        labels = [part.table[f"label:{head.name}"].alias(head.name) for head in part.space]
        frame = pl.DataFrame([part.table["path"].alias("file_name"), *labels, *group_and_weight(part)])
        frame = frame.with_columns(pl.selectors.enum().cast(pl.String))
        path = folder / split / f"metadata.{ending}"
        match ending:
            case "csv":
                texts = pl.selectors.by_dtype(pl.List(pl.String)).map_elements(_json, return_dtype=pl.String)
                frame.with_columns(texts).write_csv(path, quote_style="always")
            case "jsonl":
                frame.write_ndjson(path)
            case _:
                frame.write_parquet(path)
    heads = {
        head.name: {"column": head.name, "kind": head.kind, "classes": list(head.classes)}
        | ({} if head.multiclass else {"separator": JSON})
        for head in samples.space
    }
    return Written({"heads": heads})


def _json(tags: pl.Series) -> str:
    return json.dumps(tags.to_list(), ensure_ascii=False)


def require_free_names(samples: Samples, title: str) -> None:
    """Raise DataError for a head called as another column."""
    taken = ("file_name", "image", "group", "weight", "split")
    strange = [head.name for head in samples.space if head.name in taken or head.name != head.name.strip()]
    if strange:
        raise DataError(f"{title} have a column {quoted(strange)} of another meaning. Name the head otherwise.")


def group_and_weight(samples: Samples) -> list[pl.Series]:
    """Return the columns `group` and `weight`, where any image has one; the weight is that of the first head."""
    weights = pl.Series("weight", samples.weights()[:, 0])
    columns = [samples.table["group"].cast(pl.String)] if samples.table["group"].is_not_null().any() else []
    return [*columns, *([weights] if (weights != 1).any() else [])]


# A data set for Hugging Face `datasets`: Parquet files that hold the images.


SHARD = 256 << 20
"""Bytes of images in a file, at least one image."""


def write_datasets(samples: Samples, folder: Path, title: str) -> Written:
    """Write what `datasets.load_dataset(FOLDER)` reads: bytes of images, classes as `ClassLabel`, tags as lists.

    Not the Arrow files of its `save_to_disk`, which want offsets of 32 bits, and polars writes 64. The library takes
    the types from README.md, we from what stands in the files.
    """
    require_free_names(samples, title)
    features: dict[str, dict[str, object]] = {"image": {"_type": "Image"}}
    for head in samples.space:
        label: dict[str, object] = {"names": list(head.classes), "_type": "ClassLabel"}
        features[head.name] = label if head.multiclass else {"feature": label, "_type": "List"}
    for fact in group_and_weight(samples):
        features[fact.name] = {"dtype": "string" if fact.name == "group" else "float32", "_type": "Value"}
    description = json.dumps({"info": {"features": features}}, ensure_ascii=False)
    card = json.dumps({"dataset_info": {"features": _card(features)}}, ensure_ascii=False)  # JSON is YAML
    write_text(folder / "README.md", f"---\n{card}\n---\n")
    for name, part in parts(samples, NAMED).items():
        shards = fill_files(part.paths, range(len(part)), size=SHARD)
        for number, rows in enumerate(shards):
            file = f"{name or 'train'}-{number:05d}-of-{len(shards):05d}.parquet"
            (folder / "data").mkdir(exist_ok=True)
            frame = _frame(part.take(rows)).select(list(features))
            frame.write_parquet(folder / "data" / file, metadata={"huggingface": description})
    return Written({})


def _card(features: Mapping[str, Mapping[str, object]]) -> list[dict[str, object]]:
    """Return the columns as the head of README.md spells them."""
    listed: list[dict[str, object]] = []
    for name, kind in features.items():
        inside = kind.get("feature", kind)
        names = inside.get("names") if isinstance(inside, Mapping) else None
        if isinstance(names, list):
            label: object = {"class_label": {"names": {str(k): one for k, one in enumerate(names)}}}
        else:
            label = kind.get("dtype", "image")
        listed.append({"name": name} | ({"list": label} if "feature" in kind else {"dtype": label}))
    return listed


def _frame(samples: Samples) -> pl.DataFrame:
    paths = zip(samples.paths, samples.table["path"], strict=True)
    content = [{"bytes": path.read_bytes(), "path": name} for path, name in paths]
    images = pl.Series("image", content, dtype=pl.Struct({"bytes": pl.Binary, "path": pl.String}))
    weights = pl.Series("weight", samples.weights()[:, 0])
    return pl.DataFrame(
        [images, *(_numbers(samples, head) for head in samples.space), samples.table["group"].cast(pl.String), weights]
    )


def _numbers(samples: Samples, head: Head) -> pl.Series:
    """Return the positions of the classes of each image; null where they are unknown."""
    lists = [None if one is None else [head.index[name] for name in one] for one in class_lists(samples, head)]
    if head.multiclass:
        return pl.Series(head.name, [None if one is None else one[0] for one in lists], dtype=pl.Int64)
    return pl.Series(head.name, lists, dtype=pl.List(pl.Int64))
