"""Reader of ImageNet's lists, which CVAT exports: `synsets.txt`, and lines `image 3` of a list for each subset."""

from __future__ import annotations

import re
from pathlib import Path

from assay.errors import DataError
from assay.labels.readers.exports import HEAD, Export, Json, LabelledImage, Options, export_of, files_by_split, path_in
from assay.labels.readers.text_files import read_lines, require_file
from assay.messages import printable

SYNSETS = "synsets.txt"


def read_imagenet(source: Path, options: Options) -> Export:
    """Return the images of the lists beside `synsets.txt`, whose lines are the classes.

    `source` is a list, or the folder of several. A line is an image, with quotes about a name that has blanks
    (`"a b".jpg 0`), and the positions of its classes. Raises DataError for a line that is none.
    """
    folder = source if source.is_dir() else source.parent
    if not source.is_dir():
        require_file(source, "Check the path of the list, or give the folder that it lies in.")
    root, head = options.root or folder, options.head or HEAD
    classes = [line for line in read_lines(folder / SYNSETS) if line]
    files = files_by_split(
        source, lambda path: path.suffix == ".txt" and path.name != SYNSETS and path.parent == folder, "list (.txt)"
    )
    images: list[LabelledImage] = []
    for path, name, split in files:
        for number, line in enumerate(read_lines(path), 1):
            if not line:
                continue
            at = f"{printable(path)}, line {number}"
            match = re.fullmatch(r'(?:"(?P<stem>.+)"(?P<ending>\S*)|(?P<name>\S+))(?P<labels>(\s+\d{1,9})*)', line)
            if match is None:
                raise DataError(f'{at}: {line!r} is no image with numbers of classes, such as "a b".jpg 0. Mend it.')
            labels = [Json(int(text), at).choice(classes, "class") for text in match["labels"].split()]
            image = match["name"] or f"{match['stem']}{match['ending']}"
            located = path_in(root, ["", "images", path.stem, f"images/{path.stem}"], image)
            images.append(
                LabelledImage(f"{number} of {name}" if len(files) > 1 else number, located, {head: labels}, split)
            )
    return export_of(images, source=source, unit="line", root=root, options=options, classes={head: classes})
