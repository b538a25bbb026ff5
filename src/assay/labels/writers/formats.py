"""The formats that labels are written in, and what all of them have to do before they write."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from assay.errors import DataError
from assay.files import whole_folder
from assay.labels.samples import Samples
from assay.labels.writers.annotations import (
    write_coco,
    write_datumaro,
    write_imagenet,
    write_label_studio,
    write_label_studio_csv,
    write_label_studio_min,
)
from assay.labels.writers.folders import write_datasets, write_fiftyone, write_folder, write_imagefolder, write_roboflow
from assay.labels.writers.shared import Written
from assay.labels.writers.table import write_fastai, write_kaggle, write_kaggle_onehot, write_table
from assay.messages import printable, quoted


@dataclass(frozen=True)
class Format:
    """A format: what it is called in messages, how it is written, and what it holds.

    `write` takes samples whose labels the format can hold, a new folder or the path of a file, and the title. It
    returns what reads the labels back beside `key` and the root of the images, and notes.
    """

    title: str
    write: Callable[[Samples, Path, str], Written]
    key: str  # of `data:`, which names what is written
    ending: str = ""  # of the file; without one it is a folder
    within: str = ""  # the part of the folder that is read
    holds_images: bool = False
    several: bool = False  # heads
    unlabelled: bool = True  # images of unknown label
    absent_is_none: bool = False  # an image without tags is known to have none
    facts: tuple[str, ...] = ("split",)  # of split, group and weight


STUDIO = partial(Format, "Label Studio's files", key="label_studio", several=True, facts=("split", "group"))
HUGGING_FACE = partial(Format, holds_images=True, several=True, facts=("split", "group", "weight"))
IMAGE_FOLDERS = partial(HUGGING_FACE, "Image folders of Hugging Face", key="imagefolder")
TABLES = partial(Format, key="table", ending=".csv", unlabelled=False)
ANNOTATIONS = partial(Format, absent_is_none=True)

FORMATS: dict[str, Format] = {
    "folder": Format("Folders of classes", write_folder, "folder", holds_images=True),
    "label_studio": STUDIO(write_label_studio, ending=".json"),
    "label_studio_min": STUDIO(write_label_studio_min, ending=".json"),
    "label_studio_csv": STUDIO(write_label_studio_csv, ending=".csv"),
    "datumaro": ANNOTATIONS("annotations of Datumaro", write_datumaro, "datumaro", within="annotations"),
    "imagenet": ANNOTATIONS("ImageNet's lists", write_imagenet, "imagenet"),
    "coco": ANNOTATIONS("COCO annotations", write_coco, "coco"),
    "roboflow": Format("Files of Roboflow", write_roboflow, "roboflow", holds_images=True, unlabelled=False),
    "imagefolder": IMAGE_FOLDERS(partial(write_imagefolder, ending="csv")),
    "imagefolder_jsonl": IMAGE_FOLDERS(partial(write_imagefolder, ending="jsonl")),
    "imagefolder_parquet": IMAGE_FOLDERS(partial(write_imagefolder, ending="parquet")),
    "datasets": HUGGING_FACE("Data sets of Hugging Face", write_datasets, "datasets"),
    "fiftyone": Format("Classification data sets of FiftyOne", write_fiftyone, "fiftyone", holds_images=True),
    "fastai": TABLES("Tables of fastai", write_fastai),
    "kaggle": TABLES("Tables of Kaggle", write_kaggle, facts=()),
    "kaggle_onehot": TABLES("Tables of Kaggle", write_kaggle_onehot, facts=()),
}


def write_labels(form: Format, samples: Samples, path: Path) -> Written:
    """Write labels in a format, to a file or to a new folder. Raises DataError for what it cannot hold."""
    if not form.several and len(samples.space) != 1:
        names = quoted(head.name for head in samples.space)
        raise DataError(
            f"{form.title} hold one head, and there are {len(samples.space)} ({names}). Say which: --head NAME."
        )
    if form.ending and path.suffix.lower() != form.ending:
        raise DataError(f"{printable(path)}: is no {form.ending} file by its ending. Name it {path.stem}{form.ending}.")
    if not form.ending and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{printable(path)}: exists already. Name a new folder with --out.")
    known, notes = _without_unknown(samples, form)
    if form.ending:
        written = form.write(known, path, form.title)
    else:
        with whole_folder(path) as beside:
            written = form.write(known, beside, form.title)
    data: dict[str, object] = {form.key: os.path.abspath(path / form.within)}
    if not form.holds_images:
        data["root"] = os.path.abspath(samples.root)
    return Written(data | dict(written.data), (*notes, *_lost_facts(known, form), *written.notes))


def _without_unknown(samples: Samples, form: Format) -> tuple[Samples, list[str]]:
    """Return the samples without labels that would be read otherwise, and notes that count them.

    Those are images whose tags are known in part; those without a label, unless the format has such, and those of
    unknown tags where an image without tags is known to have none.
    """
    keep, notes = np.ones(len(samples), np.bool_), []
    for head, _, codes in samples.space.each(samples.codes()):
        known = head.known(codes)
        has_unlabelled = form.unlabelled and (head.multiclass or not form.absent_is_none)
        for gone, what in (
            (known & head.any_cell(codes < 0), "tags that are unknown beside known ones"),
            (keep & ~known & (not has_unlabelled), "no known label"),
        ):
            keep &= ~gone
            if gone.any():
                notes.append(
                    f"{head.name}: {int(gone.sum()):,} images have {what}, which {form.title} cannot say: they are "
                    "left out. --labels table keeps them."
                )
    if not keep.any():
        raise DataError(
            f"None of the {len(samples):,} images has labels that {form.title} can hold. Try --labels table."
        )
    return samples.take(np.flatnonzero(keep)), notes


def _lost_facts(samples: Samples, form: Format) -> tuple[str, ...]:
    """Return a note on split, group and weight, as far as there are any and the format holds none."""
    has = {fact: bool(samples.table[fact].is_not_null().any()) for fact in ("split", "group")}
    has["weight"] = bool((samples.weights() != 1).any())
    lost = [fact for fact, there in has.items() if there and fact not in form.facts]
    return (f"{form.title} hold no {' and no '.join(lost)}: not written.",) if lost else ()


def with_heads(samples: Samples, names: Sequence[str]) -> Samples:
    """Return the samples with these heads alone. Raises DataError for a head that is not there."""
    known = {head.name: head for head in samples.space}
    strange = next((name for name in names if name not in known), None)
    if strange is not None:
        raise DataError(f"--head {strange}: there is no such head; there are {quoted(known)}.")
    return replace(samples, space=replace(samples.space, heads=tuple(known[name] for name in names)))


WRITERS: dict[str, Callable[[Samples, Path], Written]] = {
    "table": lambda samples, path: Written(write_table(samples, path)),
    **{name: partial(write_labels, form) for name, form in FORMATS.items()},
}
"""The formats that labels are written in, by the name that `assay export --labels` takes."""
