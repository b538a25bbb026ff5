"""Reader of a folder a class, with or without train/ val/ test/ above, and unlabelled/ among them."""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from assay.errors import DataError
from assay.labels.build import RawLabels, drop_invalid_names, label_table
from assay.labels.image_files import Tree, natural_key, walk
from assay.labels.label_files import label_file_notes
from assay.labels.left_out import LeftOut, left_out_lines
from assay.messages import printable, quoted

HEAD = "label"
"""The one head of the folder form."""

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of folders (any case) that are a split without a note; `split_of` knows more."""

UNLABELLED = frozenset({"unlabelled", "unlabeled", "_unlabeled"})

_SPLIT_NAMES = {"train": "train", "val": "val", "dev": "val", "test": "test", "eval": "test", "hold": "test"}
_SPLIT_NAME = re.compile(
    r"(train|val|dev|test|eval|hold)(ing|id|idation|elopment|uation|[-_ ]?out)?"
    r"([-_ .]*(set|data|dataset|images?|imgs?|photos?|split|\d+))*",
    re.IGNORECASE,
)


NO_CLASSES = frozenset({
    "images", "image", "imgs", "img", "masks", "mask", "annotations", "labels", "groundtruth", "ground_truth", "gt",
})  # fmt: skip
"""Names (any case) of folders that part images by what they are for."""


@dataclass(frozen=True)
class _Layout:
    """Where the classes are: `depth` folders down, by split where `splits` are not empty."""

    depth: int
    splits: Mapping[str, str]  # folder -> train, val or test
    unused: frozenset[str] = frozenset()  # folders of splits whose images lie in no class folder

    def split_and_class(self, path: str) -> tuple[str | None, str | None]:
        """Return split and class of an image; the class is "" where a folder of its class is missing."""
        parts = path.split("/")
        if len(parts) > 1 and parts[0].casefold() in UNLABELLED:
            return None, None
        split = self.splits.get(parts[0]) if len(parts) > 1 else None
        if len(parts) <= self.depth + 1:
            return split, ""
        return split, None if parts[self.depth].casefold() in UNLABELLED else parts[self.depth]

    def is_used(self, path: str) -> bool:
        return path.partition("/")[0] not in self.unused


def split_of(folder: str) -> str | None:
    """Return the split that a folder is named after: `val` of `valid`, `test` of `test1` or `testing_set`."""
    match = _SPLIT_NAME.fullmatch(folder)
    return SPLITS.get(folder.casefold()) or (_SPLIT_NAMES[match[1].casefold()] if match else None)


def find_in_folder(folder: Path, *, classes: Sequence[str] = ()) -> RawLabels:
    """Return the images below a folder, labelled and split by the folders that hold them.

    With `classes` these are all there are, and an image in none of their folders has no label.
    Raises DataError for a missing or empty folder, a loose image, classes one folder too deep, a link that leaves the
    folder.
    """
    tree = walk(folder)
    of_files = label_file_notes(folder, tree)
    try:
        if not tree.images:
            raise DataError(_no_images(folder, tree))
        if classes:
            return _of_classes(folder, tree, classes)
        layout = _layout(folder, tree)
        _refuse_loose(folder, tree, layout)
    except DataError as error:
        if not of_files:
            raise
        raise DataError("\n  ".join((str(error), *of_files))) from error
    images, left_out = drop_invalid_names([path for path in tree.images if layout.is_used(path)])
    rows = [(path, *layout.split_and_class(path)) for path in images]
    labels = pl.Series([label for _, _, label in rows], dtype=pl.String)
    splits = pl.Series("split", [split for _, split, _ in rows], dtype=pl.String)
    return RawLabels(
        source=folder,
        root=folder,
        table=label_table(images, {HEAD: labels}).with_columns(splits),
        heads=((HEAD, "multiclass"),),
        classes={HEAD: _class_folders(tree, layout)},
        left_out=(*left_out, *_others(tree, layout)),
        notes=(*tree.notes(), *_notes(folder, tree, layout), *of_files),
    )


def is_unlabelled(folder: Path) -> bool:
    """Return whether a folder holds images, and all of them lie in the folder itself."""
    images = walk(folder).images if folder.is_dir() else ()
    return bool(images) and not any("/" in path for path in images)


def find_unlabelled(folder: Path) -> RawLabels:
    """Return the images below a folder without any label, under a head of no class."""
    return _of_classes(folder, walk(folder), ())


def has_loose_images(folder: Path) -> bool:
    """Return whether images lie in a folder itself, in no class folder."""
    return folder.is_dir() and any("/" not in path for path in walk(folder).images)


def _of_classes(folder: Path, tree: Tree, classes: Sequence[str]) -> RawLabels:
    """Return the images with the classes named, at whatever depth their folders are; those of splits count."""
    images, left_out = drop_invalid_names(tree.images)
    above = [path.split("/")[:-1] for path in images]
    labels = [next((name for name in folders if name in classes), None) for folders in above]
    tops = dict.fromkeys(folders[0] for folders in above if folders and folders[0] not in classes)
    split_by_top = {top: split for top in tops if (split := split_of(top))}
    splits = [split_by_top.get(folders[0]) if folders else None for folders in above]
    table = label_table(images, {HEAD: pl.Series(labels, dtype=pl.String)})
    return RawLabels(
        source=folder,
        root=folder,
        table=table.with_columns(pl.Series("split", splits, dtype=pl.String)),
        heads=((HEAD, "multiclass"),),
        classes={HEAD: list(dict.fromkeys(classes))},
        declared=frozenset({HEAD}),
        left_out=(*left_out, *tree.no_images()),
        notes=(*tree.notes(), *_guessed(split_by_top)),
    )


def _layout(folder: Path, tree: Tree) -> _Layout:
    """Return where the classes are.

    A class may be called `train` too: then other classes stand beside it and its images lie in it directly.
    Raises DataError where splits and classes stand side by side, or where the classes are one folder further in.
    """
    depths: dict[str, set[bool]] = defaultdict(set)  # top folder -> whether its images lie one folder deeper
    for path in tree.images:
        top, *rest = path.split("/")
        if rest and top.casefold() not in UNLABELLED:
            depths[top].add(len(rest) > 1)
    splits = {top: split for top in depths if (split := split_of(top))} or _splits_by_ending(depths)
    others = [top for top in depths if top not in splits]
    deep = [top for top in splits if True in depths[top]]
    if splits and others:
        if deep or {"train"} < set(splits.values()):
            why = "hold folders as splits do" if deep else "are names of splits"
            raise DataError(
                f"{printable(folder)}: {quoted(splits)} {why}, but {quoted(others)} "
                f"{'stands' if len(others) == 1 else 'stand'} beside them. Put every class folder inside train/, val/ "
                "or test/, or none, and move other folders away."
            )
        splits = {}
    if not splits and all(deeper == {True} for deeper in depths.values()):
        _refuse_same_inside(folder, tree, list(depths))
    _refuse_wrapped(folder, tree, deep if splits else [])
    flat = frozenset(top for top in splits if depths[top] == {False})
    inside = {top: {name.casefold() for name in _folders_within(tree, f"{top}/")} for top in deep if top in splits}
    learnt = {name for top, names in inside.items() if splits[top] == "train" for name in names}
    strange = {
        top for top, names in inside.items() if splits[top] != "train" and len(names) == 1 and not names & learnt
    }
    unused = frozenset(flat | strange if len(learnt) > 1 else flat if learnt else ())
    return _Layout(1 if splits else 0, splits, unused)


def _splits_by_ending(depths: Mapping[str, set[bool]]) -> dict[str, str]:
    """Return the folders that end in the name of a split, as `seg_train` and `seg_test`, where one of them is train."""
    endings = {top: split_of(re.split(r"[-_ ]", top)[-1]) for top, deeper in depths.items() if deeper == {True}}
    splits = {top: split for top, split in endings.items() if split}
    return splits if {"train"} < set(splits.values()) else {}


def _refuse_same_inside(folder: Path, tree: Tree, tops: Sequence[str]) -> None:
    """Raise DataError for folders of numbers (folds, years) or kinds of files that all hold the same folders."""
    numbered = len({re.sub(r"\d+", "", top) for top in tops}) == 1
    if len(tops) < 2 or not (numbered or {top.casefold() for top in tops} <= NO_CLASSES):
        return
    inside = {tuple(sorted(_folders_within(tree, f"{top}/"))) for top in tops}
    if len(inside) > 1:
        return
    (names,) = inside
    if len(names) > 1:
        deeper = "/{_}" * (tree.images[0].count("/") - 1)
        patterns = (f"{{_}}/{{class}}{deeper}", f"{{class}}/{{_}}{deeper}")
        ways = [f'data: {{names: "{pattern}", root: {printable(folder)}}}' for pattern in patterns]
        raise DataError(
            f"{printable(folder)}: {quoted(tops)} all hold the same folders ({quoted(names, 3)}), so which are the "
            f"classes? The lower ones: {ways[0]}. The upper ones: {ways[1]}. Or give one of these folders alone."
        )


def _refuse_wrapped(folder: Path, tree: Tree, splits: Sequence[str]) -> None:
    """Raise DataError where a single folder, or a single one in each split, holds all class folders."""
    starts = {f"{top}/": _inner_folder(tree, f"{top}/") for top in splits} if splits else {"": _inner_folder(tree, "")}
    wrapped = {start: inner for start, inner in starts.items() if inner}
    if not wrapped or len(wrapped) < len(starts):
        return
    inner = next(iter(wrapped.values()))
    held = quoted(_folders_within(tree, f"{inner}/"), 3)
    if splits:
        pairs = [(shlex.quote(printable(folder / name)) for name in pair[::-1]) for pair in wrapped.items()]
        way = "Move them up: " + " && ".join(f"mv {within}/* {above}" for within, above in pairs)
    else:
        way = f"Give that folder: {shlex.quote(printable(folder / inner))}"
    raise DataError(f"{printable(folder)}: the class folders ({held}) lie in {printable(inner)!r}, one too deep. {way}")


def _inner_folder(tree: Tree, start: str) -> str | None:
    """Return the folder below `start` that alone holds several folders of images, where nothing lies above it."""
    inner = start
    while len(within := _folders_within(tree, inner)) == 1:
        inner = f"{inner}{within[0]}/"
    return inner[:-1] if inner != start and len(within) > 1 else None


def _folders_within(tree: Tree, start: str) -> list[str]:
    """Return the folders directly below `start` that hold images; none where images lie beside them."""
    rests = [path[len(start) :].split("/") for path in tree.images if path.startswith(start)]
    rests = [rest for rest in rests if rest[0].casefold() not in UNLABELLED or len(rest) == 1]
    return list(dict.fromkeys(rest[0] for rest in rests)) if all(len(rest) > 1 for rest in rests) else []


def _class_folders(tree: Tree, layout: _Layout) -> list[str]:
    names = set()
    for path in filter(layout.is_used, tree.folders):
        parts = path.split("/")
        inside = layout.depth == 0 or parts[0] in layout.splits
        if len(parts) == layout.depth + 1 and inside and parts[-1].casefold() not in UNLABELLED:
            names.add(printable(parts[-1]))
    return sorted(names, key=natural_key)


def _others(tree: Tree, layout: _Layout) -> tuple[LeftOut, ...]:
    """Return the files that are no images among those that are, with the class that they lie in."""
    inside = [path for path in tree.others if layout.is_used(path) and path.count("/") > layout.depth]
    return tuple(
        LeftOut(printable(path), tree.others[path], printable(layout.split_and_class(path)[1] or "")) for path in inside
    )


def _guessed(splits: Mapping[str, str]) -> list[str]:
    """Return a note on the folders that are splits by names other than the usual ones."""
    guessed = [f"{top!r} as {split}" for top, split in splits.items() if top.casefold() not in SPLITS]
    return [f"Folders are taken as splits by their names: {', '.join(guessed)}."] if guessed else []


def _notes(folder: Path, tree: Tree, layout: _Layout) -> list[str]:
    """Return notes on how folders were read where that may not be what was meant."""
    notes = _guessed(layout.splits)
    for top in sorted(layout.unused):
        count = sum(path.startswith(f"{top}/") for path in tree.images)
        within = _folders_within(tree, f"{top}/")
        where = f"{quoted(within, 3)}, no class of the training folder" if within else "no class folder"
        notes.append(
            f"{count:,} images of {printable(top)!r} lie in {where}, have no label and are not used. Label "
            f"them with the trained model: assay predict RUN {shlex.quote(printable(folder / top))} --out labels.csv"
        )
    paths = [path.split("/") for path in tree.images if layout.is_used(path)]
    merged = [parts for parts in paths if len(parts) > layout.depth + 2 and parts[0].casefold() not in UNLABELLED]
    if merged:
        above = Counter("/".join(parts[: layout.depth + 2]) for parts in merged)
        pattern = "{_}/" * (layout.depth + 1) + "{class}/{_}"
        notes.append(
            f"{len(merged):,} images lie in folders below a class folder, such as {quoted(above, 3)}, and are of the "
            f'upper class. For classes by the lower folders: data: {{names: "{pattern}", root: {printable(folder)}}}'
        )
    return notes


def _no_images(folder: Path, tree: Tree) -> str:
    return "\n  ".join(
        (
            f"{printable(folder)}: no images in this folder. Give a folder with a folder of images for each class, or "
            "a table that names them.",
            *tree.notes(),
            *left_out_lines(tree.no_images()),
        )
    )


def _refuse_loose(folder: Path, tree: Tree, layout: _Layout) -> None:
    """Raise DataError for images that lie in no class folder."""
    loose = [path for path in tree.images if layout.is_used(path) and layout.split_and_class(path)[1] == ""]
    if not loose:
        return
    where = "directly in a split folder" if layout.depth and "/" in loose[0] else "in no class folder"
    pattern = _name_pattern(loose)
    by_name = (
        f' Or their names tell the class: data: {{names: "{pattern}", root: {printable(folder)}}}.' if pattern else ""
    )
    if layout.depth and not pattern and len(layout.splits) > 1 and all(path.count("/") == 1 for path in tree.images):
        by_name = f' If these folders are classes: data: {{names: "{{class}}/{{_}}", root: {printable(folder)}}}.'
    raise DataError(
        f"{printable(folder)}: {len(loose)} images lie {where}, the first {printable(loose[0])!r}. "
        "Put each in a folder named after its class, those without a label in unlabelled/, or give a table "
        f"that names their labels; or label them: assay review {shlex.quote(str(folder))} --classes NAME,NAME.{by_name}"
    )


def _name_pattern(paths: Sequence[str]) -> str | None:
    """Return the pattern of names such as cat.12.jpg, where most begin with one of several repeated words."""
    matches = [re.fullmatch(r"(.*[^\W\d_])([._ -])\d+\.\w+", PurePosixPath(path).name) for path in paths]
    words = Counter((match[1], match[2]) for match in matches if match)
    classes, marks = {word for word, _ in words}, {mark for _, mark in words}
    usual = sum(words.values()) > 0.5 * len(paths) and 2 <= len(classes) <= sum(words.values()) / 2
    return f"{{class}}{marks.pop()}{{n}}.{{_}}" if usual and len(marks) == 1 else None
