"""What the writers of other tools' formats share: labels by name, parts by split, images beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from assay.files import link, whole
from assay.labels.samples import Samples
from assay.labels.shards import ImageFile, byte_count
from assay.labels.space import Head

SIDES = {"train": "train", "val": "val", "test": "test"}
DEFAULT = "default"
"""The part of the images without a split, beside parts of those that have one."""


@dataclass(frozen=True)
class Written:
    """The `data:` mapping that reads the labels back, and notes on what the format does not hold."""

    data: Mapping[str, object]
    notes: tuple[str, ...] = ()


def of_head(head: Head) -> Written:
    """Return how the labels of the one head are read back from a file that does not say it."""
    return Written({"head": head.name, "kind": head.kind})


def class_lists(samples: Samples, head: Head) -> list[list[str] | None]:
    """Return the classes of each image; None where they are unknown."""
    labels = samples.table[f"label:{head.name}"].to_list()
    return [None if one is None else [one] if head.multiclass else list(one) for one in labels]


def parts(samples: Samples, names: Mapping[str, str] = SIDES) -> dict[str, Samples]:
    """Return the samples of each split by the name of its file or folder; "" alone where no image has a split."""
    splits = samples.table["split"].to_list()
    if not any(splits):
        return {"": samples}
    rows: dict[str, list[int]] = {}
    for row, split in enumerate(splits):
        rows.setdefault(names[split] if split else DEFAULT, []).append(row)
    return {name: samples.take(rows[name]) for name in (*names.values(), DEFAULT) if name in rows}


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


def stems(paths: Sequence[str], wanted: Callable[[str], bool]) -> tuple[list[str], int]:
    """Return names without their ending, and how many keep it: two are the same without, or it is not `wanted`."""
    short = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    counts = {name: short.count(name) for name in set(short)} if len(set(short)) < len(short) else {}
    kept = [counts.get(name, 1) > 1 or not wanted(name) for name in short]
    names = [path if keep else name for path, name, keep in zip(paths, short, kept, strict=True)]
    return names, sum(kept)
