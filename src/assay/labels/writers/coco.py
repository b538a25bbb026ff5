"""Writer of COCO JSON with image-level categories."""

from __future__ import annotations

from pathlib import Path

from assay.files import whole_folder, write_json
from assay.labels.samples import Samples
from assay.labels.shards import ImageFile
from assay.labels.writers.shared import (
    DEFAULT,
    Written,
    absolute,
    class_lists,
    lost_facts,
    only_head,
    parts,
    require_new,
    without_unknown,
)

TITLE = "COCO annotations"


def write_coco(samples: Samples, folder: Path) -> Written:
    """Write a JSON file for each split: an annotation without a box for each class of an image.

    Widths and heights are those in the header of each image, without its orientation.
    """
    head = only_head(samples, TITLE)
    require_new(folder)
    known = without_unknown(samples, TITLE, unlabelled=True, absent_is_none=True)
    categories = [{"id": k, "name": name, "supercategory": head.name} for k, name in enumerate(head.classes, 1)]
    with whole_folder(folder) as beside:
        for name, part in parts(known.samples).items():
            images: list[dict[str, object]] = []
            annotations: list[dict[str, object]] = []
            paths = zip(part.table["path"], part.paths, class_lists(part, head), strict=True)
            for number, (path, file, classes) in enumerate(paths, 1):
                images.append({"id": number, "file_name": path} | _size(file))
                for one in classes or ():
                    about = {"id": len(annotations) + 1, "image_id": number, "category_id": head.index[one] + 1}
                    annotations.append({**about, "iscrowd": 0, "area": 0})
            content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
            write_json(beside / f"{name or DEFAULT}.json", content | {"categories": categories})
    data = {"coco": absolute(folder), "root": absolute(samples.root), "head": head.name, "kind": head.kind}
    return Written(data, (*known.notes, *lost_facts(known.samples, TITLE, ["split"])))


def _size(path: ImageFile) -> dict[str, int]:
    """Return width and height of an image; nothing where it has none that can be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as file, Image.open(file) as image:
            return {"width": image.width, "height": image.height}
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return {}
