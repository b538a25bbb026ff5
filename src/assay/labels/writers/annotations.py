"""Writers of label files without images: COCO, Datumaro's JSON and ImageNet's lists (both for CVAT), Label Studio's."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import polars as pl

from assay.errors import DataError
from assay.files import whole, write_json, write_text
from assay.labels.readers.annotations import SYNSETS
from assay.labels.readers.label_studio import ABOUT, LOCAL
from assay.labels.samples import Samples
from assay.labels.shards import ImageFile
from assay.labels.writers.shared import DEFAULT, Written, class_lists, of_head, parts
from assay.messages import quoted


def write_coco(samples: Samples, folder: Path, title: str) -> Written:
    """Write a JSON file for each split: an annotation without a box for each class of an image.

    Widths and heights are those in the header of each image, without its orientation.
    """
    head = samples.space.heads[0]
    categories = [{"id": k, "name": name, "supercategory": head.name} for k, name in enumerate(head.classes, 1)]
    for name, part in parts(samples).items():
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        paths = zip(part.table["path"], part.paths, class_lists(part, head), strict=True)
        for number, (path, file, classes) in enumerate(paths, 1):
            images.append({"id": number, "file_name": path} | _size(file))
            for one in classes or ():
                about = {"id": len(annotations) + 1, "image_id": number, "category_id": head.index[one] + 1}
                annotations.append({**about, "iscrowd": 0, "area": 0})
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        write_json(folder / f"{name or DEFAULT}.json", content | {"categories": categories})
    return of_head(head)


def _size(path: ImageFile) -> dict[str, int]:
    """Return width and height of an image; nothing where it has none that can be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as file, Image.open(file) as image:
            return {"width": image.width, "height": image.height}
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return {}


def write_datumaro(samples: Samples, folder: Path, title: str) -> Written:
    """Write `annotations/SUBSET.json` for each split, with the path of each image."""
    head = samples.space.heads[0]
    labels = [{"name": name, "parent": "", "attributes": []} for name in head.classes]
    about = {"info": {}, "categories": {"label": {"labels": labels, "attributes": []}}}
    for name, part in parts(samples).items():
        items = []
        for path, classes in zip(part.table["path"], class_lists(part, head), strict=True):
            annotations = [
                {"id": k, "type": "label", "attributes": {}, "group": 0, "label_id": head.index[one]}
                for k, one in enumerate(classes or ())
            ]
            stem = str(PurePosixPath(path).with_suffix(""))
            items.append({"id": stem, "annotations": annotations, "attr": {}, "image": {"path": path}})
        write_json(folder / "annotations" / f"{name or DEFAULT}.json", about | {"items": items})
    return of_head(head)


def write_imagenet(samples: Samples, folder: Path, title: str) -> Written:
    """Write `synsets.txt`, and a list of images with the positions of their classes for each split.

    Raises DataError for a name that a line cannot hold.
    """
    head = samples.space.heads[0]
    strange = next((one for one in head.classes if one != one.strip() or "\n" in one or "\r" in one), None)
    if strange is not None:
        raise DataError(f"{title} hold a class a line, and {strange!r} is none. Rename it: `merge: {{...}}`.")
    write_text(folder / SYNSETS, "".join(f"{name}\n" for name in head.classes))
    for name, part in parts(samples).items():
        lines = [
            " ".join([_quoted(path, title), *(str(head.index[one]) for one in classes or ())])
            for path, classes in zip(part.table["path"], class_lists(part, head), strict=True)
        ]
        write_text(folder / f"{name or DEFAULT}.txt", "".join(f"{line}\n" for line in lines))
    return of_head(head)


def _quoted(path: str, title: str) -> str:
    """Return the name of an image in a list: with quotes about it, but not its ending, where it has blanks."""
    ending = PurePosixPath(path).suffix
    if '"' in path or "\n" in path or "\r" in path or any(one.isspace() for one in ending):
        raise DataError(f"{title} cannot hold the name {path!r}. Rename it, or write another format.")
    return f'"{path[: len(path) - len(ending)]}"{ending}' if any(one.isspace() for one in path) else path


# Label Studio: JSON with the labelling interface, JSON-MIN and CSV.


def write_label_studio(samples: Samples, path: Path, title: str) -> Written:
    """Write tasks with an annotation each as JSON, and the labelling interface as XML beside them.

    Images are local files of Label Studio, below the folder of the data. One without a label is a task to annotate.
    """
    tasks = [
        {"data": facts, "annotations": [{"result": result}] if (result := _result(choices)) else []}
        for facts, choices in zip(_facts(samples), _choices(samples), strict=True)
    ]
    write_json(path, tasks)
    write_text(path.with_suffix(".xml"), _interface(samples))
    return _of_heads(samples)


def write_label_studio_min(samples: Samples, path: Path, title: str) -> Written:
    """Write a record for each image as JSON-MIN."""
    write_json(path, _records(samples, title))
    return _of_heads(samples)


def write_label_studio_csv(samples: Samples, path: Path, title: str) -> Written:
    """Write a row for each image; several tags are a JSON object."""
    records = _records(samples, title)
    written = dict.fromkeys(name for record in records for name in record)
    # The heads are known by their place between `id` and `annotator`.
    heads = [head.name for head in samples.space]
    order = ["image", "split", "group", "id", *heads, "annotator", "annotation_id", "lead_time"]
    rows = {name: [_cell(record.get(name)) for record in records] for name in order if name in written}
    with whole(path) as beside:
        pl.DataFrame(rows, schema=dict.fromkeys(rows, pl.String)).write_csv(beside, quote_style="always")
    return _of_heads(samples)


def _of_heads(samples: Samples) -> Written:
    return Written({"kind": {head.name: head.kind for head in samples.space}})


def _facts(samples: Samples) -> list[dict[str, object]]:
    table = samples.table.select("path", "split", "group")
    return [
        {"image": f"{LOCAL}{quote(path)}"}
        | ({"split": split} if split is not None else {})
        | ({"group": group} if group is not None else {})
        for path, split, group in table.iter_rows()
    ]


def _choices(samples: Samples) -> list[dict[str, list[str]]]:
    """Return the known choices of each image by head."""
    lists = {head.name: class_lists(samples, head) for head in samples.space}
    return [{name: one for name in lists if (one := lists[name][row]) is not None} for row in range(len(samples))]


def _result(choices: dict[str, list[str]]) -> list[dict[str, object]]:
    return [
        {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": chosen}}
        for name, chosen in choices.items()
    ]


def _interface(samples: Samples) -> str:
    """Return the labelling interface of Label Studio: a control of choices for each head."""
    choice = {"multiclass": "single", "multilabel": "multiple"}
    controls = "".join(
        f'  <Choices name={quoteattr(head.name)} toName="image" choice="{choice[head.kind]}">\n'
        + "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in head.classes)
        + "  </Choices>\n"
        for head in samples.space
    )
    return f'<View>\n  <Image name="image" value="$image"/>\n{controls}</View>\n'


def _records(samples: Samples, title: str) -> list[dict[str, object]]:
    """Return records of JSON-MIN. Raises DataError for a head called as one of their own columns."""
    strange = [head.name for head in samples.space if head.name in ABOUT]
    if strange:
        raise DataError(
            f"{title} have a column {quoted(strange)} of another meaning than the head. Write label_studio."
        )
    singles = {head.name for head in samples.space if head.multiclass}
    return [
        facts
        | {"id": number}
        | {
            name: one[0] if name in singles and not one[0].startswith("{") else {"choices": one}
            for name, one in choices.items()
        }
        | {"annotator": 1, "annotation_id": number, "lead_time": 0.0}
        for number, (facts, choices) in enumerate(zip(_facts(samples), _choices(samples), strict=True), 1)
    ]


def _cell(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
