"""Reader of COCO JSON: the categories of images, or each box as an image of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from assay.labels.readers.boxes import Box, cropped
from assay.labels.readers.exports import (
    HEAD,
    Export,
    Json,
    LabelledImage,
    Options,
    export_of,
    files_by_split,
    image_root,
    path_in,
)

KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class _File:
    """The contents of one COCO file by id."""

    images: Mapping[int | str, Json]
    categories: Mapping[int | str, str]
    annotations: list[Json]


def read_coco(source: Path, options: Options) -> Export:
    """Return the images of a COCO file, or of those below a folder, with the categories of their annotations.

    An image without any is of no tag, or, of one class at most, unknown. With `crop: boxes` an image is a box, and
    those of one file are a group. Raises DataError for an id that is missing, unknown or given twice.
    """
    images: list[LabelledImage] = []
    boxes: list[Box] = []
    classes: dict[str, None] = {}
    head = options.head or HEAD
    root = image_root(source, options.root)
    files = files_by_split(source, lambda path: path.suffix.lower() == ".json", "COCO annotations (.json)")
    for path, name, split in files:
        file = _read(Json.read(path))
        classes |= dict.fromkeys(file.categories.values())
        tags: dict[int | str, list[str]] = {number: [] for number in file.images}
        for annotation in file.annotations:
            number = _known(annotation, "image_id", file.images, "image")
            label = file.categories[_known(annotation, "category_id", file.categories, "category")]
            tags[number].append(label)
            if options.crop and "bbox" in annotation:
                within = path_in(root, [name.rpartition("/")[0]], file.images[number]["file_name"].text())
                boxes.append(Box.of(annotation, file.images[number], within, label, split))
        for at, (number, image) in enumerate(file.images.items(), 1):
            position = f"{at} of {name}" if len(files) > 1 else at
            located = path_in(root, [name.rpartition("/")[0]], image["file_name"].text())
            images.append(LabelledImage(position, located, {head: tags[number]}, split))
    declared = {head: list(classes)}
    if options.crop:
        return cropped(boxes, source=source, root=root, options=options, classes=declared)
    return export_of(images, source=source, unit="image", root=root, options=options, classes=declared)


def _read(file: Json) -> _File:
    images, annotations, categories = (file[key].items() for key in KEYS)
    used = {number for entry in annotations if isinstance(number := entry.plain("category_id"), int | str)}
    above = {entry["supercategory"].text() for entry in categories if "supercategory" in entry}
    names = {number: entry["name"].text() for number, entry in _by_id(categories).items()}
    kept = {number: name for number, name in names.items() if number in used or name not in above}
    return _File(_by_id(images), kept, annotations)


def _by_id(entries: list[Json]) -> dict[int | str, Json]:
    by_id: dict[int | str, Json] = {}
    for entry in entries:
        number = _id(entry["id"])
        if number in by_id:
            raise entry.fault(f"the id {number!r} is that of {by_id[number].at.rpartition(', ')[2]} too. Mend one.")
        by_id[number] = entry
    return by_id


def _id(entry: Json) -> int | str:
    return entry.value if isinstance(entry.value, int) else entry.text()


def _known(annotation: Json, key: str, known: Mapping[int | str, object], what: str) -> int | str:
    plain = annotation.plain(key)
    number = plain if isinstance(plain, int | str) else _id(annotation[key])
    if number not in known:
        raise annotation.fault(f"{key} {number!r} is the id of no {what}. Add the {what}, or remove the annotation.")
    return number
