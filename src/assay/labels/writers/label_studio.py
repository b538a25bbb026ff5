"""Writers for Label Studio: JSON with the labelling interface, JSON-MIN and CSV."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import polars as pl

from assay.errors import DataError
from assay.files import whole, write_json, write_text
from assay.labels.readers.label_studio import ABOUT, LOCAL
from assay.labels.samples import Samples
from assay.labels.writers.shared import Written, class_lists
from assay.messages import quoted


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
