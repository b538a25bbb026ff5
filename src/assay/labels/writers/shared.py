"""What the writers of other tools' formats share: labels by name, parts by split, images beside them, notes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from assay.errors import DataError
from assay.files import link, whole
from assay.labels.samples import Samples
from assay.labels.shards import ImageFile, byte_count
from assay.labels.space import Head
from assay.messages import printable, quoted

SIDES = {"train": "train", "val": "val", "test": "test"}
DEFAULT = "default"
"""The part of the images without a split, beside parts of those that have one."""


@dataclass(frozen=True)
class Written:
    """The `data:` mapping that reads the labels back, and notes on what the format does not hold."""

    data: Mapping[str, object]
    notes: tuple[str, ...] = ()


Writer = Callable[[Samples, Path], Written]


@dataclass(frozen=True)
class Known:
    """Samples whose labels a format can hold, with notes on those that it cannot."""

    samples: Samples
    notes: tuple[str, ...]


def only_head(samples: Samples, title: str) -> Head:
    """Return the one head. Raises DataError where there are several."""
    if len(samples.space) != 1:
        names = quoted(head.name for head in samples.space)
        raise DataError(f"{title} hold one head, and there are {len(samples.space)} ({names}). Say which: --head NAME.")
    return samples.space.heads[0]


def class_lists(samples: Samples, head: Head) -> list[list[str] | None]:
    """Return the classes of each image; None where they are unknown."""
    labels = samples.table[f"label:{head.name}"].to_list()
    return [None if one is None else [one] if head.multiclass else list(one) for one in labels]


def without_unknown(samples: Samples, title: str, *, unlabelled: bool, absent_is_none: bool = False) -> Known:
    """Return the samples without labels that would be read otherwise, and notes that count them.

    Those are images whose tags are known in part; those without a label, unless the format has `unlabelled` ones, and
    those of unknown tags where an image without tags is known to have none.
    """
    keep, notes = np.ones(len(samples), np.bool_), []
    for head, _, codes in samples.space.each(samples.codes()):
        if not head.multiclass:
            partly = head.known(codes) & (codes < 0).any(axis=1)
            keep &= ~partly
            if partly.any():
                notes.append(
                    f"{head.name}: {int(partly.sum()):,} images have tags that are unknown beside known ones, which "
                    f"{title} cannot say: they are left out. --labels table keeps them."
                )
        unknown = keep & ~head.known(codes)
        if unknown.any() and (not unlabelled or (absent_is_none and not head.multiclass)):
            keep &= ~unknown
            notes.append(
                f"{head.name}: {int(unknown.sum()):,} images have no known label, which {title} cannot say: they are "
                "left out. --labels table keeps them."
            )
    if not keep.any():
        raise DataError(f"None of the {len(samples):,} images has labels that {title} can hold. Try --labels table.")
    return Known(samples.take(np.flatnonzero(keep)), tuple(notes))


def lost_facts(samples: Samples, title: str, kept: Sequence[str]) -> tuple[str, ...]:
    """Return a note on split, group and weight, as far as there are any and the format holds none."""
    table = samples.table
    has = {fact: bool(table[fact].is_not_null().any()) for fact in ("split", "group")}
    has["weight"] = bool((samples.weights() != 1).any())
    lost = [fact for fact, there in has.items() if there and fact not in kept]
    return (f"{title} hold no {' and no '.join(lost)}: not written.",) if lost else ()


def parts(samples: Samples, names: Mapping[str, str] = SIDES) -> dict[str, Samples]:
    """Return the samples of each split by the name of its file or folder; "" alone where no image has a split."""
    splits = samples.table["split"].to_list()
    if not any(splits):
        return {"": samples}
    rows: dict[str, list[int]] = {}
    for row, split in enumerate(splits):
        rows.setdefault(names[split] if split else DEFAULT, []).append(row)
    return {name: samples.take(rows[name]) for name in (*names.values(), DEFAULT) if name in rows}


def require_new(folder: Path) -> None:
    """Raise DataError for a folder that holds something: images are linked into it, and nothing is replaced."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{printable(folder)}: exists already. Name a new folder with --out.")


def fill_files(images: Sequence[ImageFile], order: Iterable[int], *, size: int) -> list[list[int]]:
    """Return the rows of each file, in this order: at most `size` bytes of images, and one image at least."""
    files: list[list[int]] = [[]]
    filled = 0
    for row in order:
        of_image = byte_count(images[row])
        if filled + of_image > size and files[-1]:
            files.append([])
            filled = 0
        filled += of_image
        files[-1].append(row)
    return files


def link_images(samples: Samples, folder: Path, names: Sequence[str] | None = None) -> None:
    """Link each image into a folder, under its path, or another name: no space is taken on the same disk.

    Those in shards are written there.
    """
    for path, name in zip(samples.paths, names or samples.table["path"].to_list(), strict=True):
        if isinstance(path, Path):
            link(path, folder / name, sync=False)  # one of many: the folder is renamed last
        else:
            with whole(folder / name, sync=False) as beside:
                beside.write_bytes(path.read_bytes())


def require_ending(path: Path, ending: str) -> None:
    """Raise DataError for a file that is named otherwise."""
    if path.suffix.lower() != ending:
        raise DataError(f"{printable(path)}: is no {ending} file by its ending. Name it {path.stem}{ending}.")


def absolute(path: Path) -> str:
    return os.path.abspath(path)


def stems(paths: Sequence[str], wanted: Callable[[str], bool]) -> tuple[list[str], int]:
    """Return names without their ending, and how many keep it: two are the same without, or it is not `wanted`."""
    short = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    counts = {name: short.count(name) for name in set(short)} if len(set(short)) < len(short) else {}
    kept = [counts.get(name, 1) > 1 or not wanted(name) for name in short]
    names = [path if keep else name for path, name, keep in zip(paths, short, kept, strict=True)]
    return names, sum(kept)


def with_heads(samples: Samples, names: Sequence[str]) -> Samples:
    """Return the samples with these heads alone. Raises DataError for a head that is not there."""
    known = {head.name: head for head in samples.space}
    strange = next((name for name in names if name not in known), None)
    if strange is not None:
        raise DataError(f"--head {strange}: there is no such head; there are {quoted(known)}.")
    space = replace(samples.space, heads=tuple(known[name] for name in names))
    return replace(samples, space=space)
