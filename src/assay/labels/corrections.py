"""Corrections: what a person says of labels, read from a table as edits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from assay.errors import DataError
from assay.labels.edits import PERSON, Action, Edit, current
from assay.labels.pictures import shown
from assay.labels.samples import Samples
from assay.labels.space import Head
from assay.labels.tables import Rows, read_rows, texts


def corrections(path: Path, samples: Samples) -> list[Edit]:
    """A person's corrections: a table with the columns `image`, `head`, `class`, `label`.

    `head` may be left out where there is only one. Of an exclusive head, `class` is blank and `label` is a class; of
    an independent one, `class` names the tag and `label` is 1 or 0. A blank label is unknown. A label that says what
    is there already is an edit too: it keeps steps from changing it. `samples` are those as read, with the
    corrections made before: what steps did to them does not count here.

    Raises DataError that names the line for a picture, head or class that is not there and for lines that disagree.
    """
    rows = read_rows(path)
    named = [rows.column("image"), rows.column("label")]
    rows = texts(rows, [*named, *(column for column in ("head", "class") if column in rows.frame.columns)])
    if "head" not in rows.frame.columns and len(samples.space) > 1:
        heads = ", ".join(repr(head.name) for head in samples.space)
        raise DataError(f"{shown(path)}: has no column 'head', and the heads are {heads}. Add it.")
    positions = {name: row for row, name in enumerate(samples.ids)}
    cells: dict[tuple[str, str, str | None], tuple[str | None, int]] = {}
    for row, line in enumerate(rows.frame.iter_rows(named=True)):
        head = _head(rows, row, line.get("head"), samples)
        if line["image"] not in positions:
            example = f", such as {samples.ids[0]!r}" if len(samples) else ""
            raise DataError(f"{rows.at(row)}: there is no picture {line['image']!r}. Name it as in the data{example}.")
        _require_label(rows, row, head, line.get("class"), line["label"])
        said, at = cells.setdefault((line["image"], head.name, line.get("class")), (line["label"], row))
        if said != line["label"]:
            raise DataError(
                f"{rows.at(row)}: says {line['label'] or ''!r} of {line['image']!r}, but {rows.unit} {rows.lines[at]} "
                f"says {said or ''!r}. Remove one of the two."
            )
    return _persons(cells, samples, positions)


def _persons(
    cells: dict[tuple[str, str, str | None], tuple[str | None, int]], samples: Samples, positions: dict[str, int]
) -> list[Edit]:
    """The edits of these cells; (id, head, tag) -> (label, row)."""
    edits = []
    for head in samples.space:
        own = [(cell, label) for cell, (label, _) in cells.items() if cell[1] == head.name]
        rows = np.array([positions[cell[0]] for cell, _ in own], dtype=np.int64)
        standing_there = current(samples, head, rows, [cell[2] for cell, _ in own])
        for ((name, _, tag), label), old in zip(own, standing_there, strict=True):
            action: Action = "unset" if label is None else "set"
            edits.append(Edit(id=name, head=head.name, tag=tag, action=action, old=old, new=label, step=PERSON))
    return edits


def _head(rows: Rows, row: int, name: str | None, samples: Samples) -> Head:
    if name is None and len(samples.space) == 1:
        return samples.space.heads[0]
    for head in samples.space:
        if head.name == name:
            return head
    heads = ", ".join(repr(head.name) for head in samples.space)
    raise DataError(f"{rows.at(row)}: there is no head {name or ''!r}. Name one of {heads}.")


def _require_label(rows: Rows, row: int, head: Head, tag: str | None, label: str | None) -> None:
    if head.kind == "exclusive" and tag is not None:
        raise DataError(
            f"{rows.at(row)}: a picture has one class of {head.name!r}, so 'class' stays blank and 'label' names it."
        )
    if head.kind == "independent" and label not in (None, "0", "1"):
        raise DataError(f"{rows.at(row)}: the label {label!r} is none of 1 (has it), 0 (has it not), blank (unknown).")
    said = label if head.kind == "exclusive" else tag or ""
    if said is not None and said not in head.index:
        classes = ", ".join(map(repr, head.classes[:20]))
        raise DataError(f"{rows.at(row)}: {said!r} is no class of {head.name!r}. Name one of {classes}.")
