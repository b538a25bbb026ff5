"""Several rows of one image: tags that are joined, or labels of annotators that are put to the vote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from assay.errors import DataError
from assay.labels.image_files import natural_key
from assay.labels.readers.label_cells import HeadColumns
from assay.labels.readers.table_files import Rows

Combined = tuple[Rows, list[str]]
"""Rows of one image with equal labels, and notes."""


def joined_tags(rows: Rows, heads: Mapping[str, HeadColumns]) -> Combined:
    """Return rows with the tags of all rows of their image, under multi-label heads of one column.

    Raises DataError where one row names tags and another says that there are none.
    """
    notes: list[str] = []
    for name in _tag_heads(heads):
        column, joined = f"label:{name}", {}
        for image, group in _several(rows, column).items():
            cells = {cell: row for row, cell in group if cell is not None}
            if len(cells) > 1:
                tags = [json.loads(cell) for cell in cells]
                if [] in tags:
                    row = cells["[]"]
                    raise DataError(
                        f"{rows.at(row)}: says that {image!r} has no tag of {name!r}, and another row names one. "
                        "Remove one of the two."
                    )
                joined[image] = _json({tag for one in tags for tag in one}, heads[name])
        if joined:
            rows = _with(rows, column, joined)
            notes.append(f"{name}: {_images(len(joined))} several rows, whose tags are joined.")
    return rows, notes


def voted(rows: Rows, heads: Mapping[str, HeadColumns]) -> Combined:
    """Return rows with the label that most rows of their image have, under every head; a tie is unknown.

    Each row is one vote, a blank cell none. Each tag of a multi-label head is voted on by itself.
    """
    if not rows.frame["id"].is_duplicated().any():
        return rows, []
    notes: list[str] = []
    for name, head in heads.items():
        if head.multiclass:
            rows, note = _voted_classes(rows, name)
        else:
            rows, note = _voted_tags(rows, name, head) if head.column else _voted_flags(rows, name, head)
        notes += note
    return rows, notes


def _voted_classes(rows: Rows, name: str) -> Combined:
    column, elected = f"label:{name}", dict[str, str | None]()
    agreed = ties = 0
    for image, group in _several(rows, column).items():
        votes = Counter(cell for _, cell in group if cell is not None)
        ranked = votes.most_common(2)
        tie = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
        elected[image] = None if tie or not ranked else ranked[0][0]
        ties += tie
        agreed += len(votes) < 2
    outvoted = len(elected) - agreed - ties
    text = f"{agreed:,} agree, {outvoted:,} have the most frequent label, {ties:,} are unknown by a tie"
    return _with(rows, column, elected), [f"{name}: {_images(len(elected))} labels of several annotators: {text}."]


def _voted_tags(rows: Rows, name: str, head: HeadColumns) -> Combined:
    column, elected, tied = f"label:{name}", dict[str, str | None](), dict[str, list[str]]()
    for image, group in _several(rows, column).items():
        cells = [json.loads(cell) for _, cell in group if cell is not None]
        votes = Counter(tag for cell in cells for tag in cell)
        elected[image] = _json([tag for tag, count in votes.items() if 2 * count > len(cells)], head) if cells else None
        tied[image] = [tag for tag, count in votes.items() if 2 * count == len(cells)]
    rows = _with(rows, column, elected)
    texts = rows.frame[column].drop_nulls().unique().to_list()
    known = {tag for text in texts for tag in json.loads(text)} | set(head.classes)  # a tag that no image has is none
    unknown = {image: _json([tag for tag in tags if tag in known], head) for image, tags in tied.items() if tags}
    rows = _with(rows, f"unknown:{name}", unknown)
    return rows, [
        f"{name}: {_images(len(elected))} tags of several annotators: those that most of them named; {len(unknown):,} "
        "have tags that are unknown by a tie."
    ]


def _voted_flags(rows: Rows, name: str, head: HeadColumns) -> Combined:
    flags = [f"flag:{name}:{k}" for k in range(len(head.columns))]
    shares = pl.col(flags).mean().over("id")
    kind = rows.frame.schema[flags[0]]
    voted_frame = rows.frame.with_columns(shares).with_columns(
        pl.when(pl.col(flags) != 0.5).then(pl.col(flags) > 0.5).cast(kind)
    )
    count = int(rows.frame.filter(pl.col("id").is_duplicated())["id"].n_unique())
    note = f"{name}: {_images(count)} tags of several annotators: each by their majority; a tie is unknown."
    return replace(rows, frame=voted_frame), [note]


def _tag_heads(heads: Mapping[str, HeadColumns]) -> list[str]:
    return [name for name, head in heads.items() if head.column is not None and not head.multiclass]


def _several(rows: Rows, column: str) -> dict[str, list[tuple[int, str | None]]]:
    """Return row and cell of images that have several rows."""
    frame = rows.frame.select("id", column).with_row_index("row").filter(pl.col("id").is_duplicated())
    groups: dict[str, list[tuple[int, str | None]]] = {}
    for row, image, cell in frame.iter_rows():
        groups.setdefault(image, []).append((row, cell))
    return groups


def _with(rows: Rows, column: str, cells: Mapping[str, str | None]) -> Rows:
    """Return the rows with the cells of a column replaced where their image is among those given."""
    images = rows.frame["id"].to_list()
    before = rows.frame[column].to_list() if column in rows.frame.columns else [None] * len(images)
    values = [cells.get(image, cell) for image, cell in zip(images, before, strict=True)]
    return replace(rows, frame=rows.frame.with_columns(pl.Series(column, values, dtype=pl.String)))


def _json(tags: Sequence[str] | set[str], head: HeadColumns) -> str:
    order = {name: position for position, name in enumerate(head.classes)}
    ranked = sorted(tags, key=lambda tag: (order.get(tag, len(order)), natural_key(tag)))
    return json.dumps(ranked, ensure_ascii=False)


def _images(count: int) -> str:
    return "1 image has" if count == 1 else f"{count:,} images have"
