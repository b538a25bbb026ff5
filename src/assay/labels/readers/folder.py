"""Reader of a folder a class, with or without train/ val/ test/ above, and unlabelled/ among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from assay.errors import DataError
from assay.labels.build import RawLabels, drop_invalid_names, label_table, quoted
from assay.labels.image_files import Tree, natural_key, walk
from assay.messages import printable

HEAD = "label"
"""The one head of the folder form."""

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of splits in folder names and table cells (any case)."""

UNLABELLED = frozenset({"unlabelled", "unlabeled"})


def find_in_folder(folder: Path) -> RawLabels:
    """Return the images below a folder, labelled and split by the folders that hold them.

    Raises DataError for a missing or empty folder, a loose image, a link that leaves the folder.
    """
    tree = walk(folder)
    if not tree.images:
        raise DataError(_no_images(folder, tree))
    depth = 1 if _has_splits(folder, tree) else 0
    images, left_out = drop_invalid_names(tree.images)
    rows = [(path, *_split_and_class(path, depth)) for path in images]
    loose = [path for path, _, label in rows if label == ""]
    if loose:
        raise DataError(_loose(folder, loose, depth))
    labels = pl.Series([label for _, _, label in rows], dtype=pl.String)
    splits = pl.Series("split", [split for _, split, _ in rows], dtype=pl.String)
    return RawLabels(
        source=folder,
        root=folder,
        table=label_table(images, {HEAD: labels}).with_columns(splits),
        heads=((HEAD, "multiclass"),),
        classes={HEAD: _class_folders(tree, depth)},
        left_out=left_out,
        notes=(*_others(tree.others), *_runs(tree.runs)),
    )


def _has_splits(folder: Path, tree: Tree) -> bool:
    """Return whether folders of splits hold the folders of classes.

    A class may be called `train` too: then other classes stand beside it and its images lie in it directly.
    """
    above: dict[str, set[bool]] = defaultdict(set)  # top folder -> whether its images lie one folder deeper
    for path in tree.images:
        top, *rest = path.split("/")
        if rest and top.casefold() not in UNLABELLED:
            above[top].add(len(rest) > 1)
    splits = [top for top in above if top.casefold() in SPLITS]
    others = [top for top in above if top.casefold() not in SPLITS]
    if splits and others and any(True in above[top] for top in splits):
        raise DataError(
            f"{printable(folder)}: {quoted(splits)} hold folders as splits do, but {quoted(others)} stand "
            "beside them. Put every class folder inside train/, val/ or test/, or none."
        )
    return bool(splits) and not others


def _split_and_class(path: str, depth: int) -> tuple[str | None, str | None]:
    """Return split and class of an image; the class is "" where a folder of its class is missing."""
    parts = path.split("/")
    if len(parts) > 1 and parts[0].casefold() in UNLABELLED:
        return None, None
    split = SPLITS[parts[0].casefold()] if depth and len(parts) > 1 else None
    if len(parts) <= depth + 1:
        return split, ""
    return split, None if parts[depth].casefold() in UNLABELLED else parts[depth]


def _class_folders(tree: Tree, depth: int) -> list[str]:
    names = set()
    for path in tree.folders:
        parts = path.split("/")
        inside = depth == 0 or parts[0].casefold() in SPLITS
        if len(parts) == depth + 1 and inside and parts[-1].casefold() not in UNLABELLED:
            names.add(printable(parts[-1]))
    return sorted(names, key=natural_key)


def _no_images(folder: Path, tree: Tree) -> str:
    held = f" (there are {len(tree.others)} other files, such as {quoted(tree.others[:1])})" if tree.others else ""
    return (
        f"{printable(folder)}: no images in this folder{held}. "
        "Give a folder with a folder of images for each class, or a table that names them."
    )


def _loose(folder: Path, loose: Sequence[str], depth: int) -> str:
    where = "directly in a split folder" if depth and "/" in loose[0] else "in no class folder"
    return (
        f"{printable(folder)}: {len(loose)} images lie {where}, the first {printable(loose[0])!r}. "
        "Put each in a folder named after its class, those without a label in unlabelled/, or give a table "
        "that names their labels."
    )


def _others(others: Sequence[str]) -> tuple[str, ...]:
    within = [path for path in others if "/" in path]
    if not within:
        return ()
    return (f"{len(within)} files are no images by their ending and were passed over: {quoted(within, 3)}.",)


def _runs(runs: Sequence[str]) -> tuple[str, ...]:
    if not runs:
        return ()
    many = "folders that hold runs were" if len(runs) > 1 else "folder that holds a run was"
    return (f"{len(runs)} {many} passed over: {quoted(runs, 3)}.",)
