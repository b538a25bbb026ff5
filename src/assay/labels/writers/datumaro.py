"""Writers for CVAT: Datumaro's JSON, and ImageNet's lists."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from assay.errors import DataError
from assay.files import whole_folder, write_json, write_text
from assay.labels.readers.imagenet import SYNSETS
from assay.labels.samples import Samples
from assay.labels.writers.shared import (
    DEFAULT,
    Written,
    absolute,
    class_lists,
    lost_facts,
    only_head,
    parts,
    require_new,
    without_unknown,
)


def write_datumaro(samples: Samples, folder: Path) -> Written:
    """Write `annotations/SUBSET.json` for each split, with the path of each image."""
    title = "annotations of Datumaro"
    head = only_head(samples, title)
    require_new(folder)
    known = without_unknown(samples, title, unlabelled=True, absent_is_none=True)
    labels = [{"name": name, "parent": "", "attributes": []} for name in head.classes]
    about = {"info": {}, "categories": {"label": {"labels": labels, "attributes": []}}}
    with whole_folder(folder) as beside:
        for name, part in parts(known.samples).items():
            items = []
            for path, classes in zip(part.table["path"], class_lists(part, head), strict=True):
                annotations = [
                    {"id": k, "type": "label", "attributes": {}, "group": 0, "label_id": head.index[one]}
                    for k, one in enumerate(classes or ())
                ]
                stem = str(PurePosixPath(path).with_suffix(""))
                items.append({"id": stem, "annotations": annotations, "attr": {}, "image": {"path": path}})
            write_json(beside / "annotations" / f"{name or DEFAULT}.json", about | {"items": items})
    source, root = absolute(folder / "annotations"), absolute(samples.root)
    data = {"datumaro": source, "root": root, "head": head.name, "kind": head.kind}
    return Written(data, (*known.notes, *lost_facts(known.samples, title, ["split"])))


def write_imagenet(samples: Samples, folder: Path) -> Written:
    """Write `synsets.txt`, and a list of images with the positions of their classes for each split.

    Raises DataError for a name that a line cannot hold.
    """
    title = "ImageNet's lists"
    head = only_head(samples, title)
    require_new(folder)
    strange = next((one for one in head.classes if one != one.strip() or "\n" in one or "\r" in one), None)
    if strange is not None:
        raise DataError(f"{title} hold a class a line, and {strange!r} is none. Rename it: `merge: {{...}}`.")
    known = without_unknown(samples, title, unlabelled=True, absent_is_none=True)
    with whole_folder(folder) as beside:
        write_text(beside / SYNSETS, "".join(f"{name}\n" for name in head.classes))
        for name, part in parts(known.samples).items():
            lines = [
                " ".join([_name(path, title), *(str(head.index[one]) for one in classes or ())])
                for path, classes in zip(part.table["path"], class_lists(part, head), strict=True)
            ]
            write_text(beside / f"{name or DEFAULT}.txt", "".join(f"{line}\n" for line in lines))
    data = {"imagenet": absolute(folder), "root": absolute(samples.root), "head": head.name, "kind": head.kind}
    return Written(data, (*known.notes, *lost_facts(known.samples, title, ["split"])))


def _name(path: str, title: str) -> str:
    """Return the name of an image in a list: with quotes about it, but not its ending, where it has blanks."""
    ending = PurePosixPath(path).suffix
    if '"' in path or "\n" in path or "\r" in path or any(one.isspace() for one in ending):
        raise DataError(f"{title} cannot hold the name {path!r}. Rename it, or write another format.")
    return f'"{path[: len(path) - len(ending)]}"{ending}' if any(one.isspace() for one in path) else path
