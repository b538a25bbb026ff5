"""The images to label: of an image, a folder, a table or a list."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.errors import DataError
from assay.files import RunFolder
from assay.labels.image_files import walk
from assay.labels.left_out import LeftOut, left_out_lines
from assay.labels.paths import require_source
from assay.labels.readers.columns import name_column
from assay.labels.readers.image_names import locate
from assay.labels.readers.shards import images_in_shards
from assay.labels.readers.table import image_cells, none_located
from assay.labels.readers.table_files import LISTED, Rows, is_table, read_names, read_rows, texts
from assay.labels.shards import ImageFile, absolute_addresses, address, is_address, local_copy, names_shards
from assay.messages import printable


@dataclass(frozen=True)
class ImagesToLabel:
    """Images to label (name as given, absolute path), files of a folder that are none, and notes on guesses."""

    files: Sequence[tuple[str, ImageFile]]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


def find_images(source: Path, *, image: str | None = None, root: Path | None = None) -> ImagesToLabel:
    """Return the images to label of an image, a folder, a table, a .txt list or shards.

    A folder is searched to any depth and sorted naturally, names relative to it. A table (column `image`) or a
    list of names, one a line, keeps its rows in order, each as often as it is named, missing files too; the names
    start from `root`, else from where the file lies, or from the working folder if it lies at an address. Raises
    DataError where there are none.
    """
    require_source(source)
    if RunFolder(source).is_read:
        raise DataError(f"{printable(source)}: is the folder of a run, not of images. Give the images to label.")
    if names_shards(source):
        images, left_out = images_in_shards(absolute_addresses([address(source)], Path.cwd())[0])
        return ImagesToLabel(images, left_out)
    is_list = source.suffix.lower() == ".txt"
    elsewhere = is_address(str(source)) and (is_list or is_table(source))
    path = Path(os.path.abspath(local_copy(source) if elsewhere else source))
    if path.exists() and (path.is_dir() or not (is_list or is_table(path))):
        if root is not None:
            raise DataError(
                f"{printable(source)}: is no table or list: only their names can start from a root. Drop it."
            )
        if image is not None:
            raise DataError(f"{printable(source)}: is no table, and has no column {image!r}. Drop --image.")
    if path.is_dir():
        tree = walk(path)
        if not tree.images:
            others = "".join(f"\n  {line}" for line in left_out_lines(tree.no_images()))
            raise DataError(
                f"{printable(source)}: no images in this folder. Give an image, a folder or a table.{others}"
            )
        files = [(printable(name), path / name) for name in tree.images]
        return ImagesToLabel(files, tree.no_images(), tree.notes())
    if not path.exists():  # an address
        raise DataError(f"{printable(source)}: at an address only shards, tables and lists are read. Copy the image.")
    start = Path(os.path.abspath(root or "")) if root is not None or elsewhere else path.parent
    if not start.is_dir():
        raise DataError(f"{printable(start)}: is no folder. `root` is the folder that the names start from.")
    if not is_list and not is_table(path):
        return ImagesToLabel([(printable(source), path)])
    rows, column, notes = _rows_of_images(path, start, image)
    cells = image_cells(rows, column)
    if not cells:
        raise DataError(f"{printable(rows.source)}: names no images. Add some.")
    located, of_names = locate(rows, cells, start)
    if all(reason is not None for _, reason in located):
        raise DataError(none_located(rows, cells, located, start, option="--root DIR"))
    files = [(cell, start / path) for cell, (path, _) in zip(cells, located, strict=True)]
    return ImagesToLabel(files, notes=(*rows.notes, *notes, *of_names))


def _rows_of_images(path: Path, root: Path, image: str | None) -> tuple[Rows, str, list[str]]:
    """Return the rows of a table or list, the column of the images, and notes."""
    if path.suffix.lower() == ".txt":
        return read_names(path, root), LISTED, []
    rows = read_rows(path)
    column, notes = name_column(rows, image)
    return texts(rows, [column]), column, notes
