"""Reader of Label Studio's exports: JSON, JSON-MIN and CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from assay.errors import DataError
from assay.labels.file_kinds import is_image
from assay.labels.readers.columns import SPLIT_WORDS
from assay.labels.readers.exports import Export, Json, LabelledImage, Options, export_of, image_root
from assay.labels.readers.table_files import is_table, read_rows
from assay.messages import printable, quoted

ABOUT = frozenset({
    "id", "annotation_id", "annotator", "created_at", "updated_at", "lead_time", "image", "split", "group", "agreement",
    "file_upload", "project", "meta", "draft",
})  # fmt: skip
"""Columns of JSON-MIN and CSV that are no labels."""

LOCAL = "/data/local-files/?d="


def read_label_studio(source: Path, options: Options) -> Export:
    """Return the images of tasks with the choices of their annotations: a head for each control of choices.

    An annotation is a row, and several of one image are votes; those that were cancelled do not count. A control
    without a choice is unknown. With `head` only that control is read. Raises DataError for a task without an image.
    """
    if is_table(source):
        tasks = [Json(cells, at) for cells, at in _records_of_table(source)]
    else:
        tasks = Json.read(source).items()
    minimal = bool(tasks) and not any(key in tasks[0] for key in ("data", "annotations", "completions"))
    controls = _controls(tasks) if minimal else []
    images: list[LabelledImage] = []
    for at, task in enumerate(tasks, 1):
        images += [_of_record(at, task, controls)] if minimal else _of_task(at, task)
    if options.head:
        named = {head for image in images for head in image.labels}
        if images and options.head not in named:
            raise DataError(
                f"{printable(source)}: has no control {options.head!r} of choices; there are {quoted(named)}."
            )
        head = options.head
        images = [
            LabelledImage(one.at, one.name, {head: one.labels.get(head)}, one.split, one.group, one.annotator)
            for one in images
        ]
    return export_of(images, source=source, unit="task", root=image_root(source, options.root), options=options)


def _records_of_table(path: Path) -> list[tuple[Mapping[str, object], str]]:
    """Return the rows of a CSV; a cell that is a JSON object is one."""
    rows = read_rows(path)
    frame = rows.frame.with_columns(pl.all().cast(pl.String))
    return [
        ({name: _cell(text) for name, text in cells.items() if text is not None}, rows.at(row))
        for row, cells in enumerate(frame.iter_rows(named=True))
    ]


def _cell(text: str) -> object:
    if not text.lstrip().startswith('{"'):
        return text
    try:
        return json.loads(text)
    except ValueError:  # a choice that begins with a brace
        return text


def _of_task(at: int, task: Json) -> list[LabelledImage]:
    """Return a row an annotation of a task; one without labels where nobody annotated it."""
    data = task["data"]
    name, facts = _image(data), _facts(data)
    annotations = task.items("annotations") or task.items("completions")
    valid = [one for one in annotations if not ("was_cancelled" in one and one["was_cancelled"].value)]
    truth = [one for one in valid if "ground_truth" in one and one["ground_truth"].value]
    rows = [
        LabelledImage(at, name, _choices(one), *facts, _person(one) if len(truth or valid) > 1 else None)
        for one in truth or valid
    ]
    return rows or [LabelledImage(at, name, {}, *facts)]


def _choices(annotation: Json) -> dict[str, list[str]]:
    """Return the choices of each control. Results of other kinds, such as boxes, are no labels of an image."""
    choices: dict[str, list[str]] = {}
    for result in annotation.items("result"):
        if "type" in result and result["type"].value == "choices":
            listed = result["value"]["choices"].items()
            choices.setdefault(result["from_name"].text(), []).extend(one.text() for one in listed)
    return choices


def _person(annotation: Json) -> str | None:
    if "completed_by" not in annotation:
        return None
    by = annotation["completed_by"]
    return str(by.value.get("email") or by.value.get("id")) if isinstance(by.value, Mapping) else str(by.value)


def _controls(records: Sequence[Json]) -> list[str]:
    """Return the columns of JSON-MIN that hold choices: those between `id` and `annotator`, or all but the usual."""
    columns = list(dict.fromkeys(key for one in records if isinstance(one.value, Mapping) for key in one.value))
    if "id" in columns and "annotator" in columns:
        between = columns[columns.index("id") + 1 : columns.index("annotator")]
        if between:
            columns = between
    images = {
        key for one in records if isinstance(one.value, Mapping) for key in one.value if _is_image(one.value[key])
    }
    return [column for column in columns if column not in ABOUT | images]


def _of_record(at: int, record: Json, controls: Sequence[str]) -> LabelledImage:
    labels: dict[str, list[str]] = {}
    for control in controls:
        if control in record:
            value = record[control]
            listed = value["choices"].items() if isinstance(value.value, Mapping) else [value]
            labels[control] = [one.text() for one in listed]
    by = str(record["annotator"].value) if "annotator" in record else None
    return LabelledImage(at, _image(record), labels, *_facts(record), by)


def _facts(data: Json) -> tuple[str | None, str | None]:
    """Return split and group of a task, where its data has them."""
    split = data["split"].value if "split" in data else None
    group = data["group"].value if "group" in data else None
    return SPLIT_WORDS.get(split.casefold()) if isinstance(split, str) else None, None if group is None else str(group)


def _is_image(value: object) -> bool:
    return isinstance(value, str) and (is_image(value.partition("?")[0]) or is_image(value) or LOCAL in value)


def _image(data: Json) -> str:
    """Return the name of the image of a task; that of a local file is the path below the folder that is served."""
    keys = list(data.value) if isinstance(data.value, Mapping) else []
    key = next((key for key in ("image", *keys) if key in data and _is_image(data[key].value)), "image")
    if key not in data:
        raise data.fault(f"names no image: none of {quoted(keys)} does. Remove the task, or add `image`.")
    name = data[key].text()
    return unquote(name.partition(LOCAL)[2]) if LOCAL in name else name
