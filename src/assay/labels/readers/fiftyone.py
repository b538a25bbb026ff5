"""Reader of FiftyOne's image classification directory: `data/` and `labels.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from assay.labels.image_files import walk
from assay.labels.readers.exports import HEAD, Export, Json, LabelledImage, Options, export_of, files_by_split

LABELS = "labels.json"
DATA = "data"


def read_fiftyone(source: Path, options: Options) -> Export:
    """Return the images of `data/` with the labels of `labels.json`, also of a directory for each split.

    A target is a class, its position in `classes`, an object with a `label`, a list of them, or null (unknown). An
    image that the file does not name is unknown too.
    """
    folder = source if source.is_dir() else source.parent
    head = options.head or HEAD
    images: list[LabelledImage] = []
    classes: dict[str, None] = {}
    files = files_by_split(source, lambda path: path.name == LABELS, LABELS)
    for path, name, split in files:
        file = Json.read(path)
        names = [entry.text() for entry in file.items("classes")]
        classes |= dict.fromkeys(names)
        targets = {key: file["labels"].get(key) for key in file["labels"].names()}
        data = options.root or path.parent / DATA
        above = data.relative_to(folder).as_posix() if data.is_relative_to(folder) else ""
        by_stem = {image.rpartition(".")[0] or image: image for image in walk(data).images}
        for at, stem in enumerate([*targets, *(stem for stem in by_stem if stem not in targets)], 1):
            labels = _labels(targets.get(stem), names)
            position = f"{at} of {name}" if len(files) > 1 else at
            image = by_stem.get(stem, stem)
            images.append(LabelledImage(position, image if options.root else f"{above}/{image}", {head: labels}, split))
    return export_of(
        images,
        source=source,
        unit="label",
        root=options.root or folder,
        options=options,
        classes={head: list(classes)} if classes else None,
    )


def _labels(target: Json | None, classes: Sequence[str]) -> list[str] | None:
    if target is None:
        return None
    entries = target.items() if isinstance(target.value, list) else [target]
    entries = [entry["label"] if isinstance(entry.value, Mapping) else entry for entry in entries]
    return [
        entry.choice(classes, "class") if isinstance(entry.value, int) and classes else entry.text()
        for entry in entries
    ]
