"""Readers of label files of other tools that list images: COCO JSON, Datumaro's JSON, ImageNet's lists, FiftyOne."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from assay.errors import DataError
from assay.labels.image_files import walk
from assay.labels.left_out import LeftOut
from assay.labels.readers.exports import (
    HEAD,
    Entry,
    Export,
    Json,
    LabelFile,
    LabelledImage,
    Options,
    export_of,
    files_by_split,
    image_root,
    listed_images,
    path_in,
    unpacked,
)
from assay.labels.readers.table import locate_images
from assay.labels.readers.table_files import Rows
from assay.labels.readers.text_files import read_lines, require_file
from assay.messages import printable

SYNSETS = "synsets.txt"
FIFTYONE, DATA = "labels.json", "data"


def read_coco(source: Path, options: Options) -> Export:
    """Return the images of a COCO file, or of those below a folder, with the categories of their annotations.

    An image without any is of no tag, or, of one class at most, unknown. With `crop: boxes` an image is a box, and
    those of one file are a group. Raises DataError for an id that is missing, unknown or given twice.
    """
    root = image_root(source, options.root)
    boxes: list[Box] = []

    def read(file: LabelFile) -> tuple[list[str], Iterator[Entry]]:
        content = Json.read(file.path)
        listed, annotations, entries = (content[key].items() for key in ("images", "annotations", "categories"))
        images, categories = _by_id(listed), _categories(entries, annotations)
        paths = {id_: path_in(root, [file.folder], one["file_name"].text()) for id_, one in images.items()}
        tags: dict[int | str, list[str]] = {id_: [] for id_ in images}
        for annotation in annotations:
            image = _known(annotation, "image_id", images, "image")
            tags[image].append(categories[_known(annotation, "category_id", categories, "category")])
            if options.crop and "bbox" in annotation:
                boxes.append(Box.of(annotation, images[image], paths[image], tags[image][-1], file.split))
        return [*categories.values()], ((at, paths[id_], tags[id_]) for at, id_ in enumerate(images, 1))

    files = files_by_split(source, lambda path: path.suffix.lower() == ".json", "COCO annotations (.json)")
    if not options.crop:
        return listed_images(files, read, source=source, unit="image", root=root, options=options)
    classes = dict.fromkeys(name for file in files for name in read(file)[0])
    return cropped(boxes, source=source, root=root, options=options, classes={options.head or HEAD: list(classes)})


def _categories(entries: list[Json], annotations: list[Json]) -> dict[int | str, str]:
    """Return the names of categories by id, without those that are only above others."""
    used = {number for one in annotations if isinstance(number := one.plain("category_id"), int | str)}
    above = {entry["supercategory"].text() for entry in entries if "supercategory" in entry}
    names = {number: entry["name"].text() for number, entry in _by_id(entries).items()}
    return {number: name for number, name in names.items() if number in used or name not in above}


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


def read_datumaro(source: Path, options: Options) -> Export:
    """Return the items of a Datumaro file, or of those in `annotations/` below a folder, a file a subset.

    Labels and the labels of shapes count. Raises DataError for a label that is no position in the categories.
    """
    root = image_root(source, options.root)

    def read(file: LabelFile) -> tuple[list[str], Iterator[Entry]]:
        content = Json.read(file.path)
        names = [entry["name"].text() for entry in content["categories"]["label"].items("labels")]

        def images() -> Iterator[Entry]:
            for at, item in enumerate(content["items"].items(), 1):
                entries = [entry["label_id"] for entry in item.items("annotations") if "label_id" in entry]
                labels = [entry.choice(names, "label") for entry in entries]
                media = next((item[key] for key in ("image", "media") if key in item), None)
                image = (media["path"] if media is not None and "path" in media else item["id"]).text()
                yield at, path_in(root, ["", f"images/{file.path.stem}", "images"], image), labels

        return names, images()

    files = files_by_split(source, lambda path: path.suffix.lower() == ".json", "annotations of Datumaro (.json)")
    return listed_images(files, read, source=source, unit="item", root=root, options=options)


def read_imagenet(source: Path, options: Options) -> Export:
    """Return the images of the lists beside `synsets.txt`, whose lines are the classes.

    `source` is a list, or the folder of several. A line is an image, with quotes about a name that has blanks
    (`"a b".jpg 0`), and the positions of its classes. Raises DataError for a line that is none.
    """
    folder = source if source.is_dir() else source.parent
    if not source.is_dir():
        require_file(source, "Check the path of the list, or give the folder that it lies in.")
    root, classes = options.root or folder, [line for line in read_lines(folder / SYNSETS) if line]

    def images(file: LabelFile) -> Iterator[Entry]:
        for number, line in enumerate(read_lines(file.path), 1):
            if not line:
                continue
            at = f"{printable(file.path)}, line {number}"
            match = re.fullmatch(r'(?:"(?P<stem>.+)"(?P<ending>\S*)|(?P<name>\S+))(?P<labels>(\s+\d{1,9})*)', line)
            if match is None:
                raise DataError(f'{at}: {line!r} is no image with numbers of classes, such as "a b".jpg 0. Mend it.')
            image, stem = match["name"] or f"{match['stem']}{match['ending']}", file.path.stem
            labels = [Json(int(text), at).choice(classes, "class") for text in match["labels"].split()]
            yield number, path_in(root, ["", "images", stem, f"images/{stem}"], image), labels

    files = files_by_split(
        source, lambda path: path.suffix == ".txt" and path.name != SYNSETS and path.parent == folder, "list (.txt)"
    )
    return listed_images(
        files, lambda file: (classes, images(file)), source=source, unit="line", root=root, options=options
    )


def read_fiftyone(source: Path, options: Options) -> Export:
    """Return the images of `data/` with the labels of `labels.json`, also of a directory for each split.

    A target is a class, its position in `classes`, an object with a `label`, a list of them, or null (unknown). An
    image that the file does not name is unknown too.
    """
    folder = source if source.is_dir() else source.parent

    def read(file: LabelFile) -> tuple[list[str], Iterator[Entry]]:
        content = Json.read(file.path)
        names = [entry.text() for entry in content.items("classes")]
        targets = {key: content["labels"].get(key) for key in content["labels"].names()}
        data = options.root or file.path.parent / DATA
        above = f"{data.relative_to(folder).as_posix() if data.is_relative_to(folder) else ''}/"
        by_stem = {image.rpartition(".")[0] or image: image for image in walk(data).images}
        stems = [*targets, *(stem for stem in by_stem if stem not in targets)]
        return names, (
            (at, f"{'' if options.root else above}{by_stem.get(stem, stem)}", _targets(targets.get(stem), names))
            for at, stem in enumerate(stems, 1)
        )

    files = files_by_split(source, lambda path: path.name == FIFTYONE, FIFTYONE)
    return listed_images(files, read, source=source, unit="label", root=options.root or folder, options=options)


def _targets(target: Json | None, classes: Sequence[str]) -> list[str] | None:
    if target is None:
        return None
    entries = target.items() if isinstance(target.value, list) else [target]
    entries = [entry["label"] if isinstance(entry.value, Mapping) else entry for entry in entries]
    return [
        entry.choice(classes, "class") if isinstance(entry.value, int) and classes else entry.text()
        for entry in entries
    ]


# Boxes of objects as images of their own: cut out of their images once, and kept as PNG files.


@dataclass(frozen=True, slots=True)
class Box:
    """A box in pixels, the image that it lies in (with its size, where that is known), and its class."""

    at: str
    number: str
    image: str
    size: tuple[int, int] | None
    left: float
    top: float
    width: float
    height: float
    label: str
    split: str | None

    @staticmethod
    def of(annotation: Json, image: Json, path: str, label: str, split: str | None) -> Box:
        """Return the box of a COCO annotation, [left, top, width, height]. Raises DataError for any other."""
        sides = annotation["bbox"].value
        if not isinstance(sides, list) or len(sides) != 4 or not all(isinstance(one, int | float) for one in sides):
            raise annotation.fault("its bbox is no [left, top, width, height] in pixels. Export it again.")
        known = "width" in image and "height" in image
        size = (image["width"].number(), image["height"].number()) if known else None
        left, top, across, down = map(float, sides)
        at, number = annotation.at.rpartition(", ")[2], annotation["id"].text()
        return Box(at, number, path, size, left, top, across, down, label, split)

    def within(self, width: int, height: int) -> tuple[int, int, int, int] | None:
        """Return left, top, right and bottom in whole pixels of an image; None where no pixel is in the box."""
        left, top = max(0, int(self.left)), max(0, int(self.top))
        right, bottom = min(width, round(self.left + self.width)), min(height, round(self.top + self.height))
        return (left, top, right, bottom) if left < right and top < bottom else None


def cropped(
    boxes: Sequence[Box], *, source: Path, root: Path, options: Options, classes: Mapping[str, Sequence[str]]
) -> Export:
    """Return each box as an image below the folder that holds them, cut out where that was not done before.

    Those of one image are a group. Boxes without a pixel and those of missing images are left out.
    """
    if not boxes:
        raise DataError(f"{printable(source)}: has no box (bbox), and `crop: boxes` reads nothing else. Remove `crop`.")
    (head,) = classes
    frame = pl.DataFrame({"row": range(len(boxes))})
    rows = Rows(source, frame, [box.at for box in boxes], "at")
    located, left_out = locate_images(rows, [box.image for box in boxes], root)
    by_image: dict[str, list[Box]] = {}
    for row, image in zip(located.frame["row"], located.frame["id"], strict=True):
        by_image.setdefault(image, []).append(boxes[row])
    folder = unpacked(
        source,
        options.unpack,
        f"{source.stem}-boxes",
        lambda out: _cut(by_image, root, out),
        images=[root / image for image in by_image],
    )
    images, empty = [], []
    for image, inside in by_image.items():
        for box in inside:
            path = _path(image, box)
            if not (folder / path).is_file():
                empty.append(
                    LeftOut(path, "its box holds no pixel of an image that can be decoded: mend it there", box.label)
                )
                continue
            images.append(LabelledImage(box.at, path, {head: [box.label]}, box.split, group=image))
    export = export_of(images, source=source, unit="at", root=folder, options=options, classes=classes)
    return Export(export.rows, export.columns, folder, (*left_out, *empty))


def _path(image: str, box: Box) -> str:
    return f"{PurePosixPath(image).with_suffix('')}-{box.number}.png"


def _cut(by_image: Mapping[str, Sequence[Box]], root: Path, out: Path) -> None:
    """Write the boxes of images to a folder; an image that cannot be decoded has none there."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    for path, boxes in by_image.items():
        try:
            with Image.open(root / path) as whole:
                # Boxes are drawn on what a browser shows, unless the file's own size says otherwise.
                image = whole if boxes[0].size == whole.size else ImageOps.exif_transpose(whole)
                image = image if image.mode in ("L", "RGB", "RGBA", "I;16", "1", "P", "LA") else image.convert("RGB")
                for box in boxes:
                    if (sides := box.within(*image.size)) is not None:
                        (out / path).parent.mkdir(parents=True, exist_ok=True)
                        image.crop(sides).save(out / _path(path, box), compress_level=1)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk
                raise  # an image that cannot be decoded has no boxes, which are left out by name
