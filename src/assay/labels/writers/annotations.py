"""Writers of label files without images: COCO JSON, Datumaro's JSON and ImageNet's lists (both for CVAT)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from assay.errors import DataError
from assay.files import write_json, write_text
from assay.labels.readers.annotations import SYNSETS
from assay.labels.samples import Samples
from assay.labels.shards import ImageFile
from assay.labels.writers.shared import DEFAULT, Written, class_lists, of_head, parts


def write_coco(samples: Samples, folder: Path, title: str) -> Written:
    """Write a JSON file for each split: an annotation without a box for each class of an image.

    Widths and heights are those in the header of each image, without its orientation.
    """
    head = samples.space.heads[0]
    categories = [{"id": k, "name": name, "supercategory": head.name} for k, name in enumerate(head.classes, 1)]
    for name, part in parts(samples).items():
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        paths = zip(part.table["path"], part.paths, class_lists(part, head), strict=True)
        for number, (path, file, classes) in enumerate(paths, 1):
            images.append({"id": number, "file_name": path} | _size(file))
            for one in classes or ():
                about = {"id": len(annotations) + 1, "image_id": number, "category_id": head.index[one] + 1}
                annotations.append({**about, "iscrowd": 0, "area": 0})
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        write_json(folder / f"{name or DEFAULT}.json", content | {"categories": categories})
    return of_head(head)


def _size(path: ImageFile) -> dict[str, int]:
    """Return width and height of an image; nothing where it has none that can be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as file, Image.open(file) as image:
            return {"width": image.width, "height": image.height}
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return {}


def write_datumaro(samples: Samples, folder: Path, title: str) -> Written:
    """Write `annotations/SUBSET.json` for each split, with the path of each image."""
    head = samples.space.heads[0]
    labels = [{"name": name, "parent": "", "attributes": []} for name in head.classes]
    about = {"info": {}, "categories": {"label": {"labels": labels, "attributes": []}}}
    for name, part in parts(samples).items():
        items = []
        for path, classes in zip(part.table["path"], class_lists(part, head), strict=True):
            annotations = [
                {"id": k, "type": "label", "attributes": {}, "group": 0, "label_id": head.index[one]}
                for k, one in enumerate(classes or ())
            ]
            stem = str(PurePosixPath(path).with_suffix(""))
            items.append({"id": stem, "annotations": annotations, "attr": {}, "image": {"path": path}})
        write_json(folder / "annotations" / f"{name or DEFAULT}.json", about | {"items": items})
    return of_head(head)


def write_imagenet(samples: Samples, folder: Path, title: str) -> Written:
    """Write `synsets.txt`, and a list of images with the positions of their classes for each split.

    Raises DataError for a name that a line cannot hold.
    """
    head = samples.space.heads[0]
    strange = next((one for one in head.classes if one != one.strip() or "\n" in one or "\r" in one), None)
    if strange is not None:
        raise DataError(f"{title} hold a class a line, and {strange!r} is none. Rename it: `merge: {{...}}`.")
    write_text(folder / SYNSETS, "".join(f"{name}\n" for name in head.classes))
    for name, part in parts(samples).items():
        lines = [
            " ".join([_quoted(path, title), *(str(head.index[one]) for one in classes or ())])
            for path, classes in zip(part.table["path"], class_lists(part, head), strict=True)
        ]
        write_text(folder / f"{name or DEFAULT}.txt", "".join(f"{line}\n" for line in lines))
    return of_head(head)


def _quoted(path: str, title: str) -> str:
    """Return the name of an image in a list: with quotes about it, but not its ending, where it has blanks."""
    ending = PurePosixPath(path).suffix
    if '"' in path or "\n" in path or "\r" in path or any(one.isspace() for one in ending):
        raise DataError(f"{title} cannot hold the name {path!r}. Rename it, or write another format.")
    return f'"{path[: len(path) - len(ending)]}"{ending}' if any(one.isspace() for one in path) else path
