"""One list file a class: the pictures that show it, by an id or by name."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.found import Found, bare, named_in_unicode
from assay.labels.names_form import NamePattern
from assay.labels.pictures import by_path, natural, shown, walk
from assay.labels.text_lines import read_lines

HEAD = "tags"


def find_in_lists(folder: Path, *, images: str | None = None, root: Path | None = None, head: str = HEAD) -> Found:
    """The pictures below `root` (default: the folder that holds `folder`), tagged by the lists that name them.

    A line is put into the pattern `images` as its `{id}`, or is a path below `root`. A picture in no list has no
    tag, and that is known. Raises DataError for a line that names no picture.
    """
    root = root or folder.parent
    lists = _lists(folder)
    named = _pictures(root, folder, images)
    paths, left_out = named_in_unicode(named.values())
    tags: dict[str, list[str]] = {path: [] for path in paths}
    strange = []
    for tag, path in lists.items():
        lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line]
        strange += [(path, number, line) for number, line in lines if line not in named]
        for picture in {named[line]: None for _, line in lines if line in named}:
            tags[picture].append(tag)
    if strange:
        path, number, line = strange[0]
        wanted = images.replace("{id}", line) if images else line
        more = f" ({len(strange) - 1} more lines name none)" if len(strange) > 1 else ""
        raise DataError(
            f"{shown(path)}, line {number}: {line!r} is no picture: there is no {wanted!r} below {shown(root)}{more}. "
            "Remove the line, bring the picture, or mend `images` or `root`."
        )
    return Found(
        source=folder,
        root=root,
        table=bare(paths, {head: pl.Series(list(tags.values()), dtype=pl.List(pl.String))}),
        heads=((head, "independent"),),
        classes={head: list(lists)},
        declared=frozenset([head]),
        left_out=left_out,
    )


def _lists(folder: Path) -> dict[str, Path]:
    """Class -> its list file, in natural order."""
    if not folder.is_dir():
        raise DataError(f"{shown(folder)}: is no folder. `lists` is a folder of .txt files, one a class.")
    files = [name for name in os.listdir(folder) if name.lower().endswith(".txt") and not name.startswith(".")]
    if not files:
        raise DataError(f"{shown(folder)}: holds no .txt file. There must be one for each class.")
    return {shown(name[: -len(".txt")]): folder / name for name in sorted(files, key=natural)}


def _pictures(root: Path, folder: Path, images: str | None) -> dict[str, str]:
    """The line that names a picture -> its path: those like the pattern, or all outside the folder of lists."""
    tree = walk(root)
    if images is None:
        apart = f"{os.path.relpath(folder, root)}/"
        found = {path: path for path in tree.pictures if not path.startswith(apart)}
    else:  # whatever its ending, a file named like the pattern is meant
        like = NamePattern.of(images)
        matches = [(like.match(path), path) for path in sorted((*tree.pictures, *tree.others), key=by_path)]
        found = {match["id"]: path for match, path in matches if match}
    if not found:
        wanted = f"like {images!r}" if images else f"outside {shown(folder)}"
        raise DataError(f"{shown(root)}: no picture {wanted} in this folder. Mend `images` or `root`.")
    return found
