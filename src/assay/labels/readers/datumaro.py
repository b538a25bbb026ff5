"""Reader of Datumaro's JSON, which CVAT exports: the labels of items."""

from __future__ import annotations

from pathlib import Path

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


def read_datumaro(source: Path, options: Options) -> Export:
    """Return the items of a Datumaro file, or of those in `annotations/` below a folder, a file a subset.

    Labels and the labels of shapes count. Raises DataError for a label that is no position in the categories.
    """
    images: list[LabelledImage] = []
    classes: dict[str, None] = {}
    head = options.head or HEAD
    root = image_root(source, options.root)
    files = files_by_split(source, lambda path: path.suffix.lower() == ".json", "annotations of Datumaro (.json)")
    for path, name, split in files:
        file = Json.read(path)
        names = [entry["name"].text() for entry in file["categories"]["label"].items("labels")]
        classes |= dict.fromkeys(names)
        for at, item in enumerate(file["items"].items(), 1):
            entries = [entry["label_id"] for entry in item.items("annotations") if "label_id" in entry]
            labels = [entry.choice(names, "label") for entry in entries]
            media = next((item[key] for key in ("image", "media") if key in item), None)
            image = (media["path"] if media is not None and "path" in media else item["id"]).text()
            position = f"{at} of {name}" if len(files) > 1 else at
            located = path_in(root, ["", f"images/{path.stem}", "images"], image)
            images.append(LabelledImage(position, located, {head: labels}, split))
    declared = {head: list(classes)}
    return export_of(images, source=source, unit="item", root=root, options=options, classes=declared)
