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
from assay.labels.writers.shared import Written, absolute, class_lists, lost_facts, require_ending, without_unknown
from assay.messages import quoted

TITLE = "Label Studio's files"


def write_label_studio(samples: Samples, path: Path) -> Written:
    """Write tasks with an annotation each as JSON, and the labelling interface as XML beside them.

    Images are local files of Label Studio, below the folder of the data. One without a label is a task to annotate.
    """
    require_ending(path, ".json")
    kept, data, notes = _kept(samples, path)
    results = _choices(kept)
    tasks = [
        {"data": facts, "annotations": [{"result": result}] if (result := _result(choices)) else []}
        for facts, choices in zip(_facts(kept), results, strict=True)
    ]
    write_json(path, tasks)
    write_text(path.with_suffix(".xml"), _interface(kept))
    return Written(data, notes)


def write_label_studio_min(samples: Samples, path: Path) -> Written:
    """Write a record for each image as JSON-MIN."""
    require_ending(path, ".json")
    kept, data, notes = _kept(samples, path)
    write_json(path, _records(kept))
    return Written(data, notes)


def write_label_studio_csv(samples: Samples, path: Path) -> Written:
    """Write a row for each image; several tags are a JSON object."""
    require_ending(path, ".csv")
    kept, data, notes = _kept(samples, path)
    records = _records(kept)
    columns = list(dict.fromkeys(name for record in records for name in record))
    rows = {name: [_cell(record.get(name)) for record in records] for name in _ordered(columns, kept)}
    with whole(path) as beside:
        pl.DataFrame(rows, schema=dict.fromkeys(rows, pl.String)).write_csv(beside, quote_style="always")
    return Written(data, notes)


def _kept(samples: Samples, path: Path) -> tuple[Samples, dict[str, object], tuple[str, ...]]:
    known = without_unknown(samples, TITLE, unlabelled=True)
    kinds = {head.name: head.kind for head in samples.space}
    data: dict[str, object] = {"label_studio": absolute(path), "root": absolute(samples.root), "kind": kinds}
    return known.samples, data, (*known.notes, *lost_facts(known.samples, TITLE, ["split", "group"]))


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


def _records(samples: Samples) -> list[dict[str, object]]:
    """Return records of JSON-MIN. Raises DataError for a head called as one of their own columns."""
    strange = [head.name for head in samples.space if head.name in ABOUT]
    if strange:
        raise DataError(
            f"{TITLE} have a column {quoted(strange)} of another meaning than the head. Write label_studio."
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


def _ordered(columns: list[str], samples: Samples) -> list[str]:
    """Return columns with those of the heads between `id` and `annotator`, by which they are known."""
    heads = [head.name for head in samples.space if head.name in columns]
    return [
        *(one for one in ("image", "split", "group") if one in columns), "id", *heads,
        "annotator", "annotation_id", "lead_time",
    ]  # fmt: skip


def _cell(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
