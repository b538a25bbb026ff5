"""Writer of a data set for Hugging Face `datasets`: Parquet files that hold the images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from assay.files import write_text
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.writers.folders import NAMED, group_and_weight, require_free_names
from assay.labels.writers.shared import Written, class_lists, fill_files, parts

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
    return pl.DataFrame([images, *(_numbers(samples, head) for head in samples.space), samples.table["group"], weights])


def _numbers(samples: Samples, head: Head) -> pl.Series:
    """Return the positions of the classes of each image; null where they are unknown."""
    lists = [None if one is None else [head.index[name] for name in one] for one in class_lists(samples, head)]
    if head.multiclass:
        return pl.Series(head.name, [None if one is None else one[0] for one in lists], dtype=pl.Int64)
    return pl.Series(head.name, lists, dtype=pl.List(pl.Int64))
