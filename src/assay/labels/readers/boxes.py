"""Boxes of objects as images of their own: cut out of their images once, and kept as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from assay.errors import DataError
from assay.labels.left_out import LeftOut
from assay.labels.readers.exports import Export, Json, LabelledImage, Options, export_of
from assay.labels.readers.table import locate_images
from assay.labels.readers.table_files import Rows
from assay.labels.readers.unpack import unpacked
from assay.messages import printable


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
