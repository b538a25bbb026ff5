"""The formats of other tools that are read, and how a file or folder of one is recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from assay.labels.file_kinds import is_image
from assay.labels.image_files import is_foreign
from assay.labels.label_files import LOOKED_AT, form_of_file
from assay.labels.readers.annotations import (
    DATA,
    FIFTYONE,
    SYNSETS,
    read_coco,
    read_datumaro,
    read_fiftyone,
    read_imagenet,
)
from assay.labels.readers.datasets import (
    CLASSES,
    METADATA,
    SPLITS,
    STATE,
    holds_images,
    read_datasets,
    read_imagefolder,
    read_roboflow,
)
from assay.labels.readers.exports import Export, Options
from assay.labels.readers.folder import split_of
from assay.labels.readers.label_studio import read_label_studio

Reader = Callable[[Path, Options], Export]


@dataclass(frozen=True)
class Format:
    """A format: its name in messages, its reader, and the settings that it allows beside it."""

    title: str
    read: Reader
    options: tuple[str, ...] = ("root", "head", "kind")


FORMATS: dict[str, Format] = {
    "label_studio": Format("Label Studio annotations", read_label_studio),
    "datumaro": Format("annotations of Datumaro (CVAT)", read_datumaro),
    "imagenet": Format("ImageNet's lists (CVAT)", read_imagenet),
    "coco": Format("COCO annotations", read_coco, ("root", "head", "kind", "crop", "unpack")),
    "roboflow": Format("classes of Roboflow", read_roboflow),
    "imagefolder": Format("an imagefolder of Hugging Face", read_imagefolder, ("root", "heads")),
    "datasets": Format("a data set of Hugging Face", read_datasets, ("root", "heads", "unpack")),
    "fiftyone": Format("an image classification data set of FiftyOne", read_fiftyone),
}
"""The formats of other tools by the key that a plan names them with."""


def form_of(source: Path) -> str | None:
    """Return the key of FORMATS that reads a file or folder; None where it is of none of them.

    A folder with a folder for each class is none, whatever label files lie in it: a note names those.
    """
    if source.is_file():
        return "datasets" if holds_images(source) else form_of_file(source)
    if not source.is_dir() or _has_classes(source):
        return None
    for form, is_of in FOLDERS.items():
        if is_of(source):
            return form
    files = [file for folder in (source, source / "annotations") for file in sorted(folder.glob("*.json"))]
    return next(filter(None, map(form_of_file, files[:LOOKED_AT])), None)


def _holds(folder: Path, *names: str) -> bool:
    """Return whether a folder, or one in it, holds one of these files."""
    return any((path / name).is_file() for path in _folders(folder) for name in names)


FOLDERS: dict[str, Callable[[Path], bool]] = {
    "datasets": lambda folder: (
        any((folder / name).is_file() for name in (SPLITS, STATE))
        or any(map(holds_images, (path for one in _folders(folder) for path in one.glob("*.parquet"))))
    ),
    "imagenet": lambda folder: (folder / SYNSETS).is_file() and len(list(folder.glob("*.txt"))) > 1,
    "fiftyone": lambda folder: any((one / FIFTYONE).is_file() and (one / DATA).is_dir() for one in _folders(folder)),
    "roboflow": lambda folder: _holds(folder, CLASSES),
    "imagefolder": lambda folder: _holds(folder, *METADATA),
    "coco": lambda folder: _holds(folder, "_annotations.coco.json"),
}
"""How a folder of each format is recognised, the first that fits; others by a JSON file in it or in `annotations/`."""


def _folders(folder: Path) -> Iterator[Path]:
    """Yield a folder and those directly in it, without hidden ones."""
    yield folder
    yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and not is_foreign(path.name))


def _has_classes(folder: Path) -> bool:
    """Return whether images lie in folders of classes alone, below those of splits where there are any."""
    within = list(_folders(folder))[1:]
    bases = [path for path in within if split_of(path.name)] or [folder]
    classes = {path.name for base in bases for path in list(_folders(base))[1:] if _has_image(path)}
    return len(classes) > 1 and not any(map(_has_image, bases))


def _has_image(folder: Path) -> bool:
    return any(is_image(path.name) for path in folder.iterdir() if path.is_file())
