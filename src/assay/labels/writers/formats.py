"""The formats that labels are written in."""

from __future__ import annotations

from pathlib import Path

from assay.labels.samples import Samples
from assay.labels.writers.coco import write_coco
from assay.labels.writers.datasets import write_datasets
from assay.labels.writers.datumaro import write_datumaro, write_imagenet
from assay.labels.writers.folders import (
    write_fiftyone,
    write_folder,
    write_imagefolder,
    write_imagefolder_jsonl,
    write_imagefolder_parquet,
    write_roboflow,
)
from assay.labels.writers.label_studio import write_label_studio, write_label_studio_csv, write_label_studio_min
from assay.labels.writers.shared import Writer, Written
from assay.labels.writers.table import write_table
from assay.labels.writers.tables import write_fastai, write_kaggle, write_kaggle_onehot


def _table(samples: Samples, path: Path) -> Written:
    return Written(write_table(samples, path))


WRITERS: dict[str, Writer] = {
    "table": _table,
    "folder": write_folder,
    "label_studio": write_label_studio,
    "label_studio_min": write_label_studio_min,
    "label_studio_csv": write_label_studio_csv,
    "datumaro": write_datumaro,
    "imagenet": write_imagenet,
    "coco": write_coco,
    "roboflow": write_roboflow,
    "imagefolder": write_imagefolder,
    "imagefolder_jsonl": write_imagefolder_jsonl,
    "imagefolder_parquet": write_imagefolder_parquet,
    "datasets": write_datasets,
    "fiftyone": write_fiftyone,
    "fastai": write_fastai,
    "kaggle": write_kaggle,
    "kaggle_onehot": write_kaggle_onehot,
}
"""The formats that labels are written in, by the name that `assay export --labels` takes."""
